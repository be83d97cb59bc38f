"""The `showcase` command."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from dit_heads.cli.generate import check_out
from dit_heads.errors import whole_number


@dataclass(frozen=True)
class Showcase:
    """Draw one sheet: the same prompts and seeds, unguided and guided, side by side."""

    out: Annotated[Path, tyro.conf.arg(metavar="FILE.png")] = Path("out/showcase.png")
    """Output file."""
    seed: int = 0
    """Seed of the first row. Each further row takes the next seed."""
    steps: int = 28
    """Number of denoising steps."""

    def run(self) -> None:
        """Check the settings, then draw and write the sheet."""
        check_out(self.out)
        whole_number("seed", self.seed, 0, 2**32 - 1)
        whole_number("steps", self.steps, 1, 1000)
        from dit_heads.cli.sheet import write_showcase

        began = time.perf_counter()
        write_showcase(self.out, self.seed, self.steps)
        print(f"wrote {self.out} in {time.perf_counter() - began:.0f} s")
