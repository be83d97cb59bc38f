"""Stock pipelines of few random weights that see a source picture, and their calls."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from dit_heads.pipelines.instruct import InstructPipeline
from dit_heads.training.widen import input_of, widen
from tests import tiny

SIDE, STEPS, TEXT_SCALE, IMAGE_SCALE = 16, 3, 3.0, 1.7
KINDS = [(family, way) for family in ("sd3", "flux") for way in ("channels", "tokens")]


def pipeline(family: str, way: str) -> Any:
    """A stock pipeline of few random weights, in float64, that sees a source in this way."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=family == "flux")
    transformer: Any = tiny.flux() if family == "flux" else tiny.sd3()
    if way == "channels":
        widen(transformer, 4)
        nn.init.normal_(transformer.get_submodule(input_of(transformer).path).weight.data, std=0.3)
    if way == "tokens" and family == "sd3":
        table = torch.randn(1, 256, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        transformer.pos_embed.pos_embed, transformer.pos_embed.pos_embed_max_size = table, 16
        transformer.register_to_config(pos_embed_max_size=16)
    kind = diffusers.FluxPipeline if family == "flux" else diffusers.StableDiffusion3Pipeline
    parts = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3")
    texts: Any = dict.fromkeys(parts[: 4 if family == "flux" else 6])
    pipe: Any = kind(transformer=transformer, scheduler=scheduler, vae=tiny.vae(4), **texts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def prompts(count: int = 2) -> dict[str, Tensor]:
    """Embeddings of instructions and of negative ones."""
    return {name: t for name, t in tiny.prompts(count).items() if name != "latents"}


def scales(family: str, text: float = TEXT_SCALE) -> dict[str, float]:
    return {"true_cfg_scale": text, "guidance_scale": 2.5} if family == "flux" else {"guidance_scale": text}


def sources(count: int = 2) -> list[Tensor]:
    return list(torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(4)))


def noise(family: str, count: int = 2) -> Tensor:
    shape = (count, 4, 8, 8)
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return pack(drawn) if family == "flux" else drawn


def pack(x: Tensor) -> Tensor:
    return diffusers.FluxPipeline._pack_latents(x, *x.shape)


def unpack(x: Tensor) -> Tensor:
    return diffusers.FluxPipeline._unpack_latents(x, SIDE, SIDE, 2)


def call(edit: InstructPipeline, family: str, **changed: Any) -> Tensor:
    """Latents by a call with both kinds of guidance."""
    given: dict[str, Any] = {"image": sources(), "image_guidance_scale": IMAGE_SCALE, **prompts()}
    given |= {"num_inference_steps": STEPS, "output_type": "latent", **scales(family)}
    given |= {"latents": noise(family), **changed}
    return edit(**{name: value for name, value in given.items() if value is not None}).images


@contextmanager
def counted(transformer: Any) -> Iterator[Counter]:
    """How many rows each call of the transformer's `forward` has, ours and the pipeline's."""
    found: Counter = Counter()
    hook = transformer.time_text_embed.register_forward_pre_hook(lambda _, args: found.update([len(args[0])]))
    try:
        yield found
    finally:
        hook.remove()
