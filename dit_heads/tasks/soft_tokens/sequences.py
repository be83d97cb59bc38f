"""The sequences of tokens that a solver writes: depth as a grid; of each object 4 tokens of its box, 1 of its
class and those of its mask (AiT, arXiv 2301.02229, section 3.3).

Objects stand from left to right by the centre of their box. Places that are left over have the class "none";
all of their other tokens are 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dit_heads.errors import InputError
from dit_heads.settings import Field, settings
from dit_heads.tasks.annotations import Instances

Task = Literal["depth", "instances"]
BOX = 4


@settings
class Vocabulary:
    """What the tokens of a solver stand for."""

    classes: tuple[str, ...]
    """Names of the classes of objects."""
    depth_tokens: Annotated[int, Field(ge=1)] = 64
    """Tokens of a depth map."""
    mask_tokens: Annotated[int, Field(ge=1)] = 16
    """Tokens of a mask."""
    depth_codes: Annotated[int, Field(ge=2)] = 128
    """Codes of depth."""
    mask_codes: Annotated[int, Field(ge=2)] = 128
    """Codes of masks."""
    bins: Annotated[int, Field(ge=2)] = 128
    """Steps of a coordinate from 0 to 1."""
    objects: Annotated[int, Field(ge=1, le=1000)] = 3
    """Most objects of a picture."""

    def __post_init__(self) -> None:
        if not self.classes or len(set(self.classes)) < len(self.classes) or not all(self.classes):
            raise InputError(f"classes: expected names, each once, got {list(self.classes)}")

    @property
    def sizes(self) -> dict[str, int]:
        """Number of tokens to choose from, by kind."""
        return {
            "depth": self.depth_codes,
            "box": self.bins,
            "class": len(self.classes) + 1,
            "mask": self.mask_codes,
        }

    @property
    def none(self) -> int:
        """The class of a place without an object."""
        return len(self.classes)

    @property
    def each(self) -> int:
        """Tokens of an object."""
        return BOX + 1 + self.mask_tokens

    def kinds(self, sequence: Task) -> tuple[str, ...]:
        """The kind of each token of a sequence, in order."""
        if sequence == "depth":
            return ("depth",) * self.depth_tokens
        return ((*("box",) * BOX, "class", *("mask",) * self.mask_tokens)) * self.objects

    def number(self, name: str) -> int:
        """The number of a class. Raises InputError for a name that is none of them."""
        if name not in self.classes:
            raise InputError(f"class: expected one of {', '.join(self.classes)}, got {name!r}")
        return self.classes.index(name)


@dataclass(frozen=True)
class Objects:
    """The objects of B pictures, M places each, from left to right.

    Attributes:
        boxes: x0, y0, x1, y1 as shares of the width and height; 0 where there is no object.
        classes: their numbers; `Vocabulary.none` where there is no object.
        there: where there is an object.
        order: the place of each among the objects of its picture as they were given; 0 where there is none.
    """

    boxes: Float[Tensor, "b m 4"]
    classes: Int[Tensor, "b m"]
    there: Bool[Tensor, "b m"]
    order: Int[Tensor, "b m"]


def objects_of(pictures: Sequence[Instances], vocabulary: Vocabulary) -> Objects:
    """The objects of pictures, sorted.

    Args:
        pictures: the instances of each.
        vocabulary: with their classes.

    Raises:
        InputError: for a class that the vocabulary lacks, and for more objects than it has places for.
    """
    count, places = len(pictures), vocabulary.objects
    boxes = np.zeros((count, places, BOX))
    classes = np.full((count, places), vocabulary.none)
    order = np.zeros((count, places), np.int64)
    for row, found in enumerate(pictures):
        if len(found) > places:
            raise InputError(
                f"instances: expected {places} objects at most, got {len(found)} (picture {row})"
            )
        if not len(found):
            continue
        height, width = found.size
        shares = found.boxes().boxes / [width, height, width, height]
        sort = np.argsort(shares[:, 0] + shares[:, 2], kind="stable")
        boxes[row, : len(found)], order[row, : len(found)] = shares[sort], sort
        classes[row, : len(found)] = [vocabulary.number(found.classes[k]) for k in sort]
    numbers = torch.from_numpy(classes)
    return Objects(
        torch.from_numpy(boxes).float(), numbers, numbers != vocabulary.none, torch.from_numpy(order)
    )


def box_tokens(boxes: Float[Tensor, "*n 4"], bins: int) -> Int[Tensor, "*n 4"]:
    """The nearest step of each coordinate, a share from 0 to 1."""
    return (boxes.clamp(0, 1) * (bins - 1)).round().long()


def soft_boxes(probability: Float[Tensor, "*n 4 K"]) -> Float[Tensor, "*n 4"]:
    """The median of each coordinate under the probabilities of its steps, as a share from 0 to 1.

    Steps of a box have an order, which codes do not have: their median is finer than a step, and, unlike
    their mean, stays with the likelier one of two borders. A coordinate is taken to lie anywhere within half
    a step of its own, so that a single certain step is exactly itself.
    """
    below = probability.cumsum(-1)
    step = (below < 0.5).sum(-1, keepdim=True).clamp(max=probability.shape[-1] - 1)
    own = probability.gather(-1, step)
    before = below.gather(-1, step) - own
    place = step + (0.5 - before) / own - 0.5
    return (place[..., 0] / (probability.shape[-1] - 1)).clamp(0, 1)


def object_tokens(
    objects: Objects, masks: Int[Tensor, "b m n"], vocabulary: Vocabulary
) -> Int[Tensor, "b s"]:
    """The sequence of tokens of objects.

    Args:
        objects: B pictures with M places.
        masks: the tokens of their masks; those of empty places do not matter.
        vocabulary: what the tokens stand for.
    """
    box = box_tokens(objects.boxes, vocabulary.bins)
    kept = torch.where(objects.there[..., None], masks, 0)
    return torch.cat([box, objects.classes[..., None], kept], -1).flatten(1)


@dataclass(frozen=True)
class Split:
    """The tokens, or logits, of objects, by kind.

    Attributes:
        box: of their boxes.
        name: of their classes.
        mask: of their masks.
    """

    box: Tensor
    name: Tensor
    mask: Tensor


def split_objects(tokens: Int[Tensor, "b s"], vocabulary: Vocabulary) -> Split:
    """A sequence of tokens of objects, by kind: [B, M, 4], [B, M] and [B, M, N]."""
    each = tokens.unflatten(1, (vocabulary.objects, vocabulary.each))
    return Split(each[..., :BOX], each[..., BOX], each[..., BOX + 1 :])
