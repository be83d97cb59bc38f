"""In-context LoRA training on sets of images joined into panels; imports the core, never the reverse."""
