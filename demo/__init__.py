"""The demo: one Gradio page on top of an engine that knows no Gradio (`pip install '.[demo]'`)."""
