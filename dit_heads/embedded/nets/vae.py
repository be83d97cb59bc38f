"""The autoencoder: a small stock `AutoencoderKL` with 8x downsampling, trained as an optimal sigma-VAE.

The loss of a picture with N values is log MSE + beta * 2 / N * KL (arXiv 2006.13202, eq. 5 with the analytic
variance). Its first term is the PSNR itself, so dark and bright scenes count alike.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from diffusers import AutoencoderKL
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor

from dit_heads.errors import InputError
from dit_heads.training.loop import Part

LATENT_CHANNELS = 12


def make_vae() -> AutoencoderKL:
    """An autoencoder with random weights. Without attention, its cost is linear in the number of pixels."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=LATENT_CHANNELS,
        block_out_channels=(32, 64, 96, 96),  # pyright: ignore[reportArgumentType]
        down_block_types=("DownEncoderBlock2D",) * 4,  # pyright: ignore[reportArgumentType]
        up_block_types=("UpDecoderBlock2D",) * 4,  # pyright: ignore[reportArgumentType]
        layers_per_block=1,
        norm_num_groups=8,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        force_upcast=False,
        sample_size=128,
    )


def to_tensor(images: UInt8[np.ndarray, "b h w 3"]) -> Float[Tensor, "b 3 h w"]:
    """Pictures as tensors in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def psnr(a: Float[Tensor, "b c h w"], b: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
    """PSNR in decibels of each pair of pictures in [-1, 1]."""
    return 10 * torch.log10(4 / (a.clamp(-1, 1) - b.clamp(-1, 1)).pow(2).mean((1, 2, 3)))


class VaeLoss:
    """Loss on random crops of scenes. One in eight becomes an answer of a vision task, such as a mask."""

    def __init__(
        self,
        vae: AutoencoderKL,
        images: NDArray[np.uint8],
        batch: int = 16,
        crop: int = 64,
        beta: float = 0.1,
    ):
        self.vae, self.images, self.batch, self.crop, self.beta = vae, images, batch, crop, beta

    def __call__(self, part: Part, generator: torch.Generator) -> tuple[Tensor, dict[str, float | Tensor]]:
        x = self.crops(generator).to(self.vae.device).contiguous(memory_format=torch.channels_last)
        posterior = self.vae.encode(x).latent_dist  # pyright: ignore[reportAttributeAccessIssue]
        mean, std = posterior.mean.float(), posterior.std.float()
        z = mean + std * torch.randn(mean.shape, generator=generator).to(mean.device)
        y = self.vae.decode(z).sample.float()  # pyright: ignore[reportAttributeAccessIssue]
        mse = (y - x).pow(2).mean((1, 2, 3))
        kl = 0.5 * (mean.pow(2) + std.pow(2) - 1 - 2 * std.log()).sum((1, 2, 3))
        loss = ((mse + 1e-5).log() + self.beta * 2 / x[0].numel() * kl).mean()
        return loss, {"psnr": (10 * (4 / mse).log10()).mean(), "kl": kl.mean() / mean[0].numel()}

    def crops(self, generator: torch.Generator) -> Float[Tensor, "b 3 s s"]:
        """A batch of crops in [-1, 1]."""
        c, height, width = self.crop, *self.images.shape[1:3]
        which = torch.randint(len(self.images), (self.batch,), generator=generator).tolist()
        top = torch.randint(height - c + 1, (self.batch,), generator=generator).tolist()
        left = torch.randint(width - c + 1, (self.batch,), generator=generator).tolist()
        picked = [self.images[i, t : t + c, s : s + c] for i, t, s in zip(which, top, left, strict=True)]
        x = to_tensor(np.stack(picked))
        odd = torch.rand(self.batch, generator=generator)
        for k in torch.nonzero(odd < 0.125).flatten().tolist():
            x[k] = _as_task_output(x[k], generator)
        return x


def _as_task_output(x: Tensor, generator: torch.Generator) -> Tensor:
    """A crop [3, S, S] as a mask, with a painted frame, or with its colours exchanged."""
    kind = int(torch.randint(3, (1,), generator=generator))
    if kind == 0:
        grey = x.mean(0, keepdim=True)
        return (grey > grey.mean()).float().mul(2).sub(1).expand(3, -1, -1)
    if kind == 1:
        paint = torch.rand(3, 1, 1, generator=generator) * 2 - 1
        a, b, c, d = torch.randint(4, x.shape[-1] - 4, (4,), generator=generator).sort().values.tolist()
        framed = bool(torch.rand(1, generator=generator) < 0.5)
        background = (x if framed else paint.flip(0).expand_as(x)).clone()
        inside = background[:, a + 4 : c - 4, b + 4 : d - 4].clone()
        background[:, a:c, b:d] = paint
        background[:, a + 4 : c - 4, b + 4 : d - 4] = inside
        return background
    return x[torch.randperm(3, generator=generator)] * (1 if torch.rand(1, generator=generator) < 0.5 else -1)


@torch.no_grad()
def latent_statistics(vae: AutoencoderKL, images: NDArray[np.uint8]) -> tuple[float, float]:
    """Shift and scaling factor that give the latents of pictures zero mean and unit variance."""
    batches = (to_tensor(images[i : i + 16]).to(vae.device) for i in range(0, len(images), 16))
    z = torch.cat([vae.encode(x).latent_dist.mean for x in batches])  # pyright: ignore[reportAttributeAccessIssue]
    return z.mean().item(), 1 / z.std().item()


@torch.no_grad()
def reconstruction_psnr(vae: AutoencoderKL, images: NDArray[np.uint8]) -> float:
    """Mean PSNR of reconstructions from the mode of the posterior."""
    values = []
    for i in range(0, len(images), 16):
        x = to_tensor(images[i : i + 16]).to(memory_format=torch.channels_last)
        y = vae.decode(vae.encode(x).latent_dist.mean).sample  # pyright: ignore[reportAttributeAccessIssue]
        values.append(psnr((((y.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1), x))
    mean = torch.cat(values).mean().item()
    if not math.isfinite(mean):
        raise InputError("vae: expected finite reconstructions, got PSNR " + str(mean))
    return mean
