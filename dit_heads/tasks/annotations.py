"""What is known of a picture: masks, instances, boxes, depth, labels. Each checks itself when it is made.

Coordinates are pixels: x to the right, y down, far edges exclusive, so the whole picture is the box
(0, 0, width, height).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Real
from numpy.typing import ArrayLike, NDArray

from dit_heads.errors import InputError


@dataclass(frozen=True, eq=False)
class Segmentation:
    """Which of several classes each pixel shows.

    Args:
        labels: 0 for none of the classes, k for `classes[k - 1]`.
        classes: Names, each once.
    """

    labels: Int[np.ndarray, "h w"]
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        _check_picture("labels", self.labels, "iu")
        _check_names("classes", self.classes)
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high > len(self.classes):
            raise InputError(f"labels: expected 0 to {len(self.classes)}, got {low} to {high}")

    @classmethod
    def of_mask(cls, mask: Bool[np.ndarray, "h w"], name: str) -> Segmentation:
        """The segmentation that a mask of a single class is."""
        return cls(np.asarray(mask).astype(np.int64), (name,))

    def mask(self, name: str) -> Bool[np.ndarray, "h w"]:
        """Where one class is, if anywhere. Raises InputError for a class that is not one of these."""
        if name not in self.classes:
            raise InputError(f"class: expected one of {', '.join(self.classes)}, got {name!r}")
        return self.labels == self.classes.index(name) + 1


@dataclass(frozen=True, eq=False)
class Boxes:
    """Boxes of objects.

    Args:
        boxes: x0, y0, x1, y1 of each, inside the picture; `Boxes.clipped` makes them so.
        classes: The class of each.
        size: Height and width of the picture.
        scores: How sure each is, higher is surer; 1 by default.
    """

    boxes: Real[np.ndarray, "n 4"]
    classes: tuple[str, ...]
    size: tuple[int, int]
    scores: Float[np.ndarray, " n"] = None  # pyright: ignore[reportAssignmentType]

    def __post_init__(self) -> None:
        boxes = np.asarray(self.boxes, np.float64).reshape(-1, 4)
        object.__setattr__(self, "boxes", boxes)
        object.__setattr__(self, "scores", _scores(self.scores, len(boxes), self.classes))
        if len(wrong := np.flatnonzero(~_inside(boxes, self.size))):
            height, width = self.size
            raise InputError(
                f"boxes: expected 0 <= x0 < x1 <= {width} and 0 <= y0 < y1 <= {height}, "
                f"got {boxes[wrong[0]].tolist()} (box {wrong[0]})"
            )

    @classmethod
    def clipped(
        cls, boxes: ArrayLike, classes: Sequence[str], size: tuple[int, int], scores: ArrayLike | None = None
    ) -> Boxes:
        """Boxes cut at the borders of the picture; those that lie outside altogether are left out."""
        height, width = size
        cut = np.asarray(boxes, np.float64).reshape(-1, 4)
        cut = np.clip(cut, 0, [width, height, width, height])
        kept = np.flatnonzero(_inside(cut, size))
        sure = np.ones(len(cut)) if scores is None else np.asarray(scores, np.float64)
        return cls(cut[kept], tuple(classes[k] for k in kept.tolist()), size, sure[kept])

    def __len__(self) -> int:
        return len(self.boxes)


@dataclass(frozen=True, eq=False)
class Instances:
    """Masks of objects, one an object; they may overlap.

    Args:
        masks: Each shows a pixel at least.
        classes: The class of each.
        scores: How sure each is, higher is surer; 1 by default.
    """

    masks: Bool[np.ndarray, "n h w"]
    classes: tuple[str, ...]
    scores: Float[np.ndarray, " n"] = None  # pyright: ignore[reportAssignmentType]

    def __post_init__(self) -> None:
        if self.masks.ndim != 3 or self.masks.dtype != bool or 0 in self.masks.shape[1:]:
            raise InputError(
                f"masks: expected booleans [n, height, width], got {self.masks.dtype} {self.masks.shape}"
            )
        object.__setattr__(self, "scores", _scores(self.scores, len(self.masks), self.classes))
        if len(empty := np.flatnonzero(~self.masks.any((1, 2)))):
            raise InputError(f"masks: expected a pixel or more in each, got none in mask {empty[0]}")

    @classmethod
    def of_ids(cls, ids: Int[np.ndarray, "h w"], classes: Sequence[str]) -> Instances:
        """Instances of an image of ids: 0 is no object, k is one of class `classes[k - 1]`; hidden ones are
        left out."""
        seen = [k for k in range(1, len(classes) + 1) if (ids == k).any()]
        masks = np.stack([ids == k for k in seen]) if seen else np.zeros((0, *ids.shape), bool)
        return cls(masks, tuple(classes[k - 1] for k in seen))

    def __len__(self) -> int:
        return len(self.masks)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the picture."""
        return self.masks.shape[1], self.masks.shape[2]

    def boxes(self) -> Boxes:
        """The smallest box around each mask."""
        found = np.array([box_of(mask) for mask in self.masks], np.float64).reshape(-1, 4)
        return Boxes(found, self.classes, self.size, self.scores)


@dataclass(frozen=True, eq=False)
class Depth:
    """Distances along the view axis.

    Args:
        metres: Where `valid`, finite and above 0 (relative depth: finite); elsewhere without a meaning.
        valid: Where there is a measurement. Neither valid nor sky: unknown.
        sky: Where the picture is infinitely far; nowhere by default.
        metric: False for relative depth, which is known up to scale and shift.
    """

    metres: Float[np.ndarray, "h w"]
    valid: Bool[np.ndarray, "h w"]
    sky: Bool[np.ndarray, "h w"] = None  # pyright: ignore[reportAssignmentType]
    metric: bool = True

    def __post_init__(self) -> None:
        _check_picture("metres", self.metres, "f")
        if self.sky is None:
            object.__setattr__(self, "sky", np.zeros(self.metres.shape, bool))
        for name in ("valid", "sky"):
            _check_picture(name, getattr(self, name), "b", self.metres.shape)
        if (self.valid & self.sky).any():
            raise InputError("sky: expected no pixel that is valid too, since sky has no distance")
        known = self.metres[self.valid]
        if not np.isfinite(known).all():
            raise InputError("metres: expected finite numbers where valid, got nan or inf")
        if self.metric and known.size and known.min() <= 0:
            raise InputError(f"metres: expected above 0 where valid, got {known.min():g}")

    @classmethod
    def from_metres(cls, metres: ArrayLike) -> Depth:
        """Depth of a map in the usual convention: inf is sky; 0, below 0 and nan are unknown."""
        values = np.asarray(metres)
        values = values if values.dtype.kind == "f" else values.astype(np.float32)
        return cls(values, np.isfinite(values) & (values > 0), np.isposinf(values))


@dataclass(frozen=True, eq=False)
class Labels:
    """Answers to choose from, and the probability of each."""

    answers: tuple[str, ...]
    probabilities: Float[np.ndarray, " n"]

    def __post_init__(self) -> None:
        _check_names("answers", self.answers)
        p = np.asarray(self.probabilities, np.float64)
        object.__setattr__(self, "probabilities", p)
        if p.shape != (len(self.answers),):
            raise InputError(f"probabilities: expected {len(self.answers)} of them, got shape {p.shape}")
        if not (np.isfinite(p).all() and p.min() >= 0 and abs(p.sum() - 1) < 1e-3):
            raise InputError(f"probabilities: expected at least 0 with a sum of 1, got {p.tolist()}")

    @classmethod
    def of(cls, answers: Sequence[str], right: str) -> Labels:
        """Certainty of one answer. Raises InputError if it is none of them."""
        if right not in answers:
            raise InputError(f"answer: expected one of {', '.join(answers)}, got {right!r}")
        return cls(tuple(answers), np.array([float(each == right) for each in answers]))

    @property
    def best(self) -> str:
        """The likeliest answer; of equal ones the first."""
        return self.answers[int(self.probabilities.argmax())]


Annotation = Segmentation | Boxes | Instances | Depth | Labels


def box_of(mask: Bool[np.ndarray, "h w"]) -> tuple[int, int, int, int]:
    """The smallest box around a mask, which is not empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def box_iou(a: Real[np.ndarray, 4], b: Real[np.ndarray, 4]) -> float:
    """Intersection over union of two boxes x0, y0, x1, y1."""
    width, height = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    common = max(width, 0.0) * max(height, 0.0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return float(common / (sum(areas) - common))


def mask_iou(a: Bool[np.ndarray, "h w"], b: Bool[np.ndarray, "h w"]) -> float:
    """Intersection over union of two masks; 1 of two empty ones."""
    union = (a | b).sum()
    return float((a & b).sum() / union) if union else 1.0


def _inside(boxes: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.bool_]:
    x0, y0, x1, y1 = boxes.T
    return (x0 >= 0) & (x0 < x1) & (x1 <= size[1]) & (y0 >= 0) & (y0 < y1) & (y1 <= size[0])


def _check_picture(name: str, values: np.ndarray, kinds: str, shape: tuple[int, ...] | None = None) -> None:
    words = {"iu": "whole numbers", "b": "booleans", "f": "floating-point numbers"}[kinds]
    if values.ndim != 2 or not values.size or values.dtype.kind not in kinds:
        raise InputError(f"{name}: expected {words} [height, width], got {values.dtype} {values.shape}")
    if shape is not None and values.shape != shape:
        raise InputError(f"{name}: expected the shape {shape} of the picture, got {values.shape}")


def _check_names(what: str, names: Sequence[str]) -> None:
    if not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise InputError(f"{what}: expected one name or more, none of them empty, got {list(names)}")
    if twins := sorted({name for name in names if list(names).count(name) > 1}):
        raise InputError(f"{what}: expected each once, got {', '.join(twins)} twice or more")


def _scores(scores: ArrayLike | None, count: int, classes: Sequence[str]) -> NDArray[np.float64]:
    found = np.ones(count) if scores is None else np.asarray(scores, np.float64)
    if len(classes) != count or found.shape != (count,):
        raise InputError(
            f"classes, scores: expected {count} of each, got {len(classes)} and {found.shape}"
        )
    if not np.isfinite(found).all():
        raise InputError("scores: expected finite numbers, got nan or inf")
    return found
