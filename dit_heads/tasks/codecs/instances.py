"""Each object in a colour of its own on black; back to masks by clustering of colours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from dit_heads.tasks.annotations import Instances
from dit_heads.tasks.codecs.pixels import Levels, Picture, dilated, levels, nearest_colour, without_specks
from dit_heads.tasks.instructions import canonical
from dit_heads.tasks.palette import instance_colours
from dit_heads.tasks.query import ANYTHING, Query

_BINS = 16  # of the histogram, a channel
_WIDTH = 256 // _BINS
_DRAWN, _EXACT = np.array([*instance_colours(63), *instance_colours(215)], float), 4


@dataclass(frozen=True)
class InstanceCodec:
    """Masks of objects to a picture and back.

    Args:
        reach: Pixels within which a blended edge pixel takes a neighbour's colour.
        smallest: Objects, and regions, of fewer pixels are taken for noise when a picture is read.
        radius: Levels within which pixels belong to one colour; two objects' colours are farther apart.
        gradient: Levels by which a pixel may miss the line between its neighbours' colours and still be a
            blend of them.
    """

    reach: int = 3
    smallest: int = 8
    radius: float = 60.0
    gradient: float = 24.0

    def prompt(self, query: Query) -> str:
        """The plain instruction for this class."""
        return canonical(query)

    def encode(self, annotation: Instances, query: Query, source: Any = None) -> Picture:
        """Objects of the query's class, colours from left to right; a smaller one covers a larger one."""
        wanted = [k for k, name in enumerate(annotation.classes) if query.names[0] in (name, ANYTHING)]
        masks = annotation.masks[wanted]
        picture = np.zeros((*annotation.size, 3), np.uint8)
        columns = np.arange(masks.shape[2])
        order = np.argsort([(m.sum(0) * columns).sum() / m.sum() for m in masks], kind="stable")
        colours = dict(zip(order, instance_colours(len(masks)), strict=True))
        for k in np.argsort([-m.sum() for m in masks], kind="stable"):
            picture[masks[k]] = colours[k]
        return picture

    def decode(self, image: Any, query: Query, source: Any = None) -> Instances:
        """One object a colour. Its score is 1 where all its pixels have exactly that colour, and falls with
        their mean distance from it."""
        pixels = levels(image)
        colours = self._colours(pixels)
        index, away = nearest_colour(pixels, np.array([(0, 0, 0), *colours], float), self.reach)
        masks, scores = [], []
        for k in range(1, len(colours) + 1):
            mask = without_specks(index == k, self.smallest)
            if mask.any():
                masks.append(mask)
                scores.append(float(np.clip(1 - away[mask] / (2 * self.radius), 0, 1).mean()))
        stacked = np.array(masks, bool).reshape(-1, *pixels.shape[:2])
        return Instances(stacked, (query.names[0],) * len(masks), np.array(scores))

    def _colours(self, pixels: Levels) -> list[Float[np.ndarray, " 3"]]:
        """The colours of objects: peaks of the histogram of those pixels that no edge has blended."""
        found: list[np.ndarray] = []
        dark = np.linalg.norm(pixels, axis=-1) <= self.radius
        left = ~dark & ~blended(pixels, self.gradient)
        while left.sum() >= self.smallest:
            centre = self._peak(pixels[left])
            own = left & (np.linalg.norm(pixels - centre, axis=-1) <= self.radius)
            apart = all(np.linalg.norm(centre - other) > self.radius for other in found)
            if own.sum() >= self.smallest and apart and (_thick(own) or _drawn(centre)):
                found.append(centre)
            left &= ~own
        return found

    def _peak(self, pixels: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, " 3"]:
        """The mean colour around the fullest bin, moved twice to the mean of its surroundings."""
        bins = (pixels // _WIDTH).astype(int)
        counts = np.bincount(np.ravel_multi_index(tuple(bins.T), (_BINS,) * 3), minlength=_BINS**3)
        centre = (np.array(np.unravel_index(counts.argmax(), (_BINS,) * 3)) + 0.5) * _WIDTH
        for _ in range(3):
            near = np.linalg.norm(pixels - centre, axis=-1) <= self.radius / 2
            centre = pixels[near].mean(0) if near.any() else centre
        return centre


def _thick(mask: Bool[np.ndarray, "h w"]) -> bool:
    """Whether a mask has a square of 3 x 3 pixels; the rim of a smoothed object has none."""
    return not dilated(~np.pad(mask, 1), 1).all()


def _drawn(colour: Float[np.ndarray, " 3"]) -> bool:
    """Whether this is one of the colours of `encode`, but for rounding."""
    return bool(np.abs(_DRAWN - colour).max(-1).min() < _EXACT)


def blended(pixels: Levels, tolerance: float) -> Bool[np.ndarray, "h w"]:
    """Pixels whose colour lies between those of two opposite neighbours, one or two pixels away, and is
    neither: where an edge was smoothed."""
    out = np.zeros(pixels.shape[:2], bool)
    padded = np.pad(pixels, ((2, 2), (2, 2), (0, 0)), mode="edge")
    height, width = pixels.shape[0], pixels.shape[1]
    for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1), (0, 2), (2, 0), (2, 2), (2, -2)):
        a = padded[2 - dy : 2 - dy + height, 2 - dx : 2 - dx + width]
        b = padded[2 + dy : 2 + dy + height, 2 + dx : 2 + dx + width]
        out |= _between(pixels, a, b, tolerance)
    return out


def _between(p: Levels, a: Levels, b: Levels, tolerance: float) -> Bool[np.ndarray, "h w"]:
    line, away = b - a, p - a
    length = np.maximum((line * line).sum(-1), 1e-6)
    part = (away * line).sum(-1) / length
    miss = np.linalg.norm(away - part[..., None] * line, axis=-1)
    reach = np.sqrt(length)
    inside = (part * reach > tolerance) & ((1 - part) * reach > tolerance)
    return inside & (miss <= tolerance)
