"""Reference pictures as tokens of an instruction (MIGE, arXiv 2502.21291)."""
