"""Rectified flow as SD3 and FLUX train it: x_s = (1 - s) x + s e, target e - x (arXiv 2403.03206)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor


def logit_normal_sigmas(
    count: int, generator: torch.Generator, *, mean: float = 0.0, std: float = 1.0, shift: float = 1.0
) -> Float[Tensor, " B"]:
    """Noise levels in (0, 1): the sigmoid of a normal draw (arXiv 2403.03206, eq. 19), then moved towards
    noise by `shift` as for larger pictures (eq. 23)."""
    sigma = (mean + std * torch.randn(count, generator=generator)).sigmoid()
    return shift * sigma / (1 + (shift - 1) * sigma)


def flow_matching_loss(
    velocity: Callable[[Float[Tensor, "B C H W"], Float[Tensor, " B"]], Float[Tensor, "B C H W"]],
    latents: Float[Tensor, "B C H W"],
    sigmas: Float[Tensor, " B"],
    noise: Float[Tensor, "B C H W"],
    weight: Float[Tensor, "B 1 H W"] | None = None,
) -> Float[Tensor, ""]:
    """Mean squared error of `velocity(x_s, s)` against e - x, in float32, each error times its `weight`;
    `sigmas` in [0, 1], 1 = noise."""
    s = sigmas[:, None, None, None]
    predicted = velocity((1 - s) * latents + s * noise, sigmas)
    errors = (predicted.float() - (noise - latents)).pow(2)
    return (errors if weight is None else weight * errors).mean()
