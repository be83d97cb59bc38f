"""The shipped head set on test prompts of three solids: `python benchmarks/presets.py --count 96`.

The heads were chosen on validation prompts by benchmarks/hunt.py. The judge and the embedded CLIP score
pictures of prompts that no search drew, without guidance, with CFG, with the heads, and with both.
"""

from __future__ import annotations

from pathlib import Path

import tyro
from hunt import CFG, Bench, Extent, Guided

from dit_heads.cli.sheet import PRESETS
from dit_heads.embedded.world.captions import caption
from dit_heads.heads.presets import Preset, read_presets


def main(count: int = 96, batch: int = 16, device: str = "auto", dtype: str = "float32") -> None:
    """Print the table of `count` test prompts, one seed each."""
    found = read_presets(PRESETS)
    heads, layer = _guided(found["general"]), _guided(found["general, one block"])
    bench = Bench(Path("out/hunt"), Extent(0, count, batch), device, dtype)
    rows = {
        "none": (1.0, None),
        f"CFG {CFG:g}": (CFG, None),
        "best layer": (1.0, layer),
        "HeadHunter": (1.0, heads),
        f"CFG {CFG:g} and HeadHunter": (CFG, heads),
    }
    bench.table(bench.scenes, [caption(scene) for scene in bench.scenes], rows)


def _guided(preset: Preset) -> Guided:
    return Guided(preset.head_set, preset.scale, preset.softness, float("nan"))


if __name__ == "__main__":
    tyro.cli(main)
