"""Weights of LoRAs: what they change, their files, the dialects of other trainers, several at once."""
