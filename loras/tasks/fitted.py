"""Pictures of any size, and what is known of them, cut and scaled to one size together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import singledispatch
from typing import Any

import numpy as np
from PIL import Image

from dit_heads.loras.tasks.pairs import Pairs
from dit_heads.tasks.annotations import Annotation, Boxes, Depth, Instances, Labels, Segmentation
from dit_heads.tasks.query import Query, Task

Size = tuple[int, int]  # height, width


@dataclass(frozen=True)
class FittedPairs:
    """Pairs of any sizes as pairs of one: of each picture the largest part in its middle that has the shape.

    Args:
        pairs: the pictures with questions and answers.
        size: height and width that all get.
    """

    pairs: Pairs
    size: Size

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What can be asked."""
        return self.pairs.tasks

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def key(self) -> str:
        """Names all pictures and answers by content."""
        return f"{self.pairs.key} at {self.size}"

    def name(self, index: int) -> str:
        """Where a picture comes from."""
        return self.pairs.name(index)

    def picture(self, index: int) -> Image.Image:
        """A picture, cut and scaled."""
        return fitted_picture(self.pairs.picture(index), self.size)

    def question(self, index: int, task: Task, rng: np.random.Generator) -> Query:
        """A question of a task about a picture."""
        return self.pairs.question(index, task, rng)

    def answer(self, index: int, query: Query) -> Annotation:
        """The answer about what is left of the picture."""
        return fitted(self.pairs.answer(index, query), self.size)


@dataclass(frozen=True)
class Cut:
    """The part of a picture of `size` that becomes a picture of size `to`."""

    size: Size
    to: Size

    @property
    def scale(self) -> float:
        """Pixels of the result for one of the picture."""
        return max(new / old for new, old in zip(self.to, self.size, strict=True))

    @property
    def corner(self) -> tuple[float, float]:
        """The top and left edge of the part, in pixels of the picture."""
        top, left = ((old - new / self.scale) / 2 for new, old in zip(self.to, self.size, strict=True))
        return top, left

    def nearest(self, values: np.ndarray) -> np.ndarray:
        """The result of values [..., h, w], each taken from the nearest pixel."""
        rows, columns = (
            np.clip(np.floor((np.arange(new) + 0.5) / self.scale + edge).astype(int), 0, old - 1)
            for new, old, edge in zip(self.to, self.size, self.corner, strict=True)
        )
        return values[..., rows[:, None], columns[None]]


def fitted_picture(image: Image.Image, size: Size) -> Image.Image:
    """The largest part in the middle of a picture that has the shape of `size`, in that size."""
    cut = Cut((image.height, image.width), size)
    (top, left), (height, width) = cut.corner, size
    part = (left, top, left + width / cut.scale, top + height / cut.scale)
    return image.resize((width, height), Image.Resampling.LANCZOS, box=part)


@singledispatch
def fitted(annotation: Any, size: Size) -> Annotation:
    """What is known of a picture, for its fitted picture."""
    raise TypeError(f"annotation: got {type(annotation).__name__}")


@fitted.register
def _(annotation: Labels, size: Size) -> Labels:
    return annotation


@fitted.register
def _(annotation: Segmentation, size: Size) -> Segmentation:
    height, width = annotation.labels.shape
    return replace(annotation, labels=Cut((height, width), size).nearest(annotation.labels))


@fitted.register
def _(annotation: Depth, size: Size) -> Depth:
    height, width = annotation.metres.shape
    cut = Cut((height, width), size)
    kept: Any = {name: cut.nearest(getattr(annotation, name)) for name in ("metres", "valid", "sky")}
    return replace(annotation, **kept)


@fitted.register
def _(annotation: Instances, size: Size) -> Instances:
    """Those that are still to be seen."""
    masks = Cut(annotation.size, size).nearest(annotation.masks)
    there = np.flatnonzero(masks.any((1, 2)))
    classes = tuple(annotation.classes[k] for k in there)
    return Instances(masks[there], classes, annotation.scores[there])


@fitted.register
def _(annotation: Boxes, size: Size) -> Boxes:
    """Those that reach into the part, clipped to it."""
    cut = Cut(annotation.size, size)
    top, left = cut.corner
    moved = (annotation.boxes - [left, top, left, top]) * cut.scale
    return Boxes.clipped(moved, annotation.classes, size, annotation.scores)
