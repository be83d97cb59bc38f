"""What SD3 and FLUX transformers predict, as one function of noisy latents and their noise level."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3_inpaint import retrieve_latents
from jaxtyping import Float
from torch import Tensor

from dit_heads.families.layouts import layout_of


def normalised_latents(vae: Any, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]:
    """Latents of pictures in [-1, 1] as transformers read them, by the posterior's mean."""
    mean = retrieve_latents(vae.encode(pixels), sample_mode="argmax")
    return (mean - vae.config.shift_factor) * vae.config.scaling_factor


Velocity = Callable[[Float[Tensor, "B C H W"], Float[Tensor, " B"]], Float[Tensor, "B C H W"]]


def velocity_of(
    transformer: Any,
    text: Float[Tensor, "B L D"],
    pooled: Float[Tensor, "B P"],
    *,
    source: Float[Tensor, "B S H W"] | None = None,
    guidance: float | Float[Tensor, " B"] = 1.0,
) -> Velocity:
    """The prediction of e - x (see `flow`) under prompt embeddings as the pipelines make them.

    `source` are latents that a transformer with a widened input reads beside the noisy ones; `guidance` is
    what FLUX's guidance embedding gets, if there is one. Raises ValueError for another class."""
    family = layout_of(transformer).family

    def velocity(x: Tensor, sigmas: Tensor) -> Tensor:
        seen = x if source is None else torch.cat([x, source], 1)
        if family == "flux":
            return _flux(transformer, seen, sigmas, text, pooled, guidance)
        return transformer(
            hidden_states=seen,
            timestep=1000 * sigmas,
            encoder_hidden_states=text,
            pooled_projections=pooled,
            return_dict=False,
        )[0]

    return velocity


def _flux(
    transformer: Any, x: Tensor, sigmas: Tensor, text: Tensor, pooled: Tensor, guidance: float | Tensor
) -> Tensor:
    height, width = x.shape[2:]
    strength = torch.as_tensor(guidance, dtype=x.dtype, device=x.device).expand(len(x))
    tokens = transformer(
        hidden_states=pack(x),
        timestep=sigmas,
        guidance=strength if transformer.config.guidance_embeds else None,
        encoder_hidden_states=text,
        pooled_projections=pooled,
        img_ids=positions(height // 2, width // 2).to(x),
        txt_ids=x.new_zeros(text.shape[1], 3),
        return_dict=False,
    )[0]
    return unpack(tokens, height, width)


def positions(rows: int, columns: int) -> Float[Tensor, "n 3"]:
    """FLUX's place of each image token: 0, row, column."""
    place = torch.zeros(rows, columns, 3)
    place[..., 1] += torch.arange(rows)[:, None]
    place[..., 2] += torch.arange(columns)[None]
    return place.flatten(0, 1)


def pack(latents: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N 4*C"]:
    """One token for each 2 x 2 latents, as FLUX reads them."""
    b, c, h, w = latents.shape
    return latents.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, 4 * c)


def unpack(tokens: Float[Tensor, "B N 4*C"], height: int, width: int) -> Float[Tensor, "B C H W"]:
    """The inverse of `pack`, for latents of this height and width."""
    b, _, c = tokens.shape
    grid = tokens.view(b, height // 2, width // 2, c // 4, 2, 2)
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(b, c // 4, height, width)
