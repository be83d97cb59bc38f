"""What a diffusion transformer is trained on in one pass, and its loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dit_heads.families.velocity import velocity_of
from dit_heads.training.flow import flow_matching_loss

CleanLoss = Callable[[Float[Tensor, "B C H W"], Float[Tensor, "B C H W"]], Float[Tensor, ""]]


@dataclass(frozen=True)
class Batch:
    """What a diffusion transformer is trained on in one pass.

    Args:
        latents: normalised, as the model reads them.
        text: prompt embeddings as the pipelines make them.
        pooled: pooled prompt embeddings.
        sigmas: noise levels in [0, 1]; 1 is noise.
        noise: of each sample.
        source: latents that a widened input reads beside the noisy ones.
        reference: latents whose tokens stand beside the noisy ones in the sequence.
        weight: of each latent's error in the loss, 1 by default.
    """

    latents: Float[Tensor, "B C H W"]
    text: Float[Tensor, "B L D"]
    pooled: Float[Tensor, "B P"]
    sigmas: Float[Tensor, " B"]
    noise: Float[Tensor, "B C H W"]
    source: Float[Tensor, "B S H W"] | None = None
    reference: Float[Tensor, "B C H W"] | None = None
    weight: Float[Tensor, "B 1 H W"] | None = None

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device.

        Args:
            device: the device.
        """
        tensors: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        moved = {name: tensor.to(device) for name, tensor in tensors.items() if tensor is not None}
        return replace(self, **moved)

    def loss(self, transformer: Any, clean_loss: CleanLoss | None = None) -> Float[Tensor, ""]:
        """The flow-matching loss of a transformer, with a guidance embedding, if it has one, at 1.

        Args:
            transformer: that predicts.
            clean_loss: a further loss, of the clean latents x - s v that each prediction implies against
                the right ones.
        """
        velocity = velocity_of(
            transformer, self.text, self.pooled, source=self.source, reference=self.reference
        )
        implied: list[Tensor] = []

        def recorded(x: Tensor, sigmas: Tensor) -> Tensor:
            predicted = velocity(x, sigmas)
            implied.append(x - sigmas[:, None, None, None] * predicted)
            return predicted

        loss = flow_matching_loss(recorded, self.latents, self.sigmas, self.noise, self.weight)
        return loss if clean_loss is None else loss + clean_loss(implied[0], self.latents)
