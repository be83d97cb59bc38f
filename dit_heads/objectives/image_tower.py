"""Embeddings of pictures by a CLIP, differentiable from the pixels on.

We do not use transformers' image processor, because it is not differentiable.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from dit_heads.errors import InputError

OPENAI_MEAN, OPENAI_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
Fit = Callable[[Float[Tensor, "b 3 h w"]], Float[Tensor, "b 3 s s"]]


class ImageTower:
    """Embeds pictures by the vision model of a CLIP, which is frozen and follows them to their device.

    Args:
        model: a model with `vision_model` and `visual_projection`.
        mean: mean of each colour channel, for pixels in [0, 1].
        std: standard deviation of each colour channel.
        fit: makes pictures square. Default: `middle`.
    """

    def __init__(
        self, model: Any, mean: Sequence[float], std: Sequence[float], fit: Fit | None = None
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        size = model.vision_model.config.image_size
        self.fit = fit or partial(middle, edge=size, crop=size)
        self.mean, self.std = (torch.tensor(v)[:, None, None] for v in (mean, std))

    @property
    def settings(self) -> dict[str, Any]:
        """The preparation of pictures, as plain data."""
        function, keywords = getattr(self.fit, "func", self.fit), getattr(self.fit, "keywords", {})
        fit = {"fit": getattr(function, "__qualname__", type(function).__name__), **keywords}
        return {"mean": self.mean.flatten().tolist(), "std": self.std.flatten().tolist(), **fit}

    def __call__(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Embeddings of pictures, as unit vectors.

        Args:
            images: pictures in [0, 1].
        """
        seen = self._seen(images).pooler_output
        return F.normalize(self.model.visual_projection(seen).float(), dim=-1)

    @property
    def width(self) -> int:
        """Width of the hidden states."""
        return self.model.vision_model.config.hidden_size

    def tokens(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b n d"]:
        """The last hidden states of all tokens of pictures, that of the class included.

        Args:
            images: pictures in [0, 1].
        """
        return self._seen(images).last_hidden_state

    def _seen(self, images: Float[Tensor, "b 3 h w"]) -> Any:
        self.model.to(images.device)
        pixels = self.fit(images.float().clamp(0, 1))
        pixels = (pixels - self.mean.to(pixels)) / self.std.to(pixels)
        return self.model.vision_model(pixel_values=pixels.to(self.model.visual_projection.weight.dtype))


def middle(images: Float[Tensor, "b 3 h w"], edge: int, crop: int) -> Float[Tensor, "b 3 s s"]:
    """CLIP's own preparation: scale the shorter side, then crop the middle.

    Args:
        images: pictures in [0, 1].
        edge: length of the shorter side after scaling, in pixels.
        crop: side of the square, in pixels.
    """
    h, w = images.shape[-2:]
    height, width = edge * h // min(h, w), edge * w // min(h, w)
    # Pillow resizes to bytes, rows first, so the overshoot of the cubic is clipped after each direction.
    images = _resized(_resized(images, (h, width)).clamp(0, 1), (height, width)).clamp(0, 1)
    top, left = (height - crop) // 2, (width - crop) // 2
    return images[..., top : top + crop, left : left + crop]


def letterbox(images: Float[Tensor, "b 3 h w"], size: int) -> Float[Tensor, "b 3 s s"]:
    """HPSv2's preparation: scale the longer side, then pad to a square with black.

    Args:
        images: pictures in [0, 1].
        size: side of the square, in pixels.
    """
    h, w = images.shape[-2:]
    shape = round(h * size / max(h, w)), round(w * size / max(h, w))
    down, right = size - shape[0], size - shape[1]
    return F.pad(_resized(images, shape), (right // 2, right - right // 2, down // 2, down - down // 2))


def _resized(images: Tensor, shape: tuple[int, int]) -> Tensor:
    if images.shape[-2:] == shape:
        return images
    return F.interpolate(images, shape, mode="bicubic", antialias=True)


def image_tower(model: Any, source: str) -> ImageTower:
    """An image tower with the preparation that a CLIPImageProcessor config describes.

    Args:
        model: a model with `vision_model` and `visual_projection`.
        source: folder or hub id of the config. Without a config, pictures are prepared as for OpenAI's CLIP.

    Raises:
        InputError: for a preparation of another kind than CLIP's.
    """
    config, size = _processor_config(source), model.vision_model.config.image_size
    edge, crop = config.get("size", size), config.get("crop_size", size)
    edge = edge.get("shortest_edge", 0) if isinstance(edge, dict) else edge
    crop = crop.get("height", 0) if isinstance(crop, dict) else crop
    usual = {"do_resize": True, "do_center_crop": True, "do_normalize": True, "resample": 3}
    if crop != size or edge < crop or any(config.get(k, v) != v for k, v in usual.items()):
        expected = f"bicubic resize of the shorter side, crop to {size} and normalisation"
        raise InputError(f"processor: expected {expected}, '{source}' has {config}")
    mean, std = config.get("image_mean", OPENAI_MEAN), config.get("image_std", OPENAI_STD)
    return ImageTower(model, mean, std, partial(middle, edge=edge, crop=size))


def _processor_config(source: str) -> dict[str, Any]:
    from transformers.utils import cached_file

    for file in ("processor_config.json", "preprocessor_config.json"):
        path = cached_file(source, file, _raise_exceptions_for_missing_entries=False)
        found = json.loads(Path(path).read_text()) if path else {}
        if file == "processor_config.json":  # in old versions it does not describe pictures
            found = found.get("image_processor", {})
        if found:
            return found
    return {}
