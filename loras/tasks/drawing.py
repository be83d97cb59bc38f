"""The arguments with which pipelines generate pictures during a run."""

from __future__ import annotations

from typing import Any

import torch

from dit_heads.families import pipelines_of
from dit_heads.loras.base import Encoders
from dit_heads.loras.config import WatchConfig
from dit_heads.loras.tasks.task import EMPTY_CAPTION


def sampling_arguments(watch: WatchConfig, height: int, width: int, seed: int) -> dict[str, Any]:
    """Arguments of a pipeline's call, but for the prompt.

    Args:
        watch: number of steps and guidance scale.
        height, width: of the picture, in pixels.
        seed: of its noise.
    """
    call: dict[str, Any] = {
        "height": height,
        "width": width,
        "num_inference_steps": watch.sample_steps,
        "generator": torch.Generator().manual_seed(seed),
    }
    return call if watch.guidance_scale is None else call | {"guidance_scale": watch.guidance_scale}


def prompt_arguments(pipe: Any, encoders: Encoders, prompt: str) -> dict[str, Any]:
    """A prompt as embeddings, with the empty negative one where a pipeline reads it.

    Args:
        pipe: the pipeline to be called.
        encoders: of the run.
        prompt: any text.
    """
    found = _embeddings(pipe, encoders, prompt, "")
    if not pipelines_of(pipe.transformer).distilled:
        found |= _embeddings(pipe, encoders, EMPTY_CAPTION, "negative_")
    return found


def _embeddings(pipe: Any, encoders: Encoders, prompt: str, prefix: str) -> dict[str, Any]:
    text, pooled = (part.to(pipe.device) for part in encoders.embed([prompt]))
    return {f"{prefix}prompt_embeds": text, f"{prefix}pooled_prompt_embeds": pooled}
