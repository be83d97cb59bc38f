"""Latents as transformers read them: the output of an autoencoder, shifted and scaled, and the inverse."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor

from dit_heads.compat import retrieve_latents


def encoded(vae: Any, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]:
    """Normalised latents of pictures in [-1, 1], by the posterior's mean."""
    return normalised(vae, retrieve_latents(vae.encode(pixels), sample_mode="argmax"))


def normalised(vae: Any, latents: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """An autoencoder's latents, shifted and scaled to a mean of about 0 and a deviation of about 1."""
    return (latents - _shift(vae)) * vae.config.scaling_factor


def denormalised(vae: Any, latents: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The inverse of `normalised`: latents as the autoencoder decodes them."""
    return latents / vae.config.scaling_factor + _shift(vae)


def _shift(vae: Any) -> float:
    """Autoencoders before SD3's have no shift, or None."""
    return getattr(vae.config, "shift_factor", None) or 0.0
