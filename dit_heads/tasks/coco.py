"""Boxes and masks in the form of COCO's files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool

from dit_heads.errors import InputError
from dit_heads.tasks.annotations import Annotation, Boxes, Instances


def coco_entries(
    annotation: Annotation, image: int, categories: Mapping[str, int]
) -> list[dict[str, Any]]:
    """Boxes or masks of a picture in COCO's form.

    Args:
        annotation: Of the picture.
        image: COCO's id of the picture.
        categories: COCO's id of each class.

    Raises:
        InputError: for other annotations, and a class without an id.
    """
    if not isinstance(annotation, Boxes | Instances):
        raise InputError(f"coco: expected boxes or instances, got {type(annotation).__name__}")
    if unknown := sorted(set(annotation.classes) - categories.keys()):
        raise InputError(f"categories: expected an id for each class, got none for {', '.join(unknown)}")
    boxes = annotation.boxes() if isinstance(annotation, Instances) else annotation
    entries = []
    for k, (name, score) in enumerate(zip(boxes.classes, boxes.scores, strict=True)):
        x0, y0, x1, y1 = map(float, boxes.boxes[k])
        entry: dict[str, Any] = {"image_id": image, "category_id": categories[name], "score": float(score)}
        entry["bbox"] = [x0, y0, x1 - x0, y1 - y0]
        if isinstance(annotation, Instances):
            entry["segmentation"] = run_lengths(annotation.masks[k])
        entries.append(entry)
    return entries


def run_lengths(mask: Bool[np.ndarray, "h w"]) -> dict[str, Any]:
    """A mask as COCO's uncompressed run lengths: column by column, beginning with how many are outside."""
    flat = np.concatenate([[False], mask.T.reshape(-1)])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    counts = np.diff(np.concatenate([[0], changes, [mask.size]]))
    return {"size": [int(side) for side in mask.shape], "counts": [int(count) for count in counts]}
