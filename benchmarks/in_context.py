"""In-context LoRAs of the embedded SD3 on sets of the test split: are panels as captioned, do they agree?

    python benchmarks/in_context.py --loras runs --sheets out/in-context

`--loras` holds folders that `dit-heads train` wrote, `{task}` and `{task}-panels` (with weights of panels
in the loss). Sets are generated from their captions, and filled with the first panel given as it was
rendered. The judge, which nothing here was trained against, reads each panel. Its figures are those of
generated panels; whether solids stay the same is asked of all panels, the given one too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from diffusers.utils import logging
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from dit_heads.embedded.agreement import Agreement, agreement
from dit_heads.embedded.evaluate import cell
from dit_heads.embedded.export import load_judge
from dit_heads.embedded.nets.judge import Judge
from dit_heads.embedded.nets.vae import to_tensor
from dit_heads.embedded.sets import TASKS, SceneSet, split_sets, task_of
from dit_heads.embedded.world.render import SIZE, render
from dit_heads.io.pictures import write_png
from dit_heads.io.sheets import Column, contact_sheet
from dit_heads.loras import Grid, join
from dit_heads.loras.weights.files import load_lora
from dit_heads.models import load_pipeline
from dit_heads.pipelines import InContextPipeline

MODELS = {"base": "", "LoRA": "{task}/lora.safetensors", "LoRA, panel loss": "{task}-panels/lora.safetensors"}
MODES = ("generate", "fill")
CFG, STEPS, TEXT_TOKENS = 4.0, 28, 128
ADAPTER = "in-context"
SHOWN = 4  # sets of a contact sheet
Pictures = Float[Tensor, "s p 3 128 128"]  # in [-1, 1]


def grid_of(task: str) -> Grid:
    """128 x 384 pixels for a triptych, 256 x 256 for a grid of four."""
    return Grid.equal(task_of(task).rows, task_of(task).columns, height=SIZE, width=SIZE)


def rendered(sets: Sequence[SceneSet]) -> Pictures:
    """The panels as they should be."""
    images = [np.stack([render(scene).image for scene in one.scenes]) for one in sets]
    return torch.stack([to_tensor(panels) for panels in images])


@torch.no_grad()
def painted(
    pipe: Any, sets: Sequence[SceneSet], truth: Pictures, mode: str, steps: int, batch: int
) -> Pictures:
    """Panels from the sets' captions, set i from seed i whatever the batch."""
    in_context, grid, parts = InContextPipeline(pipe), grid_of(sets[0].task), []
    for at in tqdm(range(0, len(sets), batch), desc=mode, leave=False):
        some = range(at, min(at + batch, len(sets)))
        given = [{0: truth[k, 0] / 2 + 0.5} for k in some] if mode == "fill" else None
        done = in_context(
            [sets[k].caption for k in some],
            grid=grid,
            given=given,
            generator=[torch.Generator().manual_seed(k) for k in some],
            output_type="pt",
            num_inference_steps=steps,
            guidance_scale=CFG,
            max_sequence_length=TEXT_TOKENS,
        )
        parts += [torch.stack(panels).float().cpu() for panels in done.panels]
    return torch.stack(parts) * 2 - 1


@contextmanager
def adapted(pipe: Any, path: Path | None) -> Iterator[None]:
    """The pipeline with a LoRA file, or as it is; afterwards as it was."""
    if path is None:
        yield
        return
    load_lora(pipe, path, ADAPTER)
    try:
        yield
    finally:
        pipe.unload_lora_weights()


def found_models(task: str, folder: Path | None) -> dict[str, Path | None]:
    """Models by name and the files of their LoRAs, None for the base model; says which are left out."""
    found: dict[str, Path | None] = {}
    for name, file in MODELS.items():
        path = folder / file.format(task=task) if folder and file else None
        if file and (path is None or not path.is_file()):
            print(f"skipped {name}: {f'no file {path}' if path else 'no folder --loras'}")
        else:
            found[name] = path
    return found


def row(name: str, found: Agreement, first: int) -> str:
    """A line of the table; panels from `first` on are those that were painted."""
    painted = found.right[:, first:].float(), found.share[:, first:], found.kept.float()[:, None]
    return f"| {name} | {' | '.join(cell(100 * values.mean(1).numpy(), 1) for values in painted)} |"


def sheet(sets: Sequence[SceneSet], shown: dict[str, Pictures]) -> Image.Image:
    """Composites of the first sets: a column a set, a row a model and mode."""
    task = sets[0].task
    columns = [Column(f"set {k}", one.caption) for k, one in enumerate(sets[:SHOWN])]
    rows = [_composites(pictures[:SHOWN], task) for pictures in shown.values()]
    return contact_sheet(rows, columns, list(shown), title=task, cell=grid_of(task).width)


def _composites(pictures: Pictures, task: str) -> list[Image.Image]:
    pixels = ((pictures / 2 + 0.5).clamp(0, 1) * 255).round().byte()
    composites = [join(list(panels), grid_of(task)) for panels in pixels]
    return [Image.fromarray(composite.permute(1, 2, 0).numpy()) for composite in composites]


def measure(
    pipe: Any,
    judge: Judge,
    sets: Sequence[SceneSet],
    models: dict[str, Path | None],
    steps: int,
    batch: int,
) -> Image.Image:
    """Print the table of a task; the contact sheet of what was painted."""
    shown = {"rendered": rendered(sets)}
    print("| model | panels right, % | attributes right, % | solids the same in all panels, % |")
    print("|---|---|---|---|")
    print(row("rendered", agreement(judge, shown["rendered"], sets), 0), flush=True)
    for (name, path), mode in ((model, mode) for model in models.items() for mode in MODES):
        with adapted(pipe, path):
            pictures = painted(pipe, sets, shown["rendered"], mode, steps, batch)
        shown[f"{name}, {mode}"] = pictures
        found = agreement(judge, pictures, sets)
        print(row(f"{name}, {mode}", found, MODES.index(mode)), flush=True)
    return sheet(sets, shown)


def main(
    loras: Path | None = None,
    tasks: tuple[str, ...] = tuple(TASKS),
    count: int = 64,
    steps: int = STEPS,
    batch: int = 16,
    sheets: Path | None = None,
    device: str = "auto",
    dtype: str = "float32",
) -> None:
    """Measure `count` test sets of each task; `loras` is the folder of runs, `sheets` one for contact
    sheets. In bfloat16 it is faster on CPUs that multiply it."""
    for task in tasks:
        task_of(task)
    # CLIP's towers read 32 tokens of a caption; that they cut it is said with every call.
    logging.set_verbosity_error()
    pipe, judge = load_pipeline("embedded", dtype, device), load_judge()
    pipe.set_progress_bar_config(disable=True)
    settings = {"cfg": CFG, "steps": steps, "max_sequence_length": TEXT_TOKENS, "count": count}
    for task in tasks:
        print(f"\n### {task}: {count} sets, CFG {CFG:g}, {steps} steps; in brackets the 95 % interval\n")
        models = found_models(task, loras)
        print(flush=True)
        picture = measure(pipe, judge, split_sets(task, "test", count), models, steps, batch)
        if sheets:
            write_png(picture, sheets / f"{task}.png", settings | {"task": task})
            print(f"\nwrote {sheets / f'{task}.png'}")


if __name__ == "__main__":
    tyro.cli(main)
