"""The sheet of the `showcase` command: one row per prompt, one column per kind of guidance."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from dit_heads import HeadGuidance, __version__
from dit_heads.cli.draw import finite_pictures
from dit_heads.embedded import TEXT_TOKENS
from dit_heads.heads.presets import FOLDER, Preset, PresetFile, read_presets
from dit_heads.io.pictures import write_png
from dit_heads.io.sheets import Column, contact_sheet
from dit_heads.models import load_pipeline
from dit_heads.settings import as_mapping

PRESETS = FOLDER / "embedded-sd3.json"
CFG = 4.0
PROMPTS = (
    "a large red cube on grass in the day",
    "a small blue sphere and a large yellow cone on sand at sunset",
    "a large striped green pyramid on snow at night",
    "a small purple cylinder and a large shiny white cube on stone in the day",
)


@dataclass(frozen=True)
class Guided:
    """A column of the sheet.

    Attributes:
        label: its heading.
        cfg: its CFG scale; 1 is off.
        preset: the heads that guide it, or None.
    """

    label: Column
    cfg: float
    preset: Preset | None = None


def columns(heads: Preset, block: Preset, cfg: float = CFG) -> list[Guided]:
    """The columns from left to right, for a few chosen heads and for a whole block."""
    return [
        Guided(Column("no guidance", "CFG off, no heads"), 1.0),
        Guided(Column("CFG", f"scale {cfg:g}"), cfg),
        Guided(Column("heads of one block", _strength(block)), 1.0, block),
        Guided(Column("a few chosen heads", _strength(heads)), 1.0, heads),
        Guided(Column("CFG and chosen heads", f"CFG {cfg:g} and\n{_strength(heads)}"), cfg, heads),
    ]


def draw_column(
    pipe: Any, prompts: Sequence[str], seed: int, steps: int, column: Guided
) -> list[Image.Image]:
    """One picture per prompt. Row i has the seed `seed + i` in every column."""
    preset = column.preset
    guide = (
        HeadGuidance(pipe, preset.head_set, scale=preset.scale, softness=preset.softness) if preset else None
    )
    with guide or nullcontext():
        return finite_pictures(
            pipe,
            prompt=list(prompts),
            guidance_scale=column.cfg,
            num_inference_steps=steps,
            generator=[torch.Generator("cpu").manual_seed(seed + row) for row in range(len(prompts))],
            max_sequence_length=TEXT_TOKENS,
        )


def showcase(
    pipe: Any, presets: PresetFile, prompts: Sequence[str] = PROMPTS, seed: int = 0, steps: int = 28
) -> Image.Image:
    """The sheet of all columns, with one row per prompt."""
    labels, pictures, last = [], [], seed + len(prompts) - 1
    for column in columns(presets["general"], presets["general, one block"]):
        pipe.set_progress_bar_config(desc=f"{column.label.name:<20}")
        labels.append(column.label)
        pictures.append(draw_column(pipe, prompts, seed, steps, column))
    return contact_sheet(
        [list(row) for row in zip(*pictures, strict=True)],
        labels,
        prompts,
        title="One diffusion transformer, the same seeds, five ways to guide it",
        footer=f"{presets.model}, {steps} steps, seeds {seed} to {last}. AI-generated.",
    )


def write_showcase(out: Path, seed: int, steps: int) -> None:
    """Generate the sheet with the embedded model and write it, with its settings, to `out`."""
    presets = read_presets(PRESETS)
    sheet = showcase(load_pipeline(presets.model), presets, seed=seed, steps=steps)
    made_of = {"preset": as_mapping(presets), "prompts": PROMPTS, "seed": seed, "steps": steps}
    write_png(sheet, out, {**made_of, "cfg": CFG, "version": __version__})


def _strength(preset: Preset) -> str:
    return f"{preset.head_set}\nscale {preset.scale:g}, softness {preset.softness:g}"
