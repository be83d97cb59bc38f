"""Pictures as a CLIP sees them: made square, normalised, embedded; differentiable all the way.

transformers' own image processor is not asked: it needs torchvision or uint8, and has no gradient.
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
Fit = Callable[[Tensor], Tensor]


class ImageTower:
    """Unit vectors [B, D] of pictures in [0, 1] by a CLIP's `vision_model` and `visual_projection`. The model
    is frozen and follows the pictures to their device; `fit` makes them square, by default as `middle`."""

    def __init__(
        self, model: Any, mean: Sequence[float], std: Sequence[float], fit: Fit | None = None
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        size = model.vision_model.config.image_size
        self.fit = fit or partial(middle, edge=size, crop=size)
        self.mean, self.std = (torch.tensor(v)[:, None, None] for v in (mean, std))

    @property
    def settings(self) -> dict[str, Any]:
        """How pictures are prepared."""
        function, keywords = getattr(self.fit, "func", self.fit), getattr(self.fit, "keywords", {})
        fit = {"fit": getattr(function, "__qualname__", type(function).__name__), **keywords}
        return {"mean": self.mean.flatten().tolist(), "std": self.std.flatten().tolist(), **fit}

    def __call__(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        self.model.to(images.device)
        weight = self.model.visual_projection.weight
        pixels = self.fit(images.float().clamp(0, 1))
        pixels = (pixels - self.mean.to(pixels)) / self.std.to(pixels)
        seen = self.model.vision_model(pixel_values=pixels.to(weight.dtype)).pooler_output
        return F.normalize(self.model.visual_projection(seen).float(), dim=-1)


def middle(images: Float[Tensor, "b 3 h w"], edge: int, crop: int) -> Float[Tensor, "b 3 s s"]:
    """The middle `crop` x `crop` of pictures with a shorter side of `edge`: CLIP's own preparation."""
    h, w = images.shape[-2:]
    height, width = edge * h // min(h, w), edge * w // min(h, w)
    # Pillow resizes to bytes, rows first: what a cubic overshoots is cut off after either direction.
    images = _resized(_resized(images, (h, width)).clamp(0, 1), (height, width)).clamp(0, 1)
    top, left = (height - crop) // 2, (width - crop) // 2
    return images[..., top : top + crop, left : left + crop]


def letterbox(images: Float[Tensor, "b 3 h w"], size: int) -> Float[Tensor, "b 3 s s"]:
    """The whole of each picture with a longer side of `size`, black around it: HPSv2's preparation."""
    h, w = images.shape[-2:]
    shape = round(h * size / max(h, w)), round(w * size / max(h, w))
    down, right = size - shape[0], size - shape[1]
    return F.pad(_resized(images, shape), (right // 2, right - right // 2, down // 2, down - down // 2))


def _resized(images: Tensor, shape: tuple[int, int]) -> Tensor:
    if images.shape[-2:] == shape:
        return images
    return F.interpolate(images, shape, mode="bicubic", antialias=True)


def image_tower(model: Any, source: str) -> ImageTower:
    """A tower that prepares pictures as the CLIPImageProcessor config at `source`, a folder or hub id, says,
    or as OpenAI's CLIP if there is none. Raises ValueError for another preparation than CLIP's."""
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
        if file == "processor_config.json":  # old versions say nothing of pictures in it
            found = found.get("image_processor", {})
        if found:
            return found
    return {}
