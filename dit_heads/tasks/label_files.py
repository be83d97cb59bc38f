"""Segmentations as PNG files of class numbers: grey of 8 or 16 bits, or a palette as in Pascal VOC."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dit_heads.errors import InputError
from dit_heads.io.atomic import atomic_file
from dit_heads.io.pictures import read_levels
from dit_heads.tasks.annotations import Segmentation


def read_label_png(
    path: str | Path, classes: Sequence[str], first: int = 1, void: Sequence[int] = ()
) -> Segmentation:
    """Read a segmentation that `save_label_png` or a data set has written.

    Args:
        path: Of the file.
        classes: The names of numbers from `first` on.
        first: The number of the first class; smaller ones are none of them.
        void: Numbers that stand for no class, such as 255.

    Raises:
        InputError: for a file that cannot be read, a picture in colours, and a number without a class.
    """
    numbers = read_levels(Path(path), palette=True).astype(np.int64)
    labels = np.where(np.isin(numbers, list(void)), 0, np.maximum(numbers - first + 1, 0))
    if (most := int(labels.max())) > len(classes):
        raise InputError(
            f"labels: expected at most {first + len(classes) - 1} for {len(classes)} classes, got "
            f"{most + first - 1} in '{path}'"
        )
    return Segmentation(labels, tuple(classes))


def save_label_png(found: Segmentation, path: str | Path) -> None:
    """Write a segmentation as a grey PNG: 0 for none of the classes, k for the k-th.

    Args:
        found: What to write.
        path: Of the file, which appears whole or not at all.
    """
    kind = np.uint8 if len(found.classes) < 256 else np.uint16
    with atomic_file(Path(path)) as file:
        Image.fromarray(found.labels.astype(kind)).save(file, format="PNG")
