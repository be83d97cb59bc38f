"""The loss of a run: its randomness by seed, step and place, dropped captions, prior, noise levels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch.testing import assert_close

from dit_heads.loras.config import LossConfig
from dit_heads.loras.tasks import EMPTY_CAPTION
from dit_heads.training.loop import Part
from tests.loras.tasks.losses import (
    UNUSED,
    Fixture,
    asked,
    embedding_of,
    gradients,
    make_sets,
)

# --- randomness ---


@pytest.mark.parametrize("kind", ["sd3", "flux"])
@pytest.mark.parametrize("weights", [(), (1.0, 3.0)])
def test_parts_averaged_are_the_whole_batch(base: Fixture, sets: Path, kind: str, weights: tuple[float, ...]):
    config = LossConfig(panel_weights=weights, caption_dropout=0.3, prior_weight=0.5)
    loss = replace(base, kind=kind, config=config, prior=sets).make()
    whole, expected = gradients(loss, 3, 1)
    for count in (2, 4):
        value, found = gradients(loss, 3, count)
        assert_close(value, whole, rtol=1e-5, atol=1e-6)
        assert found.keys() == expected.keys()
        for name in found:
            assert (found[name] - expected[name]).norm() <= 5e-4 * expected[name].norm()


def test_what_a_sample_gets_does_not_depend_on_how_the_batch_is_shared(base: Fixture, monkeypatch: Any):
    loss = base.make()
    (whole,) = asked(loss, Part(7), monkeypatch)
    parts = [asked(loss, Part(7, k, 2), monkeypatch)[0] for k in range(2)]
    for name in ("latents", "text", "pooled", "sigmas", "noise"):
        expected = getattr(whole, name)
        for k in range(2):
            assert torch.equal(getattr(parts[k], name), expected[k::2])
    assert len(whole.sigmas.unique()) == 4 and len(whole.noise.unique()) == whole.noise.numel()
    torch.manual_seed(3)
    (again,) = asked(base.make(), Part(7), monkeypatch)
    assert torch.equal(again.noise, whole.noise) and torch.equal(again.sigmas, whole.sigmas)
    for other, step in ((loss, 8), (replace(base, seed=1).make(), 7)):
        (another,) = asked(other, Part(step), monkeypatch)
        assert not torch.isin(another.sigmas, whole.sigmas).any()


def test_the_prior_has_noise_of_its_own(base: Fixture, sets: Path, monkeypatch: Any):
    ours, prior = asked(replace(base, prior=sets).make(), Part(0), monkeypatch)
    assert not torch.isin(prior.sigmas, ours.sigmas).any() and not torch.equal(prior.noise, ours.noise)


def test_captions_are_dropped_as_often_as_asked(base: Fixture, monkeypatch: Any):
    loss = replace(base, batch_size=10, config=LossConfig(caption_dropout=0.25)).make()
    unsaid = embedding_of(EMPTY_CAPTION)
    batches = [batch for step in range(60) for batch in asked(loss, Part(step), monkeypatch)]
    dropped = torch.cat([(batch.text == unsaid["text"]).all((1, 2)) for batch in batches])
    assert dropped.float().mean().item() == pytest.approx(0.25, abs=0.05)  # 0.018 is one sigma
    pooled = torch.cat([(batch.pooled == unsaid["pooled"]).all(1) for batch in batches])
    assert torch.equal(dropped, pooled)


def test_prior_preservation_is_a_weighted_sum(base: Fixture, tmp_path: Path):
    prior = make_sets(tmp_path / "prior", 3, shift=10)
    config = LossConfig(prior_weight=0.3, panel_weights=(1, 0))
    total, figures = replace(base, config=config, prior=prior).make()(Part(1), UNUSED)
    alone, none = replace(base, config=config).make()(Part(1), UNUSED)
    assert none == {} and figures.keys() == {"sets", "prior"}
    assert_close(figures["sets"], alone.detach())
    assert_close(total.detach(), figures["sets"] + 0.3 * figures["prior"])
    unweighted = replace(base, config=LossConfig(), prior=prior).make()(Part(1), UNUSED)[1]
    assert_close(figures["prior"], unweighted["prior"])  # panel weights are those of sets


# --- noise levels ---


@pytest.mark.parametrize("timesteps", ["logit_normal", "uniform", "mode"])
def test_noise_levels_are_drawn_as_asked(base: Fixture, timesteps: Any, monkeypatch: Any):
    config = LossConfig(timesteps=timesteps, timestep_mean=0.5, timestep_std=2.0, mode_scale=0.0)
    loss = replace(base, batch_size=50, config=config).make()
    sigmas = torch.cat([asked(loss, Part(step), monkeypatch)[0].sigmas for step in range(40)])
    if timesteps == "logit_normal":
        assert torch.logit(sigmas.double()).mean().item() == pytest.approx(0.5, abs=0.15)
        assert torch.logit(sigmas.double()).std().item() == pytest.approx(2.0, abs=0.1)
    else:  # without a scale, the mode draw is uniform too
        below = [(sigmas < q).float().mean().item() for q in (0.25, 0.5)]
        assert below == pytest.approx([0.25, 0.5], abs=0.04)


@pytest.mark.filterwarnings("ignore:data. panels lose detail:UserWarning")  # they are small, the grid is not
def test_the_shift_is_a_number_or_the_schedulers_by_resolution(base: Fixture, monkeypatch: Any):
    config = LossConfig(timesteps="uniform")
    (plain,) = asked(replace(base, config=config).make(), Part(0), monkeypatch)
    odds = lambda sigmas: sigmas / (1 - sigmas)  # noqa: E731
    (moved,) = asked(replace(base, config=config, shift=3.0).make(), Part(0), monkeypatch)
    assert_close(odds(moved.sigmas), 3 * odds(plain.sigmas), rtol=1e-4, atol=0)
    fixture = replace(base, config=config, shift=None, buckets=((128, 160),), batch_size=1)
    (flux,) = asked(fixture.make(), Part(0), monkeypatch)
    (plain,) = asked(replace(fixture, shift=1.0).make(), Part(0), monkeypatch)
    factor = torch.tensor(calculate_shift(8 * 20)).exp()  # tokens of 128 x 320 pixels
    assert_close(odds(flux.sigmas), factor * odds(plain.sigmas), rtol=1e-4, atol=0)
