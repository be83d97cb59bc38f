"""Latents as transformers read them, against the autoencoder and numbers by hand."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from dit_heads.families.latents import denormalised, encoded, normalised
from tests.saved import tiny_pipeline


def vae(**config: float | None) -> Any:
    return SimpleNamespace(config=SimpleNamespace(**config))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"scaling_factor": 2.0, "shift_factor": 0.5}, [1.0, 3.0]),
        ({"scaling_factor": 2.0, "shift_factor": None}, [2.0, 4.0]),
        ({"scaling_factor": 2.0}, [2.0, 4.0]),
    ],
    ids=["shift", "none", "unnamed"],
)
def test_latents_are_shifted_then_scaled_and_back(config: dict[str, float | None], expected: list[float]):
    latents = torch.tensor([1.0, 2.0])
    assert normalised(vae(**config), latents).tolist() == expected
    assert torch.equal(denormalised(vae(**config), torch.tensor(expected)), latents)


@torch.no_grad()
def test_pictures_are_encoded_by_the_mean_so_that_no_random_number_is_used():
    model: Any = tiny_pipeline().vae
    model.register_to_config(shift_factor=0.25, scaling_factor=1.5)
    pixels, before = torch.rand(2, 3, 16, 16) * 2 - 1, torch.get_rng_state()
    mean = model.encode(pixels).latent_dist.mean
    assert_close(encoded(model, pixels), (mean - 0.25) * 1.5)
    assert torch.equal(torch.get_rng_state(), before)


@torch.no_grad()
def test_what_was_encoded_decodes_as_the_autoencoder_alone_would():
    model: Any = tiny_pipeline().vae
    model.register_to_config(shift_factor=None, scaling_factor=1.5)
    pixels = torch.rand(1, 3, 16, 16) * 2 - 1
    assert_close(denormalised(model, encoded(model, pixels)), model.encode(pixels).latent_dist.mean)
