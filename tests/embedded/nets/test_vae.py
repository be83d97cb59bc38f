"""PSNR, latent statistics, crops and the autoencoder's loss against numbers worked out by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dit_heads.embedded.nets.vae import (
    LATENT_CHANNELS,
    VaeLoss,
    latent_statistics,
    make_vae,
    psnr,
    reconstruction_psnr,
    to_tensor,
)
from dit_heads.training.loop import Part

IMAGES = np.random.default_rng(0).integers(256, size=(19, 32, 32, 3), dtype=np.uint8)


class FakeVae:
    """Decodes to the picture plus `error`; its posterior has one mean and deviation."""

    device = torch.device("cpu")

    def __init__(self, mean: float, std: float, error: float) -> None:
        self.mean, self.std, self.error = mean, std, error

    def encode(self, x: Tensor) -> Any:
        self.x, shape = x, (len(x), 12, 8, 8)
        posterior = SimpleNamespace(mean=torch.full(shape, self.mean), std=torch.full(shape, self.std))
        return SimpleNamespace(latent_dist=posterior)

    def decode(self, z: Tensor) -> Any:
        return SimpleNamespace(sample=self.x + self.error)


def test_psnr_by_hand():
    a = torch.zeros(2, 3, 4, 4)
    b = torch.stack([torch.full((3, 4, 4), 0.5), torch.full((3, 4, 4), -0.02)])
    assert psnr(a, b).tolist() == pytest.approx([20 * math.log10(2 / 0.5), 40.0], abs=1e-4)
    assert torch.equal(psnr(a, b + 5), psnr(a, torch.ones_like(b)))  # pictures end at 1


def test_to_tensor_ends_and_order():
    picture = np.array([[[[0, 255, 51], [255, 0, 204]]]], np.uint8)  # one row of two pixels
    torch.testing.assert_close(to_tensor(picture)[0, :, 0], torch.tensor([[-1, 1], [1, -1], [-0.6, 0.6]]))


@pytest.mark.parametrize(("height", "width"), [(32, 32), (32, 48), (16, 64)])
def test_shapes(height: int, width: int):
    torch.manual_seed(0)
    vae: Any = make_vae()
    with torch.no_grad():
        mean = vae.encode(torch.zeros(2, 3, height, width)).latent_dist.mean
        assert mean.shape == (2, LATENT_CHANNELS, height // 8, width // 8)
        assert vae.decode(mean).sample.shape == (2, 3, height, width)


def test_latent_statistics_whiten_the_latents():
    torch.manual_seed(0)
    vae: Any = make_vae()
    shift, scale = latent_statistics(vae, IMAGES)
    with torch.no_grad():
        latents = vae.encode(to_tensor(IMAGES)).latent_dist.mean.double().numpy()
    white = (latents - shift) * scale
    assert white.mean() == pytest.approx(0, abs=1e-4)
    assert white.std() == pytest.approx(1, abs=1e-3)
    assert abs(shift) > 1e-3 and abs(scale - 1) > 0.1  # it was not so before


def test_reconstruction_psnr_is_that_of_whole_rounded_pictures():
    vae: Any = FakeVae(0.0, 1.0, 3 / 127.5)
    gray = np.full((17, 32, 32, 3), 100, np.uint8)
    assert reconstruction_psnr(vae, gray) == pytest.approx(20 * math.log10(255 / 3), abs=1e-3)
    vae = FakeVae(0.0, 1.0, math.nan)
    with pytest.raises(ValueError, match="expected finite reconstructions"):
        reconstruction_psnr(vae, gray)


def test_loss_by_hand():
    vae: Any = FakeVae(mean=0.5, std=2.0, error=0.1)
    loss, figures = VaeLoss(vae, IMAGES, batch=4, crop=16, beta=0.2)(
        Part(0), torch.Generator().manual_seed(0)
    )
    kl = 12 * 8 * 8 * 0.5 * (0.25 + 4 - 1 - math.log(4))  # of N(0.5, 2) from N(0, 1), a picture
    expected = math.log(0.01 + 1e-5) + 0.2 * 2 / (3 * 16 * 16) * kl
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    assert float(figures["psnr"]) == pytest.approx(10 * math.log10(4 / 0.01), abs=1e-3)
    assert float(figures["kl"]) == pytest.approx(kl / (12 * 8 * 8), rel=1e-5)


def test_most_crops_are_windows_of_a_picture_and_the_others_stay_in_range():
    rows, columns = np.mgrid[:32, :32].astype(np.uint8)
    images = np.stack([np.stack([rows, columns, np.full_like(rows, k)], -1) for k in range(5)])
    loss = VaeLoss(make_vae(), images, batch=400, crop=16)
    crops = loss.crops(torch.Generator().manual_seed(0))
    assert crops.shape == (400, 3, 16, 16) and crops.abs().max() <= 1
    values = ((crops + 1) * 127.5).round().int()
    origin = values[:, :, :1, :1]
    down, across = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    windows = origin + torch.stack([down, across, torch.zeros_like(down)])
    plain = (values == windows).flatten(1).all(1)
    assert plain.float().mean().item() == pytest.approx(7 / 8, abs=0.05)
    corners = origin[plain].flatten(1)
    assert corners.amin(0).tolist() == [0, 0, 0] and corners.amax(0).tolist() == [16, 16, 4]
    flat = crops[~plain].flatten(2)
    assert any(set(c.unique().tolist()) == {-1.0, 1.0} for c in flat)  # masks are among them
