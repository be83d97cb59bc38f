"""Pictures of requests by pipelines of their own, to compare those of the engine with."""

from pathlib import Path
from typing import Any

import torch

from dit_heads import HeadGuidance
from dit_heads.demo.drawing import Drawing
from dit_heads.demo.engine import Engine
from dit_heads.loras import Lora as Change
from dit_heads.loras import LowRank, write_lora
from tests.saved import tiny_pipeline

PLACES = ("0.attn.to_q", "1.attn.to_v", "2.attn.to_k")


def visible_loras(folder: Path) -> list[Path]:
    """Three LoRAs of the tiny model that change a picture visibly."""
    files = []
    for number, place in enumerate(PLACES):
        g = torch.Generator().manual_seed(number)
        change = LowRank(torch.randn(2, 32, generator=g), torch.randn(32, 2, generator=g))
        files.append(folder / f"{number}.safetensors")
        write_lora(files[-1], Change({f"transformer_blocks.{place}": change}))
    return files


def alone(drawing: Drawing) -> bytes:
    """The picture of a request by a pipeline of its own, without the engine."""
    pipe: Any = tiny_pipeline()
    s = drawing.settings
    pipe.set_progress_bar_config(disable=True)
    for number, lora in enumerate(drawing.loras):
        pipe.load_lora_weights(str(lora.path), adapter_name=f"a{number}")
    if drawing.loras:
        names = [f"a{number}" for number in range(len(drawing.loras))]
        pipe.set_adapters(names, [lora.scale for lora in drawing.loras])
    guidance = HeadGuidance(pipe, s.heads, scale=s.scale, softness=s.softness) if s.heads else None
    try:
        if guidance:
            guidance.attach()
        generator = torch.Generator().manual_seed(s.seed)
        call = {"num_inference_steps": s.steps, "guidance_scale": s.guidance_scale, "generator": generator}
        return pipe(s.prompt, **call).images[0].tobytes()
    finally:
        if guidance:
            guidance.detach()


def lone(model, drawing: Drawing) -> bytes:
    """The picture of a request by an engine that does nothing else."""
    with Engine({model: tiny_pipeline}) as engine:
        return engine.submit(model, drawing).wait(60).image.tobytes()
