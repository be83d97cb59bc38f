"""Training of soft tokens on the blocks world: `python -m dit_heads.embedded.soft_tokens.train --help`."""
