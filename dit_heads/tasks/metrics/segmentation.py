"""Intersection over union of segmentations."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from dit_heads.errors import InputError
from dit_heads.tasks.annotations import Segmentation, mask_iou
from dit_heads.tasks.metrics.scores import Scores


def score_segmentation(pairs: Iterable[tuple[str, Segmentation, Segmentation]]) -> Scores:
    """IoU of segmentations of the same classes and size.

    "mIoU" adds up each class's intersection and union over all pictures, and takes the mean of the classes
    that occur, as benchmarks do. "IoU of a question" is the mean over pictures and classes; where a class is
    neither there nor found, it is 1. "found nothing there" is the share of pictures and classes where a class
    is not there, and some of it was found.

    Args:
        pairs: Name, truth and prediction of each picture.

    Raises:
        InputError: for no pictures, and for predictions of other classes or another size.
    """
    common, union = dict[str, int](), dict[str, int]()
    rows: dict[str, dict[str, float]] = {}
    absent: list[bool] = []
    for name, truth, found in pairs:
        _check(name, truth, found)
        each = [(truth.mask(kind), found.mask(kind)) for kind in truth.classes]
        for kind, (a, b) in zip(truth.classes, each, strict=True):
            common[kind] = common.get(kind, 0) + int((a & b).sum())
            union[kind] = union.get(kind, 0) + int((a | b).sum())
        absent += [bool(b.any()) for a, b in each if not a.any()]
        rows[name] = {"IoU": float(np.mean([mask_iou(a, b) for a, b in each]))}
    if not rows:
        raise InputError("pairs: expected a picture or more, got none")
    by_class = {kind: common[kind] / union[kind] for kind in sorted(common) if union[kind]}
    figures = {
        "mIoU": float(np.mean(list(by_class.values()))) if by_class else float("nan"),
        "IoU of a question": float(np.mean([row["IoU"] for row in rows.values()])),
        "found nothing there": float(np.mean(absent)) if absent else float("nan"),
        **{f"IoU of {kind}": value for kind, value in by_class.items()},
    }
    about = (f"{len(rows)} pictures", f"{len(by_class)} classes that occur", "at the resolution of the truth")
    return Scores("segmentation", about, figures, rows)


def _check(name: str, truth: Segmentation, found: Segmentation) -> None:
    if truth.classes != found.classes:
        raise InputError(
            f"prediction: expected the classes {', '.join(truth.classes)}, got {', '.join(found.classes)} "
            f"({name})"
        )
    if truth.labels.shape != found.labels.shape:
        raise InputError(
            f"prediction: expected the size {truth.labels.shape}, got {found.labels.shape} ({name})"
        )
