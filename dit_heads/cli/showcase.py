"""The main job: the same prompts and seeds unguided, with CFG, and guided by heads, side by side."""

import json
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from dit_heads import HeadGuidance, __version__
from dit_heads.cli.generate import EMBEDDED_TEXT_TOKENS
from dit_heads.errors import InputError
from dit_heads.heads.presets import FOLDER
from dit_heads.io.pictures import write_png
from dit_heads.io.sheets import Column, contact_sheet
from dit_heads.models import load_pipeline

PRESET = FOLDER / "embedded-sd3.json"
PROMPTS = (
    "a large red cube on grass in the day",
    "a small blue sphere and a large yellow cone on sand at sunset",
    "a large striped green pyramid on snow at night",
    "a small purple cylinder and a large shiny white cube on stone in the day",
)


@dataclass(frozen=True)
class Choice:
    """Heads, and how strongly they guide."""

    set: str
    scale: float
    softness: float

    def guidance(self, pipe: Any) -> HeadGuidance:
        """Guidance of `pipe` by these heads, to be attached."""
        return HeadGuidance(pipe, self.set, scale=self.scale, softness=self.softness)

    @property
    def label(self) -> str:
        return f"{self.set}\nscale {self.scale:g}, softness {self.softness:g}"


@dataclass(frozen=True)
class Preset:
    """What was measured to be good for one model; `provenance` says by which command and on what."""

    model: str
    heads: Choice
    block: Choice
    cfg: float
    steps: int
    provenance: dict[str, Any] = field(default_factory=dict)


def read_preset(path: Path) -> Preset:
    """A preset from JSON. Raises ValueError if parts are missing or wrong."""
    try:
        parts: dict[str, Any] = json.loads(path.read_text())
        choices = {name: Choice(**parts[name]) for name in ("heads", "block")}
        return Preset(**{**parts, **choices})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"preset: '{path}' is not a preset of head guidance: {error!r}") from error


def columns(preset: Preset) -> list[tuple[Column, float, Choice | None]]:
    """What each column is called, its CFG scale (1 is off) and the heads that guide it."""
    cfg, heads = preset.cfg, preset.heads
    return [
        (Column("no guidance", "CFG off, no heads"), 1.0, None),
        (Column("CFG", f"scale {cfg:g}"), cfg, None),
        (Column("heads of one block", preset.block.label), 1.0, preset.block),
        (Column("a few chosen heads", heads.label), 1.0, heads),
        (Column("CFG and chosen heads", f"CFG {cfg:g} and\n{heads.label}"), cfg, heads),
    ]


def draw_column(
    pipe: Any, prompts: Sequence[str], seed: int, steps: int, cfg: float, choice: Choice | None
) -> list[Image.Image]:
    """One picture a prompt; row i has seed + i whatever guides it."""
    with choice.guidance(pipe) if choice else nullcontext():
        return pipe(
            list(prompts),
            guidance_scale=cfg,
            num_inference_steps=steps,
            generator=[torch.Generator("cpu").manual_seed(seed + row) for row in range(len(prompts))],
            max_sequence_length=EMBEDDED_TEXT_TOKENS,
        ).images


def showcase(pipe: Any, preset: Preset, prompts: Sequence[str] = PROMPTS, seed: int = 0) -> Image.Image:
    """The sheet of all columns, one row a prompt."""
    labels, pictures, last = [], [], seed + len(prompts) - 1
    for label, cfg, choice in columns(preset):
        pipe.set_progress_bar_config(desc=f"{label.name:<20}")
        labels.append(label)
        pictures.append(draw_column(pipe, prompts, seed, preset.steps, cfg, choice))
    return contact_sheet(
        [list(row) for row in zip(*pictures, strict=True)],
        labels,
        prompts,
        title="One diffusion transformer, the same seeds, five ways to guide it",
        footer=f"{preset.model}, {preset.steps} steps, seeds {seed} to {last}. AI-generated.",
    )


def run_showcase(out: Path, seed: int = 0, preset_path: Path = PRESET) -> None:
    """Draw the sheet with the embedded model, write it to `out` and say where it is."""
    began = time.perf_counter()
    preset = read_preset(preset_path)
    sheet = showcase(load_pipeline(preset.model), preset, seed=seed)
    write_png(
        sheet, out, {"preset": asdict(preset), "prompts": PROMPTS, "seed": seed, "version": __version__}
    )
    print(f"wrote {out} in {time.perf_counter() - began:.0f} s")
