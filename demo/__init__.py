"""The Gradio page that shows every part of the package; imports the core, never the reverse."""
