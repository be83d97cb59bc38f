"""Benchmarks are scripts: Python puts their own folder on the path when it runs one."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
