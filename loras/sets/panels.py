"""Pictures of panels: fitted to their cells, joined into a composite, and split back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeVar, get_args, overload

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from dit_heads.errors import InputError
from dit_heads.io.pictures import WHITE, to_rgb
from dit_heads.loras.sets.grid import Box, Grid, check_grid

PanelFit = Literal["crop", "pad"]
Picture = TypeVar("Picture", Image.Image, Tensor)

MOST_ENLARGED, LEAST_SHOWN = 1.5, 0.5  # before a warning is due


@overload
def join(panels: Sequence[Image.Image], grid: Grid, *, fit: PanelFit = "crop") -> Image.Image: ...
@overload
def join(panels: Sequence[Tensor], grid: Grid, *, fit: PanelFit = "crop") -> Tensor: ...
def join(
    panels: Sequence[Image.Image] | Sequence[Tensor], grid: Grid, *, fit: PanelFit = "crop"
) -> Image.Image | Tensor:
    """Join panels into one composite, each fitted to its cell.

    Args:
        panels: PIL images, which become RGB, or tensors [..., C, h, w], row by row.
        grid: the cells.
        fit: as in `fit_panel`.

    Returns:
        An image, or a tensor [..., C, H, W], of the grid's size.

    Raises:
        InputError: for a wrong number of panels, and for a mix of images and tensors.
    """
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
    """Take a composite apart again; undoes `join`.

    Args:
        composite: an image, or a tensor [..., C, H, W], of the grid's size.
        grid: the cells.

    Returns:
        The panels, row by row.

    Raises:
        InputError: the composite has another size.
    """
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
    """Cut a ready composite of any size into equal panels, row by row; see `cuts`."""
    return [_crop(image, box) for box in cuts(image.height, image.width, rows, columns)]


def cuts(height: int, width: int, rows: int, columns: int) -> list[Box]:
    """Where the equal panels of a ready composite lie.

    Args:
        height, width: of the composite, in pixels. Where they do not divide, a cut is rounded to the nearest
            pixel.
        rows, columns: number of panels.

    Returns:
        Their boxes in pixels, row by row.
    """
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
    """Scale a picture to a cell. Its aspect ratio stays.

    Args:
        panel: a PIL image, which becomes RGB, or a tensor [..., C, h, w]. One of the cell's size keeps its
            pixels.
        height, width: of the cell, in pixels.
        fit: "crop" fills the cell and loses what sticks out on both sides; "pad" shows the whole picture
            between white bars. White is 255 in an image or an integer tensor, and 1 in a floating one.

    Returns:
        An image or a tensor of the cell's size.
    """
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
    """Say what a picture loses in a cell, if it is more than it should.

    Args:
        height, width: of the picture, in pixels.
        cell_height, cell_width: of the cell, in pixels.
        fit: as in `fit_panel`.

    Returns:
        Words with the numbers; "" for a loss that is small.
    """
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
