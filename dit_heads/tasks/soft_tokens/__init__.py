"""Depth and instance masks as soft tokens of learned codebooks, on the features of a diffusion transformer
(AiT, arXiv 2301.02229)."""
