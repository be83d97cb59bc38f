"""The networks trained on the world: autoencoder, CLIP, judge, reader, SD3 and FLUX."""
