"""What a run teaches a transformer, one module a task."""
