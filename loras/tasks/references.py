"""The references of a batch as text embeddings, in one go: what is frozen is computed once and kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dit_heads.fusion.encoder import ReferenceEncoder, reference_embeddings
from dit_heads.io.fingerprints import fingerprint
from dit_heads.loras.base import MEMORY, Encoders, alone, in_parts
from dit_heads.loras.cache import CachedEncoder, Policy
from dit_heads.loras.tasks.pairs import Shown
from dit_heads.objectives.image_tower import ImageTower


@dataclass(frozen=True)
class References:
    """What an encoder of references reads of pictures.

    Args:
        transformer: that embeds latents. Its embedding is trained, so patches are not kept.
        vision: of a picture, the tokens of the vision tower; None leaves them out.
        latents: of a picture, its latents; None leaves them out.
    """

    transformer: Any
    vision: CachedEncoder | None
    latents: CachedEncoder | None

    @classmethod
    def of(cls, encoders: Encoders, tower: ImageTower, features: Sequence[str]) -> References:
        """The references of a run.

        Args:
            encoders: of the run. Tokens of the tower are kept where and as they keep latents.
            tower: the vision tower.
            features: what is read: "semantic", the tower's tokens, "latents", or both.
        """
        latents, pipe = encoders.latents, encoders.pipe
        vision = vision_encoder(pipe, tower, latents.folder, latents.policy, MEMORY)
        return cls(
            pipe.transformer,
            vision if "semantic" in features else None,
            latents if "latents" in features else None,
        )

    def embedded(
        self, encoder: ReferenceEncoder, pictures: Sequence[Shown]
    ) -> Sequence[Float[Tensor, "t d"]]:
        """Pictures as text embeddings [t, d], in one go. Gradients reach the encoder alone."""
        if not pictures:
            return []
        drawn = [replace(picture, make=cache(picture.make)) for picture in pictures]  # by both, once
        device = encoder.project.weight.device
        vision, latents = (
            None if kept is None else torch.stack([one[name] for one in kept.each(drawn)]).to(device)
            for kept, name in ((self.vision, "vision"), (self.latents, "latents"))
        )
        return reference_embeddings(encoder, self.transformer, vision, latents).unbind()


def vision_encoder(
    pipe: Any, tower: ImageTower, folder: Path, policy: Policy = "all", memory: int = 0
) -> CachedEncoder:
    """An encoder of pictures by a vision tower.

    Args:
        pipe: on whose device the tower works.
        tower: the vision tower.
        folder, policy, memory: as in `CachedEncoder`.

    Returns:
        Of a picture: {"vision": [n, v]}, the tokens of the tower. Several in one go must be of one size.
    """

    @alone(pipe)
    def encode(pictures: Sequence[Shown]) -> list[dict[str, Tensor]]:
        found: list[dict[str, Tensor]] = []
        for part in in_parts([picture.composite() for picture in pictures]):
            pixels = torch.from_numpy(np.stack([np.asarray(image, np.float32) / 255 for image in part]))
            seen = tower.tokens(pixels.permute(0, 3, 1, 2).to(pipe.device))
            found += [{"vision": each} for each in seen]
        return found

    settings = {"tower": fingerprint(tower.model.vision_model), "preparation": tower.settings}
    return CachedEncoder(lambda picture: encode([picture])[0], folder, settings, policy, memory, encode)
