"""Words and codes of tasks; numpy and PIL alone."""
