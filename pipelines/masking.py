"""Edits inside of a mask: what lies outside stays as it is, bit for bit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.utils.torch_utils import randn_tensor
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from dit_heads.errors import InputError, whole_number
from dit_heads.families.velocity import Velocity
from dit_heads.pipelines.sources import Frame, named_pictures

THRESHOLD = 0.5


@dataclass(frozen=True)
class EditMask:
    """Where a picture may change.

    Attributes:
        opacity: of the edit, on the grid of the picture: 1 inside of the mask, 0 where nothing changes.
    """

    opacity: Float[Tensor, "1 1 h w"]

    @classmethod
    def of(cls, mask: Any, size: tuple[int, int], feather: int) -> EditMask:
        """A mask for a picture.

        Args:
            mask: White where the picture may change: an image, an array or tensor, or a path.
            size: Height and width of the picture.
            feather: Pixels over which the edit fades out, beyond the mask.

        Raises:
            InputError: for several masks, one of another size, one without white, and a feather below 0.
        """
        whole_number("mask_feather", feather, 0)
        if isinstance(mask, np.ndarray) and mask.dtype == bool:
            mask = mask.astype(np.float32)
        pictures = named_pictures("mask", mask)
        if len(pictures) != 1:
            raise InputError(f"mask: expected one, got {len(pictures)}")
        if (found := tuple(pictures[0].shape[1:])) != size:
            wanted = f"{size[0]} x {size[1]}"
            raise InputError(f"mask: expected the size of the picture, {wanted}, got {found[0]} x {found[1]}")
        change = pictures[0].mean(0)[None, None] >= THRESHOLD
        if not change.any():
            raise InputError("mask: expected white where the picture may change, got one that is all black")
        return cls(faded(change, feather))

    def kept(self, frame: Frame, step: int) -> Tensor:
        """Latents that stay, [1, 1, h, w]: those of which no pixel may change.

        Args:
            frame: How the model reads the picture.
            step: Pixels along the side of a latent.
        """
        seen = frame.framed((self.opacity[0] > 0).float().expand(3, -1, -1))[None, :1]
        return F.max_pool2d(seen, step) == 0

    def pasted(
        self, source: Float[Tensor, "3 h w"], edited: Float[Tensor, "3 h w"]
    ) -> Float[Tensor, "3 h w"]:
        """The edit on its picture. Pixels outside of the mask and its fading are those of the source."""
        opacity = self.opacity[0].to(edited)
        mixed = torch.lerp(source.to(edited), edited, opacity)
        return torch.where(opacity > 0, mixed, source.to(edited))


@torch.no_grad()
def difference(
    source: Float[Tensor, "n C h w"],
    instructed: Velocity,
    null: Velocity,
    *,
    level: float,
    samples: int,
    generator: torch.Generator | None,
) -> Float[Tensor, "n 1 h w"]:
    """How far an instruction moves the prediction of each latent of a noised source, relative to the
    largest movement in its picture (DiffEdit, arXiv 2210.11427, section 3.2).

    Args:
        source: latents of the sources.
        instructed, null: predictions of a transformer that sees the source, with and without the
            instruction.
        level: noise level, from 0 to 1.
        samples: number of noises over which the movement is averaged.
        generator: of the noises.
    """
    sigmas = source.new_full((len(source),), level)
    moved = torch.zeros_like(source[:, :1])
    for _ in range(samples):
        noise = randn_tensor(source.shape, generator, source.device, source.dtype)
        one, other = (predict((1 - level) * source + level * noise, sigmas) for predict in (instructed, null))
        moved += (one - other).abs().mean(1, keepdim=True) / samples
    return moved / moved.amax((1, 2, 3), keepdim=True).clamp(min=torch.finfo(moved.dtype).tiny)


def on_grid(moved: Float[Tensor, "1 h w"], frame: Frame) -> Float[Tensor, "H W"]:
    """Movements of latents on the grid of their picture."""
    pixels = F.interpolate(moved[None].float().cpu(), frame.padded, mode="bilinear")[0]
    return frame.restored(pixels)[0]


def mask_of(moved: Float[Tensor, "h w"], threshold: float) -> Image.Image:
    """Where a picture moves by a share of the largest movement or more."""
    return Image.fromarray((moved >= threshold).numpy().astype(np.uint8) * 255)


def check_fractions(**values: float) -> None:
    """Raise InputError for numbers that are not between 0 and 1."""
    for name, value in values.items():
        if not 0 < value < 1:
            raise InputError(f"{name}: expected 0 < {name} < 1, got {value}")


def faded(change: Tensor, feather: int) -> Float[Tensor, "1 1 h w"]:
    """1 inside of a mask, less with the distance from it, 0 beyond `feather` pixels."""
    from scipy.ndimage import distance_transform_edt

    apart: Any = distance_transform_edt(~change[0, 0].numpy())
    return torch.from_numpy(np.clip(1 - apart / (feather + 1), 0, 1)).float()[None, None]
