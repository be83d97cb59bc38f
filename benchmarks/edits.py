"""Instructions with pictures in them on scenes of the test split: `python benchmarks/edits.py --loras RUN`.

Each run of the task multimodal paints subjects in new scenes, edits, and both at once. The judge, which
nothing here was trained against, says whether subjects keep shape, colour and texture, and whether the
instruction is followed (`dit_heads.embedded.fidelity`). Pixels outside of the change, where the source and
the exact result are equal, are compared with that result. Beside the runs stand the autoencoder's round trip
of the right result, which no model of latents can beat, and what is already there: the source, or the
reference for a blank canvas. Runs whose folders differ in a last `-0`, `-1`, ... are seeds of one setting and
get a row together.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import count as numbers
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from dit_heads.embedded.edits import KINDS, Edit, Kind, edit_of
from dit_heads.embedded.evaluate import cell
from dit_heads.embedded.export import load_judge
from dit_heads.embedded.fidelity import fidelity
from dit_heads.embedded.nets.vae import to_tensor
from dit_heads.embedded.world.render import render
from dit_heads.embedded.world.scenes import HELD_OUT, Scene
from dit_heads.io.atomic import write_text
from dit_heads.io.pictures import write_png
from dit_heads.io.sheets import Column, contact_sheet
from dit_heads.loras.weights.files import run_settings
from dit_heads.models import load_pipeline
from dit_heads.pipelines.multimodal import MultimodalInstructPipeline, with_multimodal_lora
from dit_heads.tasks.metrics.preservation import likeness
from dit_heads.tasks.multimodal import MultimodalInstruction

LEAST_OUTSIDE = 0.05  # of a picture's pixels; with fewer outside of the change, they are not compared
EXAMPLES = 8  # instructions of a sheet
PERCENT = ("identity", "shape", "colour", "texture", "instruction")
PIXELS = {"PSNR": 2, "SSIM": 3, "L1": 4}  # digits
Row = Mapping[str, float]
Pictures = Float[Tensor, "b 3 128 128"]  # in [-1, 1], on the CPU


@dataclass(frozen=True)
class Case:
    """An instruction with its pictures, uint8 [128, 128, 3]."""

    name: str
    edit: Edit
    target: np.ndarray
    source: np.ndarray | None
    references: tuple[np.ndarray, ...]

    @property
    def outside(self) -> np.ndarray | None:
        """The pixels that the change leaves as they are, if there are enough."""
        if self.source is None:
            return None
        same = (self.source == self.target).all(-1)
        return same if same.mean() >= LEAST_OUTSIDE else None


def cases(kind: Kind, count: int, held_out: bool = False, workers: int = 1) -> list[Case]:
    """The first instructions of a task about the test split, or those whose subject, or whose scene where
    they have none, shows a combination of colour and shape that training never does."""
    every = ((k, edit_of("test", kind, k, held_out)) for k in numbers())
    asked = list(islice(((k, e) for k, e in every if not held_out or _is_new(e)), count))
    scenes = list(dict.fromkeys(scene for _, edit in asked for scene in _scenes(edit)))
    if workers > 1:
        with ProcessPoolExecutor(workers) as pool:
            images = pool.map(_image, scenes, chunksize=16)
            drawn = dict(zip(scenes, images, strict=True))
    else:
        drawn = {scene: _image(scene) for scene in scenes}
    what = "held-out scene" if held_out else "scene"
    return [
        Case(
            f"{what} {k}",
            edit,
            drawn[edit.target],
            None if edit.source is None else drawn[edit.source],
            tuple(drawn[scene] for scene in edit.references),
        )
        for k, edit in asked
    ]


def _scenes(edit: Edit) -> list[Scene]:
    return [edit.target, *([] if edit.source is None else [edit.source]), *edit.references]


def _is_new(edit: Edit) -> bool:
    shown = edit.references or (edit.target,)
    return any((solid.colour, solid.shape) in HELD_OUT for scene in shown for solid in scene.solids)


def _image(scene: Scene) -> np.ndarray:
    return render(scene).image


# --- results ---


def painted(paint: MultimodalInstructPipeline, asked: Sequence[Case], batch: int, **call: Any) -> Pictures:
    """What a model makes of instructions of one task. Noise depends on a case's place alone."""
    paint.pipe.set_progress_bar_config(disable=True)
    parts = []
    for at in tqdm(range(0, len(asked), batch), desc="painting", leave=False):
        some = asked[at : at + batch]
        sources = [case.source for case in some if case.source is not None]
        images = paint(
            [case.edit.prompt for case in some],
            [list(case.references) for case in some],
            sources or None,
            generator=[torch.Generator().manual_seed(at + k) for k in range(len(some))],
            output_type="pt",
            **call,
        ).images
        parts.append(images.float().cpu() * 2 - 1)
    return torch.cat(parts)


@torch.no_grad()
def round_trip(vae: Any, asked: Sequence[Case], batch: int) -> Pictures:
    """The right results after the autoencoder."""
    parts = []
    for at in range(0, len(asked), batch):
        pixels = to_tensor(np.stack([case.target for case in asked[at : at + batch]])).to(
            vae.device, vae.dtype
        )
        parts.append(vae.decode(vae.encode(pixels).latent_dist.mode()).sample.clamp(-1, 1).float().cpu())
    return torch.cat(parts)


def already_there(asked: Sequence[Case]) -> Pictures:
    """The source of each instruction, or its first reference."""
    return to_tensor(np.stack([c.references[0] if c.source is None else c.source for c in asked]))


def load_runs(folders: Sequence[Path], device: str) -> Iterator[tuple[str, MultimodalInstructPipeline]]:
    """The pipeline of each run with its name, one after the other."""
    for folder in folders:
        file = folder / "lora.safetensors"
        pipe = load_pipeline(str(run_settings(file).get("model", "embedded")), "float32", device)
        yield folder.name, with_multimodal_lora(pipe, file)


# --- figures ---


def measured(judge: Any, asked: Sequence[Case], pictures: Pictures) -> Sequence[Row]:
    """The figures of each result, as shares and decibels."""
    rows = fidelity(judge, pictures, [case.edit for case in asked])
    found = (pictures / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    for case, row, picture in zip(asked, rows, found, strict=True):
        if case.outside is not None:
            row |= likeness(picture, case.target / np.float32(255), case.outside)
    return rows


def pooled_interval(values: Float[np.ndarray, "runs cases"], rounds: int = 2000) -> tuple[float, float]:
    """95 % bootstrap interval of a mean over runs and cases, both of which are resampled."""
    rng, (runs, count) = np.random.default_rng(0), values.shape
    means = [
        values[np.ix_(rng.integers(runs, size=runs), rng.integers(count, size=count))].mean()
        for _ in range(rounds)
    ]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def table(kind: Kind, every: Mapping[str, Sequence[Row]]) -> Iterator[str]:
    """The lines of a task's table, seeds of one setting together after their rows."""
    any_row = {name for rows in every.values() for row in rows for name in row}
    shown = {name: 1 for name in PERCENT} | {n: d for n, d in PIXELS.items() if n in any_row}
    compared = sum("PSNR" in row for row in next(iter(every.values())))
    units = {name: f"{', dB' * (name == 'PSNR')} outside ({compared})" for name in PIXELS}
    yield f"| {kind} | {' | '.join(name + units.get(name, ', %') for name in shown)} |"
    yield f"|---|{'---|' * len(shown)}"
    for name, rows in every.items():
        yield f"| {name} | {' | '.join(_cell([rows], figure, digits) for figure, digits in shown.items())} |"
    for name, runs in settings_of(every).items():
        cells = " | ".join(_cell(runs, figure, digits) for figure, digits in shown.items())
        yield f"| {name}, {len(runs)} seeds | {cells} |"


def settings_of(every: Mapping[str, Sequence[Row]]) -> dict[str, list[Sequence[Row]]]:
    """The rows of runs that differ in their seed alone: `joint-0, 20 steps` and `joint-1, 20 steps`."""
    found: dict[str, list[Sequence[Row]]] = {}
    for name, rows in every.items():
        if seed := re.fullmatch(r"(.+)-\d+(, \d+ steps?)", name):
            found.setdefault("".join(seed.groups()), []).append(rows)
    return {name: runs for name, runs in found.items() if len(runs) > 1}


def _cell(runs: Sequence[Sequence[Row]], figure: str, digits: int) -> str:
    scale = 100 if figure in PERCENT else 1
    values = np.array([[scale * row[figure] for row in rows if figure in row] for rows in runs])
    if not values.size:
        return "-"
    if len(runs) == 1:
        return cell(values[0], digits)
    low, high = pooled_interval(values)
    return f"{values.mean():.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def changes(asked: Sequence[Case], every: Mapping[str, Sequence[Row]]) -> Iterator[str]:
    """A table of how often the instruction is followed, by what it changes."""
    sorts = sorted({case.edit.what for case in asked})
    if len(sorts) == 1:
        return
    at = {what: [k for k, case in enumerate(asked) if case.edit.what == what] for what in sorts}
    yield f"\n| followed, % | {' | '.join(f'{what} ({len(at[what])})' for what in sorts)} |"
    yield f"|---|{'---|' * len(sorts)}"
    for name, rows in every.items():
        shares = [100 * np.mean([rows[k]["instruction"] for k in at[what]]) for what in sorts]
        yield f"| {name} | {' | '.join(f'{share:.1f}' for share in shares)} |"


def sheet(kind: Kind, asked: Sequence[Case], every: Mapping[str, Pictures]) -> Image.Image:
    """Sources, references, right results and those that were painted, side by side."""
    blank = np.zeros_like(asked[0].target)
    results = {
        name: ((p[: len(asked)] / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
        for name, p in every.items()
    }
    cells = []
    for k, case in enumerate(asked):
        known = [case.source, *case.references[:1], *([] if case.references else [None]), case.target]
        pictures = [*known, *(found[k] for found in results.values())]
        cells.append([Image.fromarray(blank if one is None else one) for one in pictures])
    columns = [Column(name) for name in ("source", "reference", "right", *results)]
    names = [("picture",) * len(case.references) for case in asked]
    words = [MultimodalInstruction.of(c.edit.prompt, n).text for c, n in zip(asked, names, strict=True)]
    return contact_sheet(cells, columns, words, title=kind)


def main(
    loras: tuple[Path, ...] = (),
    tasks: tuple[Kind, ...] = tuple(KINDS),
    count: int = 300,
    steps: tuple[int, ...] = (20,),
    guidance: float = 1.0,
    image_guidance: float = 1.0,
    held_out: bool = False,
    batch: int = 32,
    device: str = "auto",
    workers: int = os.cpu_count() or 1,
    out: Path | None = None,
    sheets: Path | None = None,
) -> None:
    """Print a table a task.

    Args:
        loras: Folders of runs of the task multimodal.
        tasks: What is asked.
        count: Number of instructions a task.
        steps: Numbers of inference steps.
        guidance: Guidance towards the instruction; 1 turns it off.
        image_guidance: Guidance towards the source; 1 turns it off.
        held_out: Ask about combinations of colour and shape that training never shows.
        batch: Number of pictures that are painted at once.
        device: Of the models: auto, which is cuda where there is one, cpu, cuda, ...
        workers: Number of processes that render scenes.
        out: JSON file for the figures of each picture.
        sheets: Folder for pictures of the first results of each task.
    """
    asked: dict[Kind, list[Case]] = {kind: cases(kind, count, held_out, workers) for kind in tasks}
    judge, vae = load_judge(), load_pipeline("embedded", "float32", device).vae
    pictures: dict[Kind, dict[str, Pictures]] = {
        kind: {"autoencoder": round_trip(vae, some, batch), "unchanged": already_there(some)}
        for kind, some in asked.items()
    }
    call = {"guidance_scale": guidance, "image_guidance_scale": image_guidance}
    for name, paint in load_runs(loras, device):
        for kind, some in asked.items():
            for number in steps:
                row = f"{name}, {number} step{'s' * (number > 1)}"
                pictures[kind][row] = painted(paint, some, batch, num_inference_steps=number, **call)
    stored: dict[str, Any] = {}
    for kind, some in asked.items():
        every = {name: measured(judge, some, found) for name, found in pictures[kind].items()}
        for line in [*table(kind, every), *changes(some, every), ""]:
            print(line, flush=True)
        names = [case.name for case in some]
        stored[kind] = {name: dict(zip(names, rows, strict=True)) for name, rows in every.items()}
        if sheets is not None:
            write_png(sheet(kind, some[:EXAMPLES], pictures[kind]), sheets / f"{kind}.png", call)
    if out is not None:
        write_text(out, json.dumps({"settings": {**call, "held_out": held_out}, **stored}, indent=1) + "\n")


if __name__ == "__main__":
    tyro.cli(main)
