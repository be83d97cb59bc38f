"""The flow-matching loss against hand-worked numbers and against diffusers' scheduler."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from diffusers.training_utils import compute_density_for_timestep_sampling
from torch import Tensor

from dit_heads.training.flow import (
    flow_matching_loss,
    logit_normal_sigmas,
    mode_sigmas,
    scheduler_shift,
    shifted,
)


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


@pytest.mark.parametrize("scale", [-0.5, 0.0, 1.29])
def test_mode_sigmas_are_those_of_diffusers_from_the_same_draw(scale: float):
    ours = mode_sigmas(500, torch.Generator().manual_seed(3), scale=scale)
    theirs = compute_density_for_timestep_sampling(
        "mode", 500, mode_scale=scale, generator=torch.Generator().manual_seed(3)
    )
    torch.testing.assert_close(ours, theirs)
    assert ours.min() >= 0 and ours.max() <= 1


def test_shifted_sigmas_are_the_schedulers():
    plain, moved = (torch.as_tensor(FlowMatchEulerDiscreteScheduler(shift=s).sigmas) for s in (1.0, 2.5))
    torch.testing.assert_close(shifted(plain, 2.5), moved)
    assert shifted(torch.tensor([0.0, 0.5, 1.0]), 3.0).tolist() == [0.0, 0.75, 1.0]


@pytest.mark.parametrize("kind", ["exponential", "linear"])
@pytest.mark.parametrize("numbers", [(256, 4096, 0.5, 1.15), (64, 1024, 0.7, 2.0)])
@pytest.mark.parametrize("tokens", [256, 1024, 5000])
def test_the_shift_by_resolution_is_what_pipelines_ask_of_the_scheduler(
    kind: Any, numbers: tuple[int, int, float, float], tokens: int
):
    names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
    options: Any = dict(zip(names, numbers, strict=True))
    scheduler: Any = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, time_shift_type=kind, **options
    )
    scheduler.set_timesteps(sigmas=[1.0, 0.6, 0.1], mu=calculate_shift(tokens, *numbers))
    ours = shifted(torch.tensor([1.0, 0.6, 0.1]), scheduler_shift(scheduler.config, tokens))
    torch.testing.assert_close(ours, scheduler.sigmas[:3])


def test_a_fixed_shift_is_the_schedulers_at_any_resolution():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0).config
    assert scheduler_shift(scheduler, 64) == scheduler_shift(scheduler, 4096) == 3.0
