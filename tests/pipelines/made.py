"""Small whole pipelines, grids of small panels, and pictures to give them."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import FluxFillPipeline, FluxPipeline, StableDiffusion3Pipeline
from PIL import Image
from torch import Tensor
from transformers import CLIPTextModel

from dit_heads.loras.sets.grid import Grid
from tests.saved import tiny_pipeline

PAIR = Grid.row(2, height=16, width=16)
TRIO = Grid.row(3, height=16, width=16)
GRID = Grid((16, 32), (32, 16))
CAPTION = "a cat [LEFT] by day [MIDDLE] by dusk [RIGHT] by night"
OTHER = "a dog [LEFT] on sand [MIDDLE] on snow [RIGHT] on grass"
STEPS: dict[str, Any] = {"num_inference_steps": 3}


def sd3() -> StableDiffusion3Pipeline:
    """Composites of up to 64 x 64; pixels are twice the latents."""
    pipe = tiny_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def flux(kind: Any = FluxPipeline, channels: int = 16) -> Any:
    parts = tiny_pipeline().components
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=channels,
        out_channels=16,
        num_layers=1,
        num_single_layers=1,
        num_attention_heads=2,
        attention_head_dim=8,
        joint_attention_dim=32,
        pooled_projection_dim=16,
        guidance_embeds=True,
        axes_dims_rope=(2, 2, 4),
    )
    pipe = kind(
        transformer=transformer.eval(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=parts["vae"],
        text_encoder=CLIPTextModel(parts["text_encoder"].config).eval(),
        tokenizer=parts["tokenizer"],
        text_encoder_2=parts["text_encoder_3"],
        tokenizer_2=parts["tokenizer_3"],
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def flux_fill() -> Any:
    """Its transformer reads noisy latents, the kept picture's and the mask: 3 x 16 channels."""
    return flux(FluxFillPipeline, 48)


BASES: Any = {"sd3": sd3, "flux": flux}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def photo(seed: int, height: int = 16, width: int = 16) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def as_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image)


def latents_of(pipe: Any, image: Image.Image) -> Tensor:
    z = pipe.vae.encode(as_tensor(image)[None].to(pipe.dtype) * 2 - 1).latent_dist.mode()
    return (z - pipe.vae.config.shift_factor) * pipe.vae.config.scaling_factor


def given_first(pipe: Any, *images: Image.Image) -> tuple[Tensor, Tensor]:
    """Known latents and mask of composites whose first of three panels is given."""
    known = torch.cat([latents_of(pipe, image) for image in images])
    mask = torch.zeros(len(images), 4, 8, 24, dtype=torch.bool)
    mask[..., :8] = True
    return torch.cat([known, torch.zeros(len(images), 4, 8, 16)], -1).to(known), mask
