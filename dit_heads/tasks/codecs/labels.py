"""Classification: the whole picture in one colour, to which the instruction binds an answer.

Where there are more answers than colours with a name, an answer has two colours or more, in bands from left
to right.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from dit_heads.errors import InputError
from dit_heads.tasks.annotations import Labels
from dit_heads.tasks.codecs.pixels import Levels, Picture, distance, levels
from dit_heads.tasks.instructions import canonical
from dit_heads.tasks.palette import rgb, smallest_distance
from dit_heads.tasks.query import BETWEEN, Query, colours_of


@dataclass(frozen=True)
class LabelCodec:
    """Answers to a picture and back.

    Args:
        size: Height and width of the pictures it draws.
        blur: Standard deviation of the colours of an answer, as a share of the smallest distance between two
            of the query's colours: the larger, the less sure are colours in between.
    """

    size: tuple[int, int] = (128, 128)
    blur: float = 0.2

    def prompt(self, query: Query) -> str:
        """The plain instruction that binds colours to these answers."""
        return canonical(query)

    def encode(self, annotation: Labels, query: Query, source: Any = None) -> Picture:
        """A picture of the colours of the likeliest answer, as large as the source if there is one."""
        if annotation.best not in query.names:
            raise InputError(f"answer: expected one of {', '.join(query.names)}, got {annotation.best!r}")
        height, width = self.size if source is None else levels(source).shape[:2]
        word = colours_of(query)[query.names.index(annotation.best)].split(BETWEEN)
        band = np.arange(width) * len(word) // width
        row = np.array([rgb(name) for name in word], np.uint8)[band]
        return np.broadcast_to(row, (height, width, 3)).copy()

    def decode(self, image: Any, query: Query, source: Any = None) -> Labels:
        """The probability of each answer: that of a pixel by the distances of its colour from the answers'
        (Gaussian), averaged over each band, multiplied over bands."""
        words = [name.split(BETWEEN) for name in colours_of(query)]
        if len({len(word) for word in words}) > 1:
            raise InputError(f"colours: expected as many in each answer, got {list(colours_of(query))}")
        pixels = levels(image)
        chances = np.ones(len(words))
        for k, band in enumerate(np.array_split(pixels, len(words[0]), axis=1)):
            names = sorted({word[k] for word in words})
            shares = dict(zip(names, self._shares(band, names), strict=True))
            chances *= [shares[word[k]] for word in words]
        chances = np.maximum(chances, 1e-12)
        return Labels(query.names, chances / chances.sum())

    def _shares(self, pixels: Levels, names: list[str]) -> Float[np.ndarray, " n"]:
        colours = np.array([rgb(name) for name in names], float)
        sigma = self.blur * smallest_distance(colours)
        energy = np.stack([distance(pixels, colour) ** 2 for colour in colours]) / (2 * sigma**2)
        likelihood = np.exp(energy.min(0) - energy)
        return (likelihood / likelihood.sum(0)).mean((1, 2))
