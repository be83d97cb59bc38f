"""Sets of plain colours, whose panels can be told apart."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from PIL import Image

from dit_heads.loras.sets.dataset import (
    Sample,
    SetDataset,
)
from dit_heads.loras.sets.panels import split

PHOTOS = Path(os.environ.get("DIT_HEADS_PHOTOS", Path(__file__).parents[4] / "shared/photos"))
SQUARE = [(64, 64)]


def picture(path: Path, colour: tuple[int, int, int] = (9, 9, 9), size: tuple[int, int] = (64, 64)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def make_sets(root: Path, count: int = 2, panels: int = 2, size: tuple[int, int] = (64, 64)) -> Path:
    """Set k has panels of red 10 k, 10 k + 1, ... and the caption "set k"."""
    for k in range(count):
        for p in range(panels):
            picture(root / f"set{k:02d}" / f"{p + 1}.png", (10 * k + p, 0, 0), size)
        (root / f"set{k:02d}" / "caption.txt").write_text(f"set {k}\n")
    return root


def pairs(root: Path, **options: Any) -> SetDataset:
    return SetDataset(root, **{"rows": 1, "columns": 2, "buckets": SQUARE} | options)


def reds(sample: Sample) -> list[int]:
    """The red of each panel's middle."""
    middles = [p.getpixel((p.width // 2, p.height // 2)) for p in split(sample.composite(), sample.grid)]
    return [middle[0] for middle in middles if isinstance(middle, tuple)]
