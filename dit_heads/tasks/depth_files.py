"""Depth as PNG files of 16 bits: metres times a scale, 0 where there is no distance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from dit_heads.errors import InputError
from dit_heads.io.atomic import atomic_file
from dit_heads.io.pictures import read_levels
from dit_heads.tasks.annotations import Depth


def read_depth_png(path: str | Path, scale: float = 256.0) -> Depth:
    """Read depth that `save_depth_png` or a data set has written.

    Args:
        path: Of the file.
        scale: Levels a metre: 256 for KITTI, 1000 for millimetres.

    Raises:
        InputError: for a file that cannot be read, and a picture that is not grey.
    """
    levels = read_levels(Path(path))
    return Depth((levels / scale).astype(np.float32), levels > 0)


def save_depth_png(depth: Depth, path: str | Path, scale: float = 256.0) -> None:
    """Write depth as a PNG of 16 bits, as KITTI has it: metres times `scale`, 0 where there is no distance.

    Args:
        depth: What to write.
        path: Of the file, which appears whole or not at all.
        scale: 256 for KITTI, 1000 for millimetres. Relative depth in [0, 1] takes 65535.

    Raises:
        InputError: for a distance that 16 bits do not hold at this scale.
    """
    known = np.where(depth.valid, depth.metres, 0).astype(float) * scale
    if known.max() > 0xFFFF:
        raise InputError(
            f"scale: expected one at which {known.max() / scale:.3g} metres fit into 16 bits, got {scale:g}"
        )
    # A measured distance never becomes 0, which stands for none.
    values = np.where(depth.valid, np.maximum(np.round(known), 1), 0).astype(np.uint16)
    with atomic_file(Path(path)) as file:
        Image.fromarray(values).save(file, format="PNG")
