"""Panels of a composite: where each lies in pixels, latents and tokens (In-Context LoRA, arXiv 2410.23775,
joins images, not tokens).

A composite is a grid read row by row. Every cell measures a multiple of 16 pixels, so that no latent (the
autoencoder shrinks 8 times) and no token (2 x 2 latents) belongs to two panels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dit_heads.errors import InputError, whole_number

Unit = Literal["pixels", "latents", "tokens"]
PIXELS: dict[Unit, int] = {"pixels": 1, "latents": 8, "tokens": 16}  # a side, of one of each


@dataclass(frozen=True)
class Box:
    """A rectangle of a composite, in pixels, latents or tokens."""

    top: int
    left: int
    height: int
    width: int

    @property
    def rows(self) -> slice:
        """From top to bottom."""
        return slice(self.top, self.top + self.height)

    @property
    def columns(self) -> slice:
        """From left to right."""
        return slice(self.left, self.left + self.width)


@dataclass(frozen=True)
class Grid:
    """A grid of panels.

    Attributes:
        heights: height of each row, in pixels.
        widths: width of each column, in pixels.

    Raises:
        InputError: unless all are positive multiples of 16.
    """

    heights: tuple[int, ...]
    widths: tuple[int, ...]

    def __post_init__(self) -> None:
        for name, sides in (("heights", self.heights), ("widths", self.widths)):
            if not sides:
                raise InputError(f"{name}: expected at least one number of pixels, got none")
            for side in sides:
                check_side(name, side)

    @classmethod
    def row(cls, count: int, *, height: int, width: int) -> Grid:
        """Panels side by side.

        Args:
            count: number of panels.
            height, width: of each one, in pixels.
        """
        return cls.equal(1, count, height=height, width=width)

    @classmethod
    def column(cls, count: int, *, height: int, width: int) -> Grid:
        """Panels from top to bottom.

        Args:
            count: number of panels.
            height, width: of each one, in pixels.
        """
        return cls.equal(count, 1, height=height, width=width)

    @classmethod
    def equal(cls, rows: int, columns: int, *, height: int, width: int) -> Grid:
        """Panels of one size.

        Args:
            rows, columns: number of panels from top to bottom and from left to right.
            height, width: of each one, in pixels.
        """
        check_grid(rows, columns)
        return cls((height,) * rows, (width,) * columns)

    def __len__(self) -> int:
        """The number of panels."""
        return len(self.heights) * len(self.widths)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return len(self.heights), len(self.widths)

    @property
    def height(self) -> int:
        """Of the composite, in pixels."""
        return sum(self.heights)

    @property
    def width(self) -> int:
        """Of the composite, in pixels."""
        return sum(self.widths)

    def boxes(self, unit: Unit = "pixels") -> tuple[Box, ...]:
        """Every panel's rectangle, row by row.

        Args:
            unit: "pixels", "latents" or "tokens" (rows and columns of the token grid).

        Raises:
            InputError: for any other unit.
        """
        if unit not in PIXELS:
            raise InputError(f"unit: expected {', '.join(PIXELS)}, got {unit!r}")
        heights = [height // PIXELS[unit] for height in self.heights]
        widths = [width // PIXELS[unit] for width in self.widths]
        tops, lefts = accumulate(heights, initial=0), list(accumulate(widths, initial=0))
        return tuple(
            Box(top, left, height, width)
            for top, height in zip(tops, heights, strict=False)
            for left, width in zip(lefts, widths, strict=False)
        )

    def token_indices(self, panel: int) -> Int[Tensor, " n"]:
        """The places of a panel's tokens among the image tokens, in rising order.

        Image tokens run row by row over the whole composite; text tokens are not counted.

        Args:
            panel: number of the panel, row by row.

        Raises:
            InputError: for a panel that the grid does not have.
        """
        if not 0 <= panel < len(self):
            raise InputError(f"panel: expected 0 to {len(self) - 1}, got {panel}")
        places = torch.arange(self.height * self.width // PIXELS["tokens"] ** 2)
        box = self.boxes("tokens")[panel]
        return places.view(-1, self.width // PIXELS["tokens"])[box.rows, box.columns].flatten()


def check_side(name: str, side: object) -> None:
    """Refuse a side of a panel that is not a positive multiple of 16 pixels.

    Args:
        name: of the argument, for the message.
        side: in pixels.

    Raises:
        InputError: naming the nearest sides that there are.
    """
    step = PIXELS["tokens"]
    if not isinstance(side, int) or side < step or side % step:
        near = ""
        if isinstance(side, int) and side > step:
            near = f"; nearest are {side // step * step} and {(side // step + 1) * step}"
        raise InputError(
            f"{name}: expected multiples of {step} pixels (the autoencoder's factor of 8, times patches of "
            f"2 x 2), got {side!r}{near}"
        )


def check_grid(rows: object, columns: object) -> None:
    """Refuse numbers of rows and columns below 1. Raises `InputError`."""
    whole_number("rows", rows, 1)
    whole_number("columns", columns, 1)


def loss_weight(grid: Grid, weights: Sequence[float]) -> Float[Tensor, "1 h w"]:
    """The weight of each latent in the loss.

    `flow_matching_loss(..., weight=loss_weight(...)[None])` is then the weighted mean of the latents' errors:
    equal weights change nothing, and with weights 1 and 0 it is the mean error inside the first panel.

    Args:
        grid: the panels.
        weights: a number for each panel, row by row; finite, at least 0, and not all of them 0.

    Returns:
        `weights[p]` inside panel p, scaled to a mean of 1.

    Raises:
        InputError: for other weights.
    """
    if len(weights) != len(grid):
        raise InputError(f"weights: expected {len(grid)}, one a panel, got {len(weights)}")
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not any(weights):
        raise InputError(f"weights: expected numbers from 0 up, not all of them 0, got {list(weights)}")
    height, width = (side // PIXELS["latents"] for side in (grid.height, grid.width))
    latents = torch.empty(1, height, width, dtype=torch.float64)
    for box, weight in zip(grid.boxes("latents"), weights, strict=True):
        latents[:, box.rows, box.columns] = weight
    return (latents / latents.mean()).float()
