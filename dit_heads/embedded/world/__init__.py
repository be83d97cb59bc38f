"""The rendered world: scenes, their renders, styles and captions, and the vocabulary."""
