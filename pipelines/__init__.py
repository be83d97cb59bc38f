"""Drop-in pipelines and tasks on top of head guidance; imports the core, never the reverse."""
