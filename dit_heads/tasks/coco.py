"""Boxes and masks in the form of COCO's files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


def coco_file(
    pictures: Sequence[tuple[str, Boxes | Instances]], names: Sequence[str] = ()
) -> dict[str, Any]:
    """Boxes or masks of pictures as the contents of an annotation file, with their scores.

    Args:
        pictures: The name of each picture, and what is known of it.
        names: Of classes that may be in none of them; the others are added.
    """
    there = {kind for _, found in pictures for kind in found.classes}
    categories = {name: k for k, name in enumerate(dict.fromkeys([*names, *sorted(there)]), 1)}
    images = [
        {"id": k, "file_name": name, "height": found.size[0], "width": found.size[1]}
        for k, (name, found) in enumerate(pictures, 1)
    ]
    entries = [e for k, (_, found) in enumerate(pictures, 1) for e in coco_entries(found, k, categories)]
    for k, entry in enumerate(entries, 1):
        entry |= {"id": k, "iscrowd": 0, "area": _area(entry)}
    kinds = [{"id": k, "name": name} for name, k in categories.items()]
    return {"images": images, "categories": kinds, "annotations": entries}


def _area(entry: Mapping[str, Any]) -> float:
    if "segmentation" in entry:
        return float(np.sum(entry["segmentation"]["counts"][1::2]))
    return entry["bbox"][2] * entry["bbox"][3]


def run_lengths(mask: Bool[np.ndarray, "h w"]) -> dict[str, Any]:
    """A mask as COCO's uncompressed run lengths: column by column, beginning with how many are outside."""
    flat = np.concatenate([[False], mask.T.reshape(-1)])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    counts = np.diff(np.concatenate([[0], changes, [mask.size]]))
    return {"size": [int(side) for side in mask.shape], "counts": [int(count) for count in counts]}


def mask_of(segmentation: Any, size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """Read a mask: polygons, or run lengths, compressed or not.

    Args:
        segmentation: As in an annotation of COCO.
        size: Height and width of the picture.

    Raises:
        InputError: for anything else, run lengths of another size, and a missing faster-coco-eval.
    """
    try:
        from faster_coco_eval.core import mask
    except ImportError as error:
        raise InputError("faster-coco-eval: expected it, `pip install 'dit-heads[eval]'`") from error
    height, width = size
    if isinstance(segmentation, Mapping) and list(segmentation.get("size", ())) != [height, width]:
        raise InputError(f"segmentation: expected size {[height, width]}, got {segmentation.get('size')}")
    try:
        if isinstance(segmentation, Mapping) and isinstance(segmentation.get("counts"), str | bytes):
            return mask.decode(dict(segmentation)).astype(bool)
        given: Any = segmentation
        found: Any = mask.frPyObjects(given, height, width)
        return mask.decode(mask.merge(found) if isinstance(found, list) else found).astype(bool)
    except Exception as error:  # the library raises almost anything
        kind = type(segmentation).__name__
        raise InputError(f"segmentation: expected polygons or run lengths, got {kind}: {error}") from error


def checked_truth(truth: Any, name: str) -> None:
    """Raise InputError for what is no annotation file, or refers to pictures or classes that it lacks.

    Args:
        truth: The contents of the file.
        name: Of the file, for messages.
    """
    parts = ("images", "categories", "annotations")
    if not isinstance(truth, Mapping) or not all(isinstance(truth.get(part), list) for part in parts):
        raise InputError(f"{name}: expected lists {', '.join(parts)}, as in COCO's annotation files")
    needed = {
        "images": ("id", "file_name", "height", "width"),
        "categories": ("id", "name"),
        "annotations": ("image_id", "category_id", "bbox"),
    }
    for part, keys in needed.items():
        for number, entry in enumerate(truth[part]):
            if lacking := [key for key in keys if key not in entry]:
                raise InputError(f"{name}: expected {', '.join(lacking)} in {part}, got none in {number}")
    for key, part in (("image_id", "images"), ("category_id", "categories")):
        known = {entry["id"] for entry in truth[part]}
        for number, entry in enumerate(truth["annotations"]):
            if entry[key] not in known:
                found = f"{entry[key]!r} in annotation {number}"
                raise InputError(f"{name}: expected an id of {part}, got {found}")
