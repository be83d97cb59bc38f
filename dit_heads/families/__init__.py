"""Model families: all that is particular to a transformer class, one module a family."""
