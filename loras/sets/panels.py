"""Panels of a composite: where each lies in pixels, latents and tokens; joining pictures and splitting back
(In-Context LoRA, arXiv 2410.23775, joins images, not tokens).

A composite is a grid read row by row. Every cell measures a multiple of 16 pixels, so that no latent (the
autoencoder shrinks 8 times) and no token (2 x 2 latents) belongs to two panels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, TypeVar, get_args, overload

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor
from torch.nn import functional

from dit_heads.errors import InputError, whole_number
from dit_heads.io.pictures import WHITE, to_rgb

Unit = Literal["pixels", "latents", "tokens"]
PanelFit = Literal["crop", "pad"]
Picture = TypeVar("Picture", Image.Image, Tensor)

MOST_ENLARGED, LEAST_SHOWN = 1.5, 0.5  # before a warning is due
PIXELS: dict[Unit, int] = {"pixels": 1, "latents": 8, "tokens": 16}  # a side, of one of each


@dataclass(frozen=True)
class Box:
    """A rectangle of a composite, in the unit that it was asked for."""

    top: int
    left: int
    height: int
    width: int

    @property
    def rows(self) -> slice:
        return slice(self.top, self.top + self.height)

    @property
    def columns(self) -> slice:
        return slice(self.left, self.left + self.width)


@dataclass(frozen=True)
class Grid:
    """A grid whose row r is `heights[r]` pixels high and whose column c is `widths[c]` pixels wide.

    Raises ValueError unless all are positive multiples of 16."""

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
        """`count` panels side by side; `height` and `width` are one panel's, in pixels."""
        return cls.equal(1, count, height=height, width=width)

    @classmethod
    def column(cls, count: int, *, height: int, width: int) -> Grid:
        """`count` panels from top to bottom; `height` and `width` are one panel's, in pixels."""
        return cls.equal(count, 1, height=height, width=width)

    @classmethod
    def equal(cls, rows: int, columns: int, *, height: int, width: int) -> Grid:
        """Equal panels; `height` and `width` are one panel's, in pixels."""
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
        """Every panel's rectangle, row by row. Token boxes hold rows and columns of the token grid."""
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
        """The places, in rising order, of panel `panel` among the image tokens, which run row by row over
        the whole composite; text tokens are not counted."""
        if not 0 <= panel < len(self):
            raise InputError(f"panel: expected 0 to {len(self) - 1}, got {panel}")
        places = torch.arange(self.height * self.width // PIXELS["tokens"] ** 2)
        box = self.boxes("tokens")[panel]
        return places.view(-1, self.width // PIXELS["tokens"])[box.rows, box.columns].flatten()


def check_side(name: str, side: object) -> None:
    """Raise ValueError unless `side`, in pixels, is a positive multiple of 16."""
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
    """Raise `InputError` unless both are whole numbers of at least 1."""
    whole_number("rows", rows, 1)
    whole_number("columns", columns, 1)


# --- pictures ---


@overload
def join(panels: Sequence[Image.Image], grid: Grid, *, fit: PanelFit = "crop") -> Image.Image: ...
@overload
def join(panels: Sequence[Tensor], grid: Grid, *, fit: PanelFit = "crop") -> Tensor: ...
def join(
    panels: Sequence[Image.Image] | Sequence[Tensor], grid: Grid, *, fit: PanelFit = "crop"
) -> Image.Image | Tensor:
    """One composite of PIL images (as RGB) or of tensors [..., C, h, w], each fitted to its cell.

    Raises ValueError for a wrong number of panels or a mix of images and tensors."""
    if len(panels) != len(grid):
        raise InputError(f"panels: expected {len(grid)} for this grid, got {len(panels)}")
    cells = [(panel, box.height, box.width) for panel, box in zip(panels, grid.boxes(), strict=True)]
    tensors = [fit_panel(p, height, width, fit) for p, height, width in cells if isinstance(p, Tensor)]
    images = [fit_panel(p, height, width, fit) for p, height, width in cells if isinstance(p, Image.Image)]
    if max(len(tensors), len(images)) < len(grid):
        raise InputError("panels: expected PIL images or tensors, got a mix, or something else")
    return _join_tensors(tensors, len(grid.widths)) if tensors else _join_images(images, grid)


def _join_tensors(panels: Sequence[Tensor], columns: int) -> Tensor:
    rows = [torch.cat(list(panels[at : at + columns]), dim=-1) for at in range(0, len(panels), columns)]
    return torch.cat(rows, dim=-2)


def _join_images(panels: Sequence[Image.Image], grid: Grid) -> Image.Image:
    composite = Image.new("RGB", (grid.width, grid.height))
    for panel, box in zip(panels, grid.boxes(), strict=True):
        composite.paste(panel, (box.left, box.top))
    return composite


def split(composite: Picture, grid: Grid) -> list[Picture]:
    """The panels of an image or of a tensor [..., C, H, W], row by row; undoes `join`.

    Raises ValueError if the composite is not of the grid's size."""
    if isinstance(composite, Tensor):
        height, width = composite.shape[-2:]
    else:
        width, height = composite.size
    if (height, width) != (grid.height, grid.width):
        raise InputError(
            f"composite: expected height {grid.height} and width {grid.width}, got {height} and {width}"
        )
    if isinstance(composite, Tensor):
        return [composite[..., box.rows, box.columns] for box in grid.boxes()]
    return [_crop(composite, box) for box in grid.boxes()]


def cut(image: Image.Image, rows: int, columns: int) -> list[Image.Image]:
    """The equal panels of a ready composite of any size; see `cuts`."""
    return [_crop(image, box) for box in cuts(image.height, image.width, rows, columns)]


def cuts(height: int, width: int, rows: int, columns: int) -> list[Box]:
    """Where the equal panels of a ready composite lie, in pixels; where its size does not divide, a cut is
    rounded to the nearest pixel."""
    check_grid(rows, columns)
    tops = [round(row * height / rows) for row in range(rows + 1)]
    lefts = [round(column * width / columns) for column in range(columns + 1)]
    return [
        Box(tops[r], lefts[c], tops[r + 1] - tops[r], lefts[c + 1] - lefts[c])
        for r in range(rows)
        for c in range(columns)
    ]


def _crop(image: Image.Image, box: Box) -> Image.Image:
    return image.crop((box.left, box.top, box.columns.stop, box.rows.stop))


def fit_panel(panel: Picture, height: int, width: int, fit: PanelFit = "crop") -> Picture:
    """A picture scaled to a cell, its aspect ratio kept: "crop" fills the cell and loses what sticks out on
    both sides, "pad" shows the whole picture between white bars.

    White is 255 of an image or an integer tensor and 1 of a floating one. A PIL image comes out as RGB; one
    that has the cell's size is not touched otherwise."""
    if fit not in get_args(PanelFit):
        raise InputError(f"fit: expected crop or pad, got {fit!r}")
    if isinstance(panel, Tensor):
        return _fit_tensor(panel, height, width, fit)
    panel = to_rgb(panel)  # before its size is taken: it may turn
    size = _scaled(panel.height, panel.width, height, width, fit)
    canvas = Image.new("RGB", (width, height), WHITE)
    scaled = panel.resize((size[1], size[0]), Image.Resampling.LANCZOS)
    canvas.paste(scaled, ((width - size[1]) // 2, (height - size[0]) // 2))
    return canvas


def _fit_tensor(panel: Tensor, height: int, width: int, fit: PanelFit) -> Tensor:
    if panel.ndim < 3:
        raise InputError(f"panels: expected tensors [..., C, h, w], got the shape {tuple(panel.shape)}")
    h, w = _scaled(panel.shape[-2], panel.shape[-1], height, width, fit)
    if (h, w) != panel.shape[-2:]:
        panel = _resize(panel, h, w)
    top, left = (height - h) // 2, (width - w) // 2
    white = 1 if panel.is_floating_point() else 255
    # A negative number cuts off instead of adding.
    return functional.pad(panel, (left, width - w - left, top, height - h - top), value=white)


def _resize(panel: Tensor, height: int, width: int) -> Tensor:
    flat = panel.float().flatten(0, -4) if panel.ndim > 3 else panel.float()[None]  # [N, C, h, w]
    scaled = functional.interpolate(flat, (height, width), mode="bilinear", antialias=True)
    scaled = scaled if panel.is_floating_point() else scaled.round()
    return scaled.to(panel.dtype).view(*panel.shape[:-2], height, width)


def _scaled(height: int, width: int, cell_height: int, cell_width: int, fit: PanelFit) -> tuple[int, int]:
    """Height and width of a picture that just covers a cell ("crop") or just fits into it ("pad")."""
    scale = (max if fit == "crop" else min)(cell_height / height, cell_width / width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def scaling_loss(height: int, width: int, cell_height: int, cell_width: int, fit: PanelFit) -> str:
    """What a picture loses in a cell, if it is more than it should: "" or words with the numbers."""
    h, w = _scaled(height, width, cell_height, cell_width, fit)
    scale, shown = max(h / height, w / width), cell_height * cell_width / (h * w)
    size, cell = f"{width} x {height}", f"{cell_width} x {cell_height}"
    if scale > MOST_ENLARGED:
        return f"{size} pixels are enlarged {scale:.1f} times for a panel of {cell}"
    if fit == "crop" and shown < LEAST_SHOWN:
        return f"of {size} pixels a panel of {cell} shows {100 * shown:.0f} %"
    if fit == "pad" and 1 / shown < LEAST_SHOWN:
        return f"{size} pixels fill {100 / shown:.0f} % of a panel of {cell}"
    return ""


# --- loss ---


def loss_weight(grid: Grid, weights: Sequence[float]) -> Float[Tensor, "1 h w"]:
    """The weight of each latent in the loss: `weights[p]` inside panel p, scaled to a mean of 1.

    `flow_matching_loss(..., weight=loss_weight(...)[None])` is then the weighted mean of the latents' errors:
    equal weights change nothing, and with weights 1 and 0 it is the mean error inside the first panel. Raises
    ValueError unless there is a finite weight of at least 0 for each panel and one above 0."""
    if len(weights) != len(grid):
        raise InputError(f"weights: expected {len(grid)}, one a panel, got {len(weights)}")
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not any(weights):
        raise InputError(f"weights: expected numbers from 0 up, not all of them 0, got {list(weights)}")
    height, width = (side // PIXELS["latents"] for side in (grid.height, grid.width))
    latents = torch.empty(1, height, width, dtype=torch.float64)
    for box, weight in zip(grid.boxes("latents"), weights, strict=True):
        latents[:, box.rows, box.columns] = weight
    return (latents / latents.mean()).float()
