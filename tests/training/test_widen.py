"""Wider inputs: zero at first, put back as they were, and read through stock pipelines."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from dit_heads.families.velocity import velocity_of
from dit_heads.training.widen import input_of, reading, widen, widened
from tests import tiny
from tests.saved import tiny_flux_pipeline, tiny_pipeline

KINDS = ["sd3", "sd3.5-medium", "flux"]


def predicted(model: Any, x: torch.Tensor, source: torch.Tensor | None = None) -> torch.Tensor:
    given = tiny.inputs(len(x))
    text, pooled = given["encoder_hidden_states"], given["pooled_projections"]
    with torch.no_grad():
        return velocity_of(model, text, pooled, source=source)(x, torch.full((len(x),), 0.5, dtype=x.dtype))


def latents(batch: int, channels: int = 4, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(batch, channels, 8, 8, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
def test_a_source_changes_nothing_at_first(kind: str):
    model, x = tiny.transformer(kind), latents(2)
    before = predicted(model, x)
    widen(model, 3)
    assert_close(predicted(model, x, latents(2, 3, seed=1)), before, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_source_adds_is_its_own_projection(kind: str):
    """By hand: the stock projection of the noisy latents plus the new weights on those of the source."""
    model = tiny.transformer(kind)
    old = model.get_submodule(input_of(model).path)
    widen(model, 2)
    new: Any = model.get_submodule(input_of(model).path)
    nn.init.normal_(new.weight[:, old.weight.shape[1] :].data)
    shape = (3, 8, 8) if isinstance(old, nn.Conv2d) else (3, 16)
    axis = 1 if isinstance(old, nn.Conv2d) else -1
    size = next(iter(old.weight.shape[1:2]))
    noisy, source = (
        torch.randn(shape[0], n, *shape[1:], dtype=torch.float64)
        if axis == 1
        else torch.randn(*shape, n, dtype=torch.float64)
        for n in (size, new.weight.shape[1] - size)
    )
    weight = new.weight[:, size:]
    added = nn.functional.conv2d(source, weight, stride=2) if axis == 1 else source @ weight.T
    assert_close(new(torch.cat([noisy, source], axis)), old(noisy) + added, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_the_config_says_what_a_new_model_has_to_read(kind: str):
    model = tiny.transformer(kind)
    widen(model, 2)
    again = type(model).from_config(model.config)
    again.load_state_dict(model.state_dict())  # the shapes of all weights, those of the output too
    assert again.out_channels == tiny.transformer(kind).out_channels


@pytest.mark.parametrize("kind", KINDS)
def test_afterwards_the_transformer_is_the_one_it_was(kind: str):
    model = tiny.transformer(kind)
    config, modules = dict(model.config), dict(model.named_modules())
    state = {name: t.clone() for name, t in model.state_dict().items()}
    with pytest.raises(ZeroDivisionError), widened(model, 4):
        assert dict(model.config) != config
        _ = 1 / 0
    assert dict(model.config) == config
    assert {n: id(m) for n, m in model.named_modules()} == {n: id(m) for n, m in modules.items()}
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())


def test_the_number_of_outputs_does_not_follow_that_of_inputs():
    """FLUX takes the one for the other where its config does not say how many outputs there are."""
    model: Any = tiny_flux_pipeline().transformer
    assert model.config.out_channels is None
    with widened(model, 4):
        assert (model.config.in_channels, model.config.out_channels) == (32, 16)
    assert model.config.out_channels is None


def test_what_cannot_be_widened_is_named():
    model: Any = tiny.flux()
    for extra in (0, -1):
        with pytest.raises(ValueError, match=f"extra: expected a whole number of at least 1, got {extra}"):
            widen(model, extra)
    model.x_embedder = nn.Sequential(model.x_embedder)
    with pytest.raises(ValueError, match="'x_embedder', got a Sequential; quantised and adapted ones"):
        widen(model, 1)
    with pytest.raises(ValueError, match="transformer: expected one of"):
        widen(nn.Linear(2, 2), 1)


@pytest.mark.parametrize("kind", ["sd3", "flux"])
def test_a_stock_pipeline_draws_by_a_source(kind: str):
    """By hand: Euler steps of the widened transformer on the noisy latents beside those of the source."""
    pipe: Any = tiny_pipeline() if kind == "sd3" else tiny_flux_pipeline()
    pipe.set_progress_bar_config(disable=True)
    model = pipe.transformer
    widen(model, 4)
    nn.init.normal_(model.get_submodule(input_of(model).path).weight.data, std=0.3)
    source, noise = (latents(1, seed=seed).repeat(1, 1, 2, 2).float() for seed in (1, 2))
    g = torch.Generator().manual_seed(0)
    text, pooled = (
        torch.randn(1, 3, 32, generator=g),
        torch.randn(1, 16 if kind == "flux" else 32, generator=g),
    )
    given = noise if kind == "sd3" else pipe._pack_latents(noise, 1, 4, 16, 16)
    with reading(model, source):
        drawn = pipe(
            prompt_embeds=text,
            pooled_prompt_embeds=pooled,
            latents=given,
            height=16 * pipe.vae_scale_factor,
            width=16 * pipe.vae_scale_factor,
            num_inference_steps=3,
            guidance_scale=1.0,
            output_type="latent",
        ).images
    x, sigmas = noise, pipe.scheduler.sigmas
    velocity = velocity_of(model, text, pooled, source=source)
    with torch.no_grad():
        for now, then in itertools.pairwise(sigmas):
            x = x + (then - now) * velocity(x, now[None])
    assert_close(drawn, x if kind == "sd3" else pipe._pack_latents(x, 1, 4, 16, 16), rtol=1e-4, atol=1e-4)
    assert_close(model.config.in_channels, 32 if kind == "flux" else 8)
