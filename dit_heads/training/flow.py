"""Rectified flow as SD3 and FLUX train it: x_s = (1 - s) x + s e, target e - x (arXiv 2403.03206)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor


def logit_normal_sigmas(
    count: int, generator: torch.Generator, *, mean: float = 0.0, std: float = 1.0, shift: float = 1.0
) -> Float[Tensor, " B"]:
    """Noise levels in (0, 1): the sigmoid of a normal draw (arXiv 2403.03206, eq. 19), then `shifted`."""
    return shifted((mean + std * torch.randn(count, generator=generator)).sigmoid(), shift)


def mode_sigmas(count: int, generator: torch.Generator, *, scale: float = 1.29) -> Float[Tensor, " B"]:
    """Noise levels around the middle by a heavy-tailed density (arXiv 2403.03206, eq. 20), -1 to 1.75."""
    u = torch.rand(count, generator=generator)
    return 1 - u - scale * ((torch.pi / 2 * u).cos() ** 2 - 1 + u)


def shifted(sigmas: Float[Tensor, " B"], shift: float) -> Float[Tensor, " B"]:
    """Noise levels moved towards noise, as for larger pictures (arXiv 2403.03206, eq. 23)."""
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def flux_shift(tokens: int) -> float:
    """FLUX's shift by the number of image tokens: exp of 0.5 at 256 and 1.15 at 4096, linear between."""
    return math.exp(0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256))


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
