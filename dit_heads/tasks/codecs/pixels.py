"""Pixels of a picture, whatever it came as, and the regions and colours that they form."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image

from dit_heads.errors import InputError
from dit_heads.io.pictures import to_rgb
from dit_heads.tasks.palette import smallest_distance

Picture = UInt8[np.ndarray, "h w 3"]
Levels = Float[np.ndarray, "h w 3"]
_SLACK = 0.05  # by which a model's floating-point pixels may leave [0, 1]


def levels(image: Any) -> Levels:
    """The colours of a picture in levels from 0 to 255.

    Args:
        image: A PIL image, an array of uint8, or one of floating-point numbers in [0, 1]: [h, w, 3], or
            [h, w] for grey.

    Raises:
        InputError: for another shape or range, since a guess would be silently wrong.
    """
    if isinstance(image, Image.Image):
        image = np.asarray(to_rgb(image))
    image = np.asarray(image)
    if image.ndim == 2:
        image = image[..., None].repeat(3, -1)
    if image.ndim != 3 or image.shape[-1] != 3 or not image.size:
        raise InputError(f"image: expected a picture [height, width, 3], got the shape {image.shape}")
    if image.dtype == np.uint8:
        return image.astype(np.float32)
    if image.dtype.kind != "f":
        raise InputError(f"image: expected uint8 or floating-point numbers, got {image.dtype}")
    low, high = float(image.min()), float(image.max())
    if not (low >= -_SLACK and high <= 1 + _SLACK):
        raise InputError(f"image: expected floating-point numbers from 0 to 1, got {low:g} to {high:g}")
    return np.clip(image, 0, 1).astype(np.float32) * 255


def flat(size: tuple[int, int], colour: tuple[int, int, int] = (0, 0, 0)) -> Picture:
    """A picture of one colour."""
    return np.full((*size, 3), colour, np.uint8)


def distance(pixels: Levels, colour: Any) -> Float[np.ndarray, "h w"]:
    """How far each pixel is from a colour, in levels."""
    apart = pixels - np.asarray(colour, np.float32)
    return np.sqrt(np.einsum("hwc,hwc->hw", apart, apart))


def dilated(mask: Bool[np.ndarray, "h w"], reach: int) -> Bool[np.ndarray, "h w"]:
    """A mask grown by `reach` pixels to each side, corners included."""
    out = mask.copy()
    for k in range(1, reach + 1):
        out[k:] |= mask[:-k]
        out[:-k] |= mask[k:]
    rows = out.copy()
    for k in range(1, reach + 1):
        out[:, k:] |= rows[:, :-k]
        out[:, :-k] |= rows[:, k:]
    return out


def nearest_colour(
    pixels: Levels, colours: Float[np.ndarray, "n 3"], reach: int = 2
) -> tuple[Int[np.ndarray, "h w"], Float[np.ndarray, "h w"]]:
    """Which colour each pixel has, and its distance from it in levels.

    Blended edges would show third colours: red beside blue makes purple. So a pixel that is not clearly one
    colour (within a quarter of the smallest distance between two) is taken for a blend of two of those that
    are clearly there within `reach` pixels, and has the one that is the larger part of it.
    """
    index, away = _nearest(pixels, colours)
    clear = away <= smallest_distance(colours) / 4
    there = [dilated(clear & (index == k), reach) & ~clear for k in range(len(colours))]
    rows = np.nonzero(~clear & np.any(there, 0))
    if len(rows[0]):
        near = np.stack([each[rows] for each in there])
        index[rows] = _larger_part(pixels[rows], colours.astype(np.float32), near)
        away[rows] = np.linalg.norm(pixels[rows] - colours[index[rows]], axis=-1)
    return index, away


def _nearest(pixels: Levels, colours: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    index = np.zeros(pixels.shape[:2], np.int64)
    best = np.full(pixels.shape[:2], np.inf, np.float32)
    for k, colour in enumerate(colours):
        away = distance(pixels, colour)
        nearer = away < best
        index[nearer], best[nearer] = k, away[nearer]
    return index, best


def _larger_part(
    pixels: Float[np.ndarray, "m 3"], colours: Float[np.ndarray, "n 3"], there: Bool[np.ndarray, "n m"]
) -> Int[np.ndarray, " m"]:
    """The larger part of the blend of two colours that comes nearest to each pixel, both of them there."""
    best, index = np.full(len(pixels), np.inf, np.float32), there.argmax(0)
    seen = [k for k in range(len(colours)) if there[k].any()]
    for i, j in itertools.combinations(seen, 2):
        at = np.flatnonzero(there[i] & there[j])
        line, offset = colours[j] - colours[i], pixels[at] - colours[i]
        part = np.clip(offset @ line / max(float(line @ line), 1e-6), 0, 1)
        miss = np.linalg.norm(offset - part[:, None] * line, axis=-1)
        better = miss < best[at]
        best[at[better]], index[at[better]] = miss[better], np.where(part > 0.5, j, i)[better]
    return index


def components(mask: Bool[np.ndarray, "h w"]) -> tuple[Int[np.ndarray, "h w"], int]:
    """Regions of a mask whose pixels touch by a side: 0 outside, 1 to n in reading order; and n."""
    number = np.arange(mask.size).reshape(mask.shape)
    across, down = mask[:, 1:] & mask[:, :-1], mask[1:] & mask[:-1]
    a = np.concatenate([number[:, 1:][across], number[1:][down]])
    b = np.concatenate([number[:, :-1][across], number[:-1][down]])
    root = _roots(mask.size, a, b).reshape(mask.shape)
    names, numbers = np.unique(root[mask], return_inverse=True)
    labels = np.zeros(mask.shape, np.int64)
    labels[mask] = numbers.reshape(-1) + 1
    return labels, len(names)


def _roots(count: int, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The smallest node that each node is joined to by the edges a-b: all trees hook onto smaller ones at
    once, then are flattened."""
    root = np.arange(count)
    while len(a):
        low, high = np.minimum(root[a], root[b]), np.maximum(root[a], root[b])
        open_ = low < high
        a, b = a[open_], b[open_]
        np.minimum.at(root, high[open_], low[open_])
        while not np.array_equal(jumped := root[root], root):
            root = jumped
    return root


def without_specks(mask: Bool[np.ndarray, "h w"], smallest: int) -> Bool[np.ndarray, "h w"]:
    """A mask without regions of fewer than `smallest` pixels."""
    if smallest <= 1 or not mask.any():
        return mask
    labels, _ = components(mask)
    large = np.bincount(labels.reshape(-1)) >= smallest
    large[0] = False
    return large[labels]
