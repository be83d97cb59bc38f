"""Scenes with their exact depth and objects, and the features that a transformer has of them, on a device."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from safetensors.torch import load_file
from torch import Tensor

from dit_heads.embedded import TEXT_TOKENS, load_embedded
from dit_heads.embedded.nets.vae import to_tensor
from dit_heads.embedded.world.data import cache_folder, load_truth, made_once, scene_of
from dit_heads.embedded.world.scenes import SHAPES, Split
from dit_heads.families import layout_of, training_of
from dit_heads.families.latents import encoded
from dit_heads.io.atomic import write_tensors
from dit_heads.tasks.annotations import Instances
from dit_heads.tasks.soft_tokens.features import FeatureConfig, channels_of, chosen_heads, features_of
from dit_heads.tasks.soft_tokens.maps import DISTANCE, SKY, UNKNOWN, with_gaps
from dit_heads.tasks.soft_tokens.sequences import Objects, Vocabulary, objects_of
from dit_heads.training.generators import keyed_generator

BLOCK = 256  # scenes that are treated at once where all of them would not fit
GAPS = "gaps"  # key of the gaps in depth


@dataclass(frozen=True)
class Truth:
    """What is known of S scenes.

    Attributes:
        images: the pictures, on the CPU.
        metres: depth, 0 where there is no distance; fp16.
        known: 0 unknown, 1 a distance, 2 sky.
        ids: instance ids.
        objects: the solids that can be seen, from left to right.
    """

    images: UInt8[np.ndarray, "s h w 3"]
    metres: Float[Tensor, "s h w"]
    known: UInt8[Tensor, "s h w"]
    ids: UInt8[Tensor, "s h w"]
    objects: Objects

    def __len__(self) -> int:
        return len(self.images)

    def depth(self, which: Tensor) -> tuple[Float[Tensor, "b h w"], Int[Tensor, "b h w"]]:
        """Metres and what is known of these scenes."""
        return self.metres[which].float(), self.known[which].long()

    def masks(self, which: Tensor, places: Tensor) -> Float[Tensor, "n h w"]:
        """The masks of objects.

        Args:
            which: the scene of each.
            places: the place of each among the objects of its scene.
        """
        number = self.objects.order[which, places] + 1  # ids count from 1
        return (self.ids[which] == number[:, None, None].to(self.ids)).float()


def world_vocabulary(**sizes: int) -> Vocabulary:
    """The vocabulary of the world: its shapes, of three solids at most."""
    return Vocabulary(classes=SHAPES, objects=3, **sizes)


def load_world(
    split: Split,
    count: int,
    device: torch.device,
    *,
    missing: float = 0.0,
    workers: int | None = None,
) -> Truth:
    """The first scenes of a split.

    Args:
        split: the split.
        count: number of scenes.
        device: of the tensors.
        missing: share of each depth map that is unknown.
        workers: number of processes that render.
    """
    images, depth, ids = load_truth(split, count, workers)
    metres = torch.from_numpy(np.where(np.isfinite(depth), depth, 0)).half()
    known = torch.from_numpy(np.where(np.isfinite(depth), DISTANCE, SKY).astype(np.uint8))
    if missing:
        known = torch.cat(
            [
                with_gaps(part.long(), missing, keyed_generator(GAPS, split, place)).to(torch.uint8)
                for place, part in enumerate(known.split(BLOCK))
            ]
        )
        metres[known == UNKNOWN] = 0
    objects = _visible_objects(split, ids)
    truth = Truth(images, metres.to(device), known.to(device), torch.from_numpy(ids).to(device), objects)
    moved = {name: getattr(objects, name).to(device) for name in ("boxes", "classes", "there", "order")}
    return replace(truth, objects=Objects(**moved))


def _visible_objects(split: Split, ids: UInt8[np.ndarray, "s h w"]) -> Objects:
    """The objects of scenes. `order` is the number of the solid in its scene."""
    found, numbers = [], []
    for index, each in enumerate(ids):
        solids = scene_of(split, index).solids
        seen = [k for k in range(len(solids)) if (each == k + 1).any()]
        masks = np.stack([each == k + 1 for k in seen]) if seen else np.zeros((0, *each.shape), bool)
        found.append(Instances(masks, tuple(solids[k].shape for k in seen)))
        numbers.append(seen)
    objects = objects_of(found, world_vocabulary())
    order = objects.order.clone()
    for row, seen in enumerate(numbers):
        for place in range(len(seen)):
            order[row, place] = seen[int(objects.order[row, place])]
    return replace(objects, order=order)


# --- features ---


class Encoder:
    """The embedded model that pictures are shown to.

    Args:
        model: "sd3" or "flux".
        device: where it runs.
    """

    def __init__(self, model: str, device: torch.device) -> None:
        self.pipe: Any = load_embedded(model).to(device)
        self.device = device
        encode = training_of(self.pipe.transformer).encode_prompt
        with torch.no_grad():
            self.text, self.pooled = encode(self.pipe, "", TEXT_TOKENS)

    @property
    def transformer(self) -> Any:
        """Its transformer."""
        return self.pipe.transformer

    @torch.no_grad()
    def features(self, images: UInt8[np.ndarray, "b h w 3"], config: FeatureConfig) -> Float[Tensor, "b n f"]:
        """Features of pictures."""
        latents = encoded(self.pipe.vae, to_tensor(images).to(self.device))
        text, pooled = (t.expand(len(images), *t.shape[1:]) for t in (self.text, self.pooled))
        return features_of(self.transformer, latents, text, pooled, config)


def load_features(
    model: str,
    split: Split,
    images: UInt8[np.ndarray, "s h w 3"],
    config: FeatureConfig,
    device: torch.device,
    batch: int = 128,
) -> Float[Tensor, "s n f"]:
    """Features of the first scenes of a split, in fp16. Those of all heads are computed once for each noise
    level, and kept in the cache folder.

    Args:
        model: "sd3" or "flux".
        split: of the scenes.
        images: the pictures.
        config: which features.
        device: where they are computed, and where they go.
        batch: number of pictures at once.
    """
    encoder = cache(lambda: Encoder(model, device))
    columns = columns_of(model, config)
    parts = []
    for level in config.levels:
        name = f"{model}-{split}-{len(images)}-{config.kind}-{level:g}.safetensors"
        path = cache_folder() / "features-v1" / name
        with made_once(path) as is_there:
            if not is_there:
                every = FeatureConfig("all", config.kind, (level,))
                made = [
                    encoder().features(images[at : at + batch], every).half().cpu()
                    for at in range(0, len(images), batch)
                ]
                write_tensors(path, {"features": torch.cat(made)}, {})
        stored = load_file(path)["features"]
        parts.append(stored.to(device) if columns is None else stored[..., columns].to(device))
    return torch.cat(parts, -1) if len(parts) > 1 else parts[0]


def columns_of(model: str, config: FeatureConfig) -> Int[Tensor, " f"] | None:
    """The channels of chosen heads among those of all heads, at one noise level; None for all of them."""
    if config.heads == "all":
        return None
    transformer = load_embedded(model).transformer
    every = channels_of(transformer, replace(config, heads="all"))
    wanted = set(channels_of(transformer, config).names)
    ends = np.cumsum(every.width)
    kept = [
        np.arange(end - width, end)
        for name, width, end in zip(every.names, every.width, ends, strict=True)
        if name in wanted
    ]
    return torch.from_numpy(np.concatenate(kept))


def random_heads(model: str, share: float, seed: int) -> str:
    """A share of all heads of a model, at random, as text."""
    every = chosen_heads(layout_of(load_embedded(model).transformer), "all")
    rng = np.random.default_rng((5, seed))
    chosen = rng.choice(len(every), max(1, round(share * len(every))), replace=False)
    return ", ".join(str(every[k]) for k in sorted(chosen.tolist()))
