"""Depth maps and masks as tensors that a tokenizer reads: logarithms of metres with their gaps, and crops of
masks.

A depth map is a pair: `metres` [B, H, W] and `known` [B, H, W] of whole numbers: 0 unknown, 1 a distance, 2
sky.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dit_heads.errors import InputError
from dit_heads.tasks.annotations import Depth

UNKNOWN, DISTANCE, SKY = 0, 1, 2
PATCH = 16  # side in pixels of what mask augmentation hides at once
HIDDEN = 0.5  # share of the patches that it hides at most
BLOB = 8  # gaps of `with_gaps` are about this many pixels wide

Metres = Float[Tensor, "b h w"]
Known = Int[Tensor, "b h w"]


@dataclass(frozen=True)
class DepthRange:
    """Metres as numbers in [-1, 1], by their logarithm.

    Attributes:
        near: metres at -1.
        far: metres at 1.

    Raises:
        InputError: unless 0 < near < far.
    """

    near: float = 2.0
    far: float = 60.0

    def __post_init__(self) -> None:
        if not 0 < self.near < self.far < math.inf:
            raise InputError(f"near, far: expected 0 < near < far, got {self.near:g} and {self.far:g}")

    def values(self, metres: Metres) -> Metres:
        """Metres as numbers in [-1, 1]; what is beyond the range is taken for its end."""
        share = torch.log(metres.clamp(self.near, self.far) / self.near) / self._span
        return 2 * share - 1

    def metres(self, values: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """The inverse of `values`."""
        return self.near * torch.exp((values.clamp(-1, 1) + 1) / 2 * self._span)

    def log_metres(self, values: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """Logarithms of the metres, also beyond the range, where gradients go on."""
        return math.log(self.near) + (values + 1) / 2 * self._span

    @property
    def _span(self) -> float:
        return math.log(self.far / self.near)


def depth_tensors(maps: Sequence[Depth], span: DepthRange) -> tuple[Metres, Known]:
    """Depth maps of one size as tensors.

    Args:
        maps: metric depth, each with a pixel of a known distance or of sky.
        span: the range that the tokenizer was made for. The distances must not lie outside of it.

    Raises:
        InputError: for relative depth, maps of several sizes, a map in which nothing is known, and
            distances beyond the range.
    """
    if len({depth.metres.shape for depth in maps}) != 1:
        sizes = sorted({depth.metres.shape for depth in maps})
        raise InputError(f"depth: expected maps of one size, got {sizes}")
    for place, depth in enumerate(maps):
        if not depth.metric:
            raise InputError(f"depth: expected metres, got relative depth (map {place})")
        if not (depth.valid | depth.sky).any():
            raise InputError(f"depth: expected a pixel or more that is known, got none (map {place})")
        known = depth.metres[depth.valid]
        if known.size and (known.min() < span.near or known.max() > span.far):
            raise InputError(
                f"depth: expected {span.near:g} to {span.far:g} m, got {known.min():g} to {known.max():g} "
                f"(map {place})"
            )
    metres = torch.from_numpy(np.stack([np.where(d.valid, d.metres, 0) for d in maps])).float()
    known = np.stack([DISTANCE * d.valid + SKY * d.sky for d in maps])
    return metres, torch.from_numpy(known).long()


def depth_input(metres: Metres, known: Known, span: DepthRange) -> Float[Tensor, "b 3 h w"]:
    """What a depth tokenizer reads: the value (0 where there is no distance), where there is one, and where
    there is sky."""
    is_far, is_known = (known == SKY).float(), (known == DISTANCE).float()
    values = span.values(metres.clamp(min=span.near)) * is_known
    return torch.stack([values, is_known, is_far], 1)


def with_patches_hidden(
    pictures: Float[Tensor, "b c h w"], generator: torch.Generator, patch: int = PATCH
) -> Float[Tensor, "b c h w"]:
    """Mask augmentation: zeros in random patches, at most half of them, of what a tokenizer reads. What it
    has to put out stays whole.

    Args:
        pictures: the input.
        generator: of the choice, on the CPU.
        patch: side of a patch in pixels.
    """
    b, _, h, w = pictures.shape
    rows, columns = -(-h // patch), -(-w // patch)
    places = torch.rand(b, rows * columns, generator=generator).argsort(1).argsort(1)
    most = math.ceil(HIDDEN * rows * columns)
    count = torch.randint(0, most + 1, (b, 1), generator=generator)
    kept = (places >= count).view(b, 1, rows, columns).float()
    kept = kept.repeat_interleave(patch, 2).repeat_interleave(patch, 3)[..., :h, :w]
    return pictures * kept.to(pictures)


def with_gaps(known: Known, share: float, generator: torch.Generator) -> Known:
    """Depth maps of which a share is unknown, in blobs, as sensors leave gaps.

    Args:
        known: of the maps.
        share: of the pixels that become unknown, from 0 to below 1.
        generator: of the gaps, on the CPU.

    Raises:
        InputError: for another share.
    """
    if not 0 <= share < 1:
        raise InputError(f"share: expected 0 <= share < 1, got {share!r}")
    if share == 0:
        return known
    b, h, w = known.shape
    coarse = torch.rand(b, 1, -(-h // BLOB) + 1, -(-w // BLOB) + 1, generator=generator)
    smooth = F.interpolate(coarse, (h, w), mode="bilinear", align_corners=True)[:, 0]
    level = smooth.flatten(1).kthvalue(max(1, round(share * h * w)), 1).values
    return torch.where((smooth <= level[:, None, None]).to(known.device), UNKNOWN, known)


# --- masks ---


def cropped(
    masks: Float[Tensor, "n h w"], boxes: Float[Tensor, "n 4"], side: int
) -> Float[Tensor, "n side side"]:
    """Masks within their boxes, stretched to squares, in [0, 1].

    Args:
        masks: in [0, 1].
        boxes: x0, y0, x1, y1 as shares of the width and height.
        side: of the squares, in pixels.
    """
    at = (torch.arange(side, device=masks.device) + 0.5) / side
    x = boxes[:, 0, None] + at * (boxes[:, 2] - boxes[:, 0])[:, None]  # [N, side], shares of the width
    y = boxes[:, 1, None] + at * (boxes[:, 3] - boxes[:, 1])[:, None]
    return _sampled(masks, x, y)


def pasted(
    crops: Float[Tensor, "n side side"], boxes: Float[Tensor, "n 4"], size: tuple[int, int]
) -> Float[Tensor, "n h w"]:
    """The inverse of `cropped`: masks of a whole picture, 0 outside of their boxes.

    Args:
        crops: in [0, 1].
        boxes: x0, y0, x1, y1 as shares of the width and height, of a positive area.
        size: height and width of the picture.
    """
    height, width = size
    x = (torch.arange(width, device=crops.device) + 0.5) / width
    y = (torch.arange(height, device=crops.device) + 0.5) / height
    x0, y0, x1, y1 = (boxes[:, k, None] for k in range(4))
    across, down = (x - x0) / (x1 - x0), (y - y0) / (y1 - y0)  # [N, W], [N, H], 0 to 1 in the box
    inside = _within(down)[:, :, None] & _within(across)[:, None, :]
    return _sampled(crops, across, down) * inside


def _within(share: Float[Tensor, "n m"]) -> Bool[Tensor, "n m"]:
    return (share >= 0) & (share <= 1)


def _sampled(
    pictures: Float[Tensor, "n h w"], x: Float[Tensor, "n columns"], y: Float[Tensor, "n rows"]
) -> Float[Tensor, "n rows columns"]:
    """Pictures at places given as shares of their width and height; edges are repeated outside."""
    grid = torch.stack(
        [
            (2 * x - 1)[:, None, :].expand(-1, y.shape[1], -1),
            (2 * y - 1)[:, :, None].expand(-1, -1, x.shape[1]),
        ],
        -1,
    )
    return F.grid_sample(pictures[:, None], grid, padding_mode="border", align_corners=False)[:, 0]
