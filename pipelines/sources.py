"""Source pictures of any form and size as a transformer can read them, and results on their grid again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from dit_heads.errors import InputError
from dit_heads.io.pictures import read_image
from dit_heads.tasks.codecs.pixels import levels

Picture = Image.Image | np.ndarray | Tensor | str | Path
"""A PIL image, an array [h, w, 3] or [h, w] (uint8, or floating in [0, 1]), a tensor [3, h, w] in [0, 1], or
the path of a PNG, JPEG or WebP."""
Pixels = Float[Tensor, "3 h w"]


def pictures_of(image: Any) -> list[Pixels]:
    """The pixels, in [0, 1], of a picture or of several: a list, an array [n, h, w, 3], a tensor
    [n, 3, h, w].

    Raises:
        InputError: for none, for what is no picture, and for a shape or range that would have to be guessed.
    """
    if isinstance(image, np.ndarray | Tensor) and image.ndim == 4:
        image = list(image)
    several = list(image) if isinstance(image, list | tuple) else [image]
    if not several:
        raise InputError("image: expected a picture or several, got an empty list")
    return [_pixels(one) for one in several]


def named_pictures(name: str, image: Any) -> list[Pixels]:
    """As `pictures_of`, with errors that name another argument than `image`."""
    try:
        return pictures_of(image)
    except InputError as error:
        raise InputError(str(error).replace("image:", f"{name}:", 1)) from error


def _pixels(picture: Any) -> Pixels:
    if isinstance(picture, str | Path):
        picture = read_image(Path(picture))
    if isinstance(picture, Tensor):
        return _checked(picture)
    if not isinstance(picture, Image.Image | np.ndarray):
        raise InputError(f"image: expected PIL images, arrays, tensors or paths, got {_named(picture)}")
    try:
        found = levels(picture)
    except InputError as error:
        message = str(error)
        raise InputError(message if message.startswith("image:") else f"image: {message}") from error
    except (OSError, SyntaxError) as error:  # a file that is opened only, and damaged
        raise InputError(f"image: expected a picture that can be read: {error}") from error
    return torch.from_numpy(found).permute(2, 0, 1).contiguous() / 255


def _checked(picture: Tensor) -> Pixels:
    if picture.ndim != 3 or len(picture) != 3 or not picture.is_floating_point() or not picture.numel():
        raise InputError(
            f"image: expected floating tensors [3, h, w], got {picture.dtype} of shape {tuple(picture.shape)}"
        )
    if not ((picture >= 0) & (picture <= 1)).all():
        raise InputError("image: expected tensors in [0, 1], got values outside of it")
    return picture.detach().float().cpu()


def _named(value: object) -> str:
    return "None" if value is None else type(value).__name__


@dataclass(frozen=True)
class Frame:
    """How the grid of a picture lies in the pixels that a transformer reads: scaled, then continued on the
    right and below. The corner stays where it was, so nothing is shifted.

    Args:
        size: height and width of the picture.
        scaled: of the picture as the transformer reads it.
        padded: multiples of what an image token covers.
    """

    size: tuple[int, int]
    scaled: tuple[int, int]
    padded: tuple[int, int]

    @classmethod
    def of(cls, size: tuple[int, int], multiple: int, longest: int = 0) -> Frame:
        """The frame of a picture whose longer side becomes `longest` at most; 0 keeps its size."""
        share = min(1.0, longest / max(size)) if longest else 1.0
        height, width = (max(1, round(share * side)) for side in size)
        return cls(size, (height, width), (_up(height, multiple), _up(width, multiple)))

    def framed(self, picture: Pixels) -> Pixels:
        """The picture as the transformer reads it. Its edge is repeated where it ends."""
        scaled = picture[None]
        if self.scaled != self.size:
            scaled = F.interpolate(scaled, self.scaled, mode="bilinear", antialias=True)
        below, right = (p - s for p, s in zip(self.padded, self.scaled, strict=True))
        return F.pad(scaled, (0, right, 0, below), mode="replicate")[0]

    def restored(self, picture: Float[Tensor, "c H W"], *, nearest: bool = False) -> Float[Tensor, "c h w"]:
        """A result on the grid of the picture again; `nearest` mixes no two of its pixels."""
        own = picture[None, :, : self.scaled[0], : self.scaled[1]]
        if self.scaled != self.size:
            own = F.interpolate(own, self.size, mode="nearest-exact" if nearest else "bilinear")
        return own[0]


def _up(side: int, multiple: int) -> int:
    return -(-side // multiple) * multiple
