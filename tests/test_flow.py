"""The flow-matching loss against hand-worked numbers and against diffusers' scheduler."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from dit_heads.flow import flow_matching_loss, logit_normal_sigmas


def test_hand_worked_case():
    latents = torch.tensor([1.0, 3.0]).view(1, 1, 1, 2)
    noise = torch.tensor([2.0, -1.0]).view(1, 1, 1, 2)
    asked: list[Tensor] = []

    def silent(x: Tensor, s: Tensor) -> Tensor:
        asked.extend((x, s))
        return torch.zeros_like(x)

    loss = flow_matching_loss(silent, latents, torch.tensor([0.25]), noise)
    assert asked[0].flatten().tolist() == [1.25, 2.0]  # 0.75 x + 0.25 e
    assert asked[1].tolist() == [0.25]
    assert loss.item() == 8.5  # the mean of (2 - 1)^2 and (-1 - 3)^2
    weight = torch.tensor([5.0, 0.5]).view(1, 1, 1, 2)
    loss = flow_matching_loss(silent, latents, torch.tensor([0.25]), noise, weight)
    assert loss.item() == 6.5  # the mean of 5 and 8


def test_the_right_velocity_has_no_loss_and_each_sample_its_own_sigma():
    generator = torch.Generator().manual_seed(0)
    x, e = torch.randn(2, 3, 2, 4, 4, generator=generator)
    sigmas = torch.tensor([0.0, 0.5, 1.0])

    def check(mixed: Tensor, s: Tensor) -> Tensor:
        torch.testing.assert_close(mixed, torch.stack([x[0], (x[1] + e[1]) / 2, e[2]]))
        return e - x

    assert flow_matching_loss(check, x, sigmas, e) == 0
    assert flow_matching_loss(lambda *_: x - e, x, sigmas, e).item() == pytest.approx(
        4 * (e - x).square().mean().item()
    )


def test_noise_and_velocity_are_those_of_the_scheduler():
    scheduler: Any = FlowMatchEulerDiscreteScheduler(shift=2.0)
    scheduler.set_timesteps(6)
    generator = torch.Generator().manual_seed(1)
    x, e = torch.randn(2, 1, 2, 4, 4, generator=generator)
    for k, t in enumerate(scheduler.timesteps):
        mixed: list[Tensor] = []

        def velocity(x_s: Tensor, s: Tensor, mixed: list[Tensor] = mixed) -> Tensor:
            mixed.append(x_s)
            return torch.zeros_like(x_s)

        flow_matching_loss(velocity, x, t[None] / 1000, e)
        torch.testing.assert_close(mixed[0], scheduler.scale_noise(x, t[None], e))
        stepped = scheduler.step(e - x, t, mixed[0], return_dict=False)[0]
        after = scheduler.sigmas[k + 1]
        torch.testing.assert_close(stepped, (1 - after) * x + after * e)


def test_sigmas_are_logit_normal_and_shift_multiplies_their_odds():
    def draw(**options: float) -> Tensor:
        return logit_normal_sigmas(20_000, torch.Generator().manual_seed(2), **options).double()

    logits = torch.logit(draw(mean=0.4, std=0.7))
    assert logits.mean().item() == pytest.approx(0.4, abs=0.02)
    assert logits.std().item() == pytest.approx(0.7, abs=0.02)
    plain, shifted = draw(), draw(shift=3.0)
    torch.testing.assert_close(shifted / (1 - shifted), 3 * plain / (1 - plain), rtol=1e-4, atol=0)
    assert shifted.median().item() == pytest.approx(0.75, abs=0.01)
