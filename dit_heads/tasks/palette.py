"""Colours with names, and which of them to take so that they stay apart."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Real

from dit_heads.errors import InputError

COLOURS = {
    "red": (220, 30, 30), "orange": (250, 140, 20), "yellow": (250, 230, 40), "green": (30, 150, 50),
    "blue": (40, 70, 220), "purple": (140, 50, 180), "white": (245, 245, 245), "black": (15, 15, 15),
    "pink": (250, 160, 190), "brown": (120, 70, 30), "gray": (128, 128, 128), "cyan": (40, 220, 230),
    "magenta": (230, 40, 200), "lime": (160, 240, 40), "navy": (20, 25, 100), "teal": (20, 125, 125),
}  # fmt: skip
"""The colours that instructions may name, in levels of 255."""
FRAMES = {"blue": (0, 0, 255), "magenta": (255, 0, 255), "lime": (0, 255, 0), "cyan": (0, 255, 255),
          "red": (255, 0, 0), "yellow": (255, 255, 0)}  # fmt: skip
"""The pure colours of frames drawn on a picture: photos hardly have them."""


def rgb(name: str) -> tuple[int, int, int]:
    """The levels of a colour. Raises InputError if it has no name here."""
    if name not in COLOURS:
        raise InputError(f"colour: expected one of {', '.join(COLOURS)}, got {name!r}")
    return COLOURS[name]


def farthest_first(points: Float[np.ndarray, "n d"], chosen: Sequence[int]) -> list[int]:
    """An order of all points that begins with `chosen`; each next one is the farthest from those before it,
    so that every beginning of the list is well apart (Gonzalez, 1985)."""
    order = list(chosen)
    nearest = np.min([np.linalg.norm(points - points[k], axis=1) for k in order], 0)
    while len(order) < len(points):
        order.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, np.linalg.norm(points - points[order[-1]], axis=1))
    return order


@functools.cache
def distinct(first: tuple[str, ...]) -> tuple[str, ...]:
    """Names of all colours, each as far as can be from those before it, beginning with `first`."""
    names = list(COLOURS)
    order = farthest_first(np.array(list(COLOURS.values()), float), [names.index(name) for name in first])
    return tuple(names[k] for k in order)


@functools.cache
def instance_colours(count: int) -> tuple[tuple[int, int, int], ...]:
    """Colours without names for as many objects on black, far apart from it and each other: the other corners
    of the cube of colours, then what is farthest from all before.

    Raises:
        InputError: for more than 215 objects.
    """
    side = next((n for n in (4, 6) if n**3 > count), None)
    if side is None:
        raise InputError(f"instances: expected at most 215, got {count}")
    grid = np.array(list(itertools.product(np.linspace(0, 255, side), repeat=3)))
    corners = [k for k, point in enumerate(grid) if set(point) <= {0, 255}]
    order = farthest_first(grid, corners)[1 : count + 1]
    return tuple((int(r), int(g), int(b)) for r, g, b in grid[order])


def smallest_distance(colours: Real[np.ndarray, "n 3"]) -> float:
    """The distance of the two nearest colours; that of black and white if there is one alone."""
    pairs = [float(np.linalg.norm(a - b)) for a, b in itertools.combinations(colours, 2)]
    return min(pairs, default=255 * 3**0.5)
