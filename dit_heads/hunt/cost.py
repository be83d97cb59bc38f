"""What the gradient screen takes, told before it runs: block evaluations and bytes of memory.

With frozen weights and gradient checkpointing the memory is that of block inputs, of one block at a time in
full, and of the decoder at full resolution, which is most of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dit_heads.errors import InputError
from dit_heads.families import HeadLayout, layout_of

PIXELS = 2 * 1024 * 1024  # differentiated side by side unless a search says otherwise
# Tensors of [tokens, width] that the full backward pass of one block has at its peak, and tensors of
# [channels, height, width] beside the inputs of norms and activations that one of the decoder's blocks has.
# Measured: tests/hunt/test_cost.py.
_OF_BLOCK, _OF_DECODER = 30, 6


@dataclass(frozen=True)
class ScreenCost:
    """What the screen of a round takes.

    Attributes:
        pictures: number of pictures that are differentiated.
        levels: number of noise levels of each picture.
        micro_batch: number of pictures that are differentiated side by side.
        evaluations: evaluations of a block on one picture: clean, perturbed, and once more for its gradient.
        weights: bytes of all models of the pipeline.
        activations: bytes beside the weights at the peak, without those of the objective.
    """

    pictures: int
    levels: int
    micro_batch: int
    evaluations: int
    weights: int
    activations: int

    def __str__(self) -> str:
        return (
            f"screen of a round: {self.pictures} x {self.levels} gradients (pictures x noise levels), "
            f"{self.evaluations} block evaluations; {self.micro_batch} side by side take about "
            f"{self.activations / 1e9:.2g} GB beside {self.weights / 1e9:.2g} GB of weights"
        )


def screen_cost(
    pipe: Any, call: Mapping[str, Any], prompt: str, pictures: int, micro_batch: int | None, levels: int = 3
) -> ScreenCost:
    """Compute the cost of the screen of one round. One prompt is encoded; the transformer is not evaluated.

    Args:
        pipe: the pipeline of the search.
        call: further arguments of its calls.
        prompt: one of the prompts of the search.
        pictures: number of pictures that are screened.
        micro_batch: number of pictures that are differentiated side by side; None for the default.
        levels: number of noise levels.

    Raises:
        InputError: for a family whose latents cannot be decoded here.
    """
    first_call, layout = _first_call(pipe, call, prompt), layout_of(pipe.transformer)
    size = picture_size(pipe, first_call)
    side_by_side = min(pictures, micro_batch or micro_batch_of(size))
    models = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    return ScreenCost(
        pictures=pictures,
        levels=levels,
        micro_batch=side_by_side,
        evaluations=3 * levels * pictures * len(layout.blocks),
        weights=sum(t.numel() * t.element_size() for model in models for t in model.parameters()),
        activations=side_by_side * _bytes_of_picture(pipe, layout, first_call, size),
    )


def micro_batch_of(size: tuple[int, int]) -> int:
    """Number of pictures of this height and width, in pixels, that are differentiated side by side by
    default."""
    return max(1, PIXELS // (size[0] * size[1]))


def picture_size(pipe: Any, call: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width, in pixels, of the pictures of a call of the transformer.

    Raises:
        InputError: for a family whose latents cannot be decoded here.
    """
    layout = layout_of(pipe.transformer)
    if layout.family.pipelines is None:
        raise InputError(f"pipe: the fast search cannot decode latents of a {type(pipe).__name__}")
    height, width = layout.family.pipelines.latent_size(call)
    return height * pipe.vae_scale_factor, width * pipe.vae_scale_factor


def _bytes_of_picture(pipe: Any, layout: HeadLayout, call: Mapping[str, Any], size: tuple[int, int]) -> int:
    """At the peak: the inputs of all transformer blocks, and the larger of one block and the decoder."""
    latents, config = call[layout.family.arguments.latents], pipe.transformer.config
    image_tokens = latents[0].numel() // (config.in_channels * config.patch_size**2)
    tokens = image_tokens + layout.family.text_length(call)
    of_tensor = tokens * config.num_attention_heads * config.attention_head_dim * latents.element_size()
    return len(layout.blocks) * of_tensor + max(_OF_BLOCK * of_tensor, _decoder_bytes(pipe.vae, size))


def _decoder_bytes(vae: Any, size: tuple[int, int]) -> int:
    """The largest block of an AutoencoderKL's decoder, run in full, and what is kept of the others."""
    channels = vae.config.block_out_channels[::-1]
    resnets, of_blocks, kept, before = vae.config.layers_per_block + 1, [], 0, channels[0]
    for index, out in enumerate(channels):
        pixels = (size[0] * size[1]) >> 2 * (len(channels) - 1 - index)
        norms = 2 * (before + out) + (resnets - 1) * 4 * out  # inputs of norms and activations
        upsampled = 4 * out if index < len(channels) - 1 else 0
        of_blocks.append(pixels * (norms + upsampled + _OF_DECODER * max(before, out)))
        kept += pixels * before
        before = out
    output = size[0] * size[1] * (2 * channels[-1] + 3)
    return (max(of_blocks) + kept + output) * vae.dtype.itemsize


class _Seen(Exception):
    """The first call of the transformer was seen, and the run can end."""


@torch.no_grad()
def _first_call(pipe: Any, call: Mapping[str, Any], prompt: str) -> dict[str, Any]:
    """The arguments of the transformer in a run of one picture."""
    found: dict[str, Any] = {}

    def see(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.update(kwargs)
        raise _Seen

    handle = pipe.transformer.register_forward_pre_hook(see, with_kwargs=True)
    try:
        pipe([prompt], num_inference_steps=1, output_type="latent", **call)
    except _Seen:
        return found
    finally:
        handle.remove()
    raise InputError(f"pipe: {type(pipe).__name__} did not call its transformer")
