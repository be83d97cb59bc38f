"""The prediction of a transformer as a function of noisy latents and their noise level."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dit_heads.families import training_of
from dit_heads.families.conditioning import seeing

Velocity = Callable[[Float[Tensor, "B C H W"], Float[Tensor, " B"]], Float[Tensor, "B C H W"]]


def velocity_of(
    transformer: Any,
    text: Float[Tensor, "B L D"],
    pooled: Float[Tensor, "B P"],
    *,
    source: Float[Tensor, "B S H W"] | None = None,
    reference: Float[Tensor, "B C H W"] | Sequence[Tensor] | None = None,
    guidance: float | Float[Tensor, " B"] = 1.0,
) -> Velocity:
    """The prediction of noise - latents (see `training.flow`), given prompt embeddings of the pipelines.

    Args:
        transformer: the model.
        text: embeddings of the prompts, token by token.
        pooled: pooled embeddings of the prompts.
        source: latents that a transformer with a widened input reads beside the noisy ones.
        reference: latents, or several, whose tokens join those of the noisy ones in the sequence.
        guidance: guidance scale, for a model with a guidance embedding.

    Returns:
        A function of noisy latents [B, C, H, W] and noise levels [B].

    Raises:
        InputError: for a transformer that belongs to no family, or to one that cannot be trained.
    """
    training = training_of(transformer)
    references = [reference] if isinstance(reference, Tensor) else reference

    def velocity(x: Float[Tensor, "B C H W"], sigmas: Float[Tensor, " B"]) -> Float[Tensor, "B _ H W"]:
        seen = x if source is None else torch.cat([x, source], 1)
        with nullcontext() if references is None else seeing(transformer, references, "tokens"):
            return training.velocity(transformer, seen, sigmas, text, pooled, guidance)

    return velocity
