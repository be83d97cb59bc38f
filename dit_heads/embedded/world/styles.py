"""Styles of the blocks world: filters of pictures [S, S, 3] in [0, 1] that keep colours recognisable."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.floating]
_LUMINANCE = np.array([0.30, 0.59, 0.11], np.float32)


def photo(image: Picture, ids: NDArray[np.uint8]) -> Picture:
    """The unchanged render."""
    return image


def line_drawing(image: Picture, ids: NDArray[np.uint8]) -> Picture:
    """Dark outlines on paper, with a thin wash of the colours."""
    down, across = np.gradient(image @ _LUMINANCE)
    ids_down, ids_across = np.gradient(ids.astype(np.float32))
    line = np.hypot(down, across) * 6 + 0.5 * (np.hypot(ids_down, ids_across) > 0)
    line = np.clip(line, 0, 0.9)[..., None]
    return (0.45 + 0.55 * image) * (1 - line)


def pixel_art(image: Picture, ids: NDArray[np.uint8], block: int = 4) -> Picture:
    """Square blocks, with eight tones per channel."""
    n = len(image) // block
    coarse = image.reshape(n, block, n, block, 3).mean((1, 3))
    return np.repeat(np.repeat(np.round(coarse * 7) / 7, block, 0), block, 1)


def poster(image: Picture, ids: NDArray[np.uint8]) -> Picture:
    """Strong colours, with five flat tones per channel."""
    grey = (image @ _LUMINANCE)[..., None]
    return np.round(np.clip(grey + (image - grey) * 1.4, 0, 1) * 4) / 4


def vintage(image: Picture, ids: NDArray[np.uint8]) -> Picture:
    """A faded warm print, darker towards the corners."""
    grey = (image @ _LUMINANCE)[..., None]
    sepia, lift = np.array([1.08, 0.92, 0.68], np.float32), np.array([0.15, 0.11, 0.07], np.float32)
    faded = (0.72 * image + 0.28 * grey * sepia) * 0.82 + lift
    axis = np.linspace(-1, 1, len(image), dtype=np.float32)
    vignette = 1 - 0.38 * np.clip(axis[:, None] ** 2 + axis[None, :] ** 2 - 0.35, 0, 1)
    return faded * vignette[..., None]


STYLE_FILTERS: dict[str, Callable[[Picture, NDArray[np.uint8]], Picture]] = {
    "photo": photo,
    "line drawing": line_drawing,
    "pixel art": pixel_art,
    "poster": poster,
    "vintage": vintage,
}
