"""Rectified flow as SD3 and FLUX train it: x_s = (1 - s) x + s e, target e - x (arXiv 2403.03206)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def logit_normal_sigmas(
    count: int, generator: torch.Generator, *, mean: float = 0.0, std: float = 1.0, shift: float = 1.0
) -> Float[Tensor, " B"]:
    """Draw noise levels as the sigmoid of a normal number (arXiv 2403.03206, eq. 19).

    Args:
        count: number of noise levels.
        generator: of the numbers.
        mean, std: of the normal distribution.
        shift: as in `shifted`.

    Returns:
        Noise levels in (0, 1).
    """
    return shifted((mean + std * torch.randn(count, generator=generator)).sigmoid(), shift)


def mode_sigmas(count: int, generator: torch.Generator, *, scale: float = 1.29) -> Float[Tensor, " B"]:
    """Draw noise levels around the middle by a heavy-tailed density (arXiv 2403.03206, eq. 20).

    Args:
        count: number of noise levels.
        generator: of the numbers.
        scale: from -1 to 1.75; above 0 it favours the middle.

    Returns:
        Noise levels in [0, 1].
    """
    u = torch.rand(count, generator=generator)
    return 1 - u - scale * ((torch.pi / 2 * u).cos() ** 2 - 1 + u)


def shifted(sigmas: Float[Tensor, " B"], shift: float) -> Float[Tensor, " B"]:
    """Move noise levels towards noise, as for larger pictures (arXiv 2403.03206, eq. 23).

    Args:
        sigmas: noise levels in [0, 1].
        shift: above 1 for more noise. Odds are multiplied by it.
    """
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def scheduler_shift(scheduler: Any, tokens: int) -> float:
    """The shift of noise levels with which a pipeline samples.

    Args:
        scheduler: the config of a flow-matching scheduler of diffusers.
        tokens: number of image tokens.

    Returns:
        The fixed shift, or with dynamic shifting, as FLUX has it, the one for this number of tokens: its
        logarithm (with `time_shift_type="linear"` the shift itself) is linear in it.
    """
    if not scheduler.use_dynamic_shifting:
        return scheduler.shift
    slope = (scheduler.max_shift - scheduler.base_shift) / (
        scheduler.max_image_seq_len - scheduler.base_image_seq_len
    )
    mu = scheduler.base_shift + slope * (tokens - scheduler.base_image_seq_len)
    return math.exp(mu) if scheduler.time_shift_type == "exponential" else mu


def flow_matching_loss(
    velocity: Callable[[Float[Tensor, "B C H W"], Float[Tensor, " B"]], Float[Tensor, "B C H W"]],
    latents: Float[Tensor, "B C H W"],
    sigmas: Float[Tensor, " B"],
    noise: Float[Tensor, "B C H W"],
    weight: Float[Tensor, "B 1 H W"] | None = None,
) -> Float[Tensor, ""]:
    """Mean squared error of a velocity against e - x, in float32.

    Args:
        velocity: (noised latents, noise levels) -> predicted velocity.
        latents: x, normalised.
        sigmas: noise levels in [0, 1]; 1 is noise.
        noise: e, standard normal.
        weight: of each latent's error, 1 by default.
    """
    s = sigmas[:, None, None, None]
    predicted = velocity((1 - s) * latents + s * noise, sigmas)
    errors = (predicted.float() - (noise - latents)).pow(2)
    return (errors if weight is None else weight * errors).mean()
