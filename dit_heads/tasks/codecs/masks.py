"""Which pixels show a class: white on black for one class, bound colours on black for several."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from dit_heads.errors import InputError
from dit_heads.tasks.annotations import Segmentation
from dit_heads.tasks.codecs.pixels import Picture, distance, levels, nearest_colour, without_specks
from dit_heads.tasks.instructions import canonical
from dit_heads.tasks.palette import rgb
from dit_heads.tasks.query import Query, colours_of

BLACK, WHITE = (0, 0, 0), (255, 255, 255)


@dataclass(frozen=True)
class MaskCodec:
    """Masks of classes to a picture and back.

    Args:
        reach: Pixels within which a blended edge pixel takes a neighbour's colour.
        smallest: Regions of fewer pixels are taken for noise when a picture is read.
    """

    reach: int = 2
    smallest: int = 1

    def prompt(self, query: Query) -> str:
        """The plain instruction for these classes."""
        return canonical(query)

    def encode(self, annotation: Segmentation, query: Query, source: Any = None) -> Picture:
        """Each class of the query in its colour on black; its other classes are background."""
        colours = mask_colours(query)
        picture = np.zeros((*annotation.labels.shape, 3), np.uint8)
        for name, colour in zip(query.names, colours[1:], strict=True):
            picture[annotation.mask(name)] = colour
        return picture

    def decode(self, image: Any, query: Query, source: Any = None) -> Segmentation:
        """The class whose colour each pixel has, or none."""
        labels, _ = nearest_colour(levels(image), mask_colours(query), self.reach)
        kept = np.zeros_like(labels)
        for k in range(1, len(query.names) + 1):
            kept[without_specks(labels == k, self.smallest)] = k
        return Segmentation(kept, query.names)

    def probability(self, image: Any, query: Query) -> Float[np.ndarray, "h w"]:
        """How sure each pixel shows one of the classes: its place between black and their nearest colour."""
        pixels, (black, *colours) = levels(image), mask_colours(query)
        away = np.min([distance(pixels, colour) for colour in colours], 0)
        dark = distance(pixels, black)
        return dark / np.maximum(dark + away, 1e-6)


def mask_colours(query: Query) -> Float[np.ndarray, "n 3"]:
    """The colours of background and of each class in levels. Raises InputError for two that are too alike."""
    names = colours_of(query)
    if names == ("white",):
        return np.array([BLACK, WHITE], float)
    if "black" in names:
        raise InputError("colours: expected none of them black, which is the background")
    return np.array([BLACK, *(rgb(name) for name in names)], float)
