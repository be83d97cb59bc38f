"""Judge pictures of the embedded models: `python -m dit_heads.embedded.evaluate --count 256`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from diffusers import DiffusionPipeline
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from dit_heads.embedded import TEXT_TOKENS, load_embedded
from dit_heads.embedded.export import load_judge
from dit_heads.embedded.nets.judge import Verdict, verdict
from dit_heads.embedded.world.captions import caption
from dit_heads.embedded.world.scenes import Scene, Split, sample_scene, split_seed
from dit_heads.families import pipelines_of
from dit_heads.io.pictures import write_png
from dit_heads.io.sheets import plain_grid
from dit_heads.tasks.metrics.scores import interval

KINDS = ((1, False), (2, False), (3, False), (1, True))  # objects, and whether a combination is held out
EVALUATED = 5_000_000  # the first evaluation scene of a split, far from those of training


def unseen_scenes(
    split: Split, count: int, *, solids: int | None = None, held_out: bool = False
) -> list[Scene]:
    """Scenes for evaluation prompts.

    Args:
        split: the split.
        count: number of scenes.
        solids: number of objects in each scene. Default: any.
        held_out: whether each scene has a combination of colour and shape that training never shows.
    """
    seeds = [split_seed(split, EVALUATED + i) for i in range(count)]
    return [sample_scene(seed, count=solids, held_out=held_out) for seed in seeds]


def paint(
    pipe: Any,
    scenes: Sequence[Scene],
    *,
    prompts: Sequence[str] | None = None,
    first_seed: int = 0,
    batch: int = 32,
    guidance: AbstractContextManager[Any] | None = None,
    **call: Any,
) -> Float[Tensor, "b 3 h w"]:
    """Pictures of scenes or prompts, on the CPU, in [-1, 1].

    Args:
        pipe: the pipeline.
        scenes: scenes whose captions are the prompts.
        prompts: prompts to use instead.
        first_seed: picture i has the seed `first_seed + i`, whatever the batch size.
        batch: number of pictures generated at once.
        guidance: context manager that is entered around all calls, such as `HeadGuidance`.
        call: further arguments of the pipeline's call.
    """
    texts = [caption(s) for s in scenes] if prompts is None else list(prompts)
    pipe.set_progress_bar_config(disable=True)
    parts = []
    with guidance or nullcontext():
        for at in tqdm(range(0, len(texts), batch), desc="painting", leave=False):
            some = texts[at : at + batch]
            generators = [torch.Generator().manual_seed(first_seed + at + k) for k in range(len(some))]
            images = pipe(some, generator=generators, output_type="pt", **call).images
            parts.append(images.float().cpu() * 2 - 1)
    return torch.cat(parts)


def row(name: str, judged: Verdict) -> str:
    """A row of a Markdown table, in %: right attributes of each kind; their mean and the share of pictures
    with all of them right, with 95 % bootstrap intervals over pictures."""
    mean = judged.per_picture().double()
    kinds = [f"{100 * share:.1f}" for share in judged.accuracy().values()]
    wholes = [cell(100 * values.numpy(), 1) for values in (mean, (mean == 1).double())]
    return f"| {name} | {' | '.join(kinds + wholes)} |"


def header(judged: Verdict) -> str:
    """The two header lines of the table."""
    names = [*judged.right, "mean", "all right"]
    return f"| | {' | '.join(names)} |\n|---|{'---|' * len(names)}"


def cell(values: NDArray[np.float64], digits: int = 2) -> str:
    """A mean and its interval, as a table cell."""
    low, high = interval(values)
    return f"{values.mean():.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def settings_of(pipe: Any, guidance: Sequence[float], stock: bool) -> dict[str, dict[str, Any]]:
    """Arguments of pipeline calls by name in the table. For FLUX, `guidance` is the distilled scale."""
    name = "guidance" if pipelines_of(pipe.transformer).distilled else "CFG"
    own = {"num_inference_steps": 28, "max_sequence_length": TEXT_TOKENS}
    settings = {f"{name} {g:g}": {"guidance_scale": g, **own} for g in guidance}
    return settings | ({"stock defaults": {}} if stock else {})


def load(model: str) -> Any:
    """An embedded pipeline by name, or a pipeline from a folder, in fp32."""
    if Path(model).is_dir():
        return DiffusionPipeline.from_pretrained(model, dtype=torch.float32)
    return load_embedded(model)


def main(
    model: str = "sd3",
    guidance: tuple[float, ...] = (1.0, 3.0, 4.0, 6.0),
    count: int = 128,
    stock: bool = True,
    only: int | None = None,
    sheet: Path | None = None,
    batch: int = 32,
    device: str = "cpu",
) -> None:
    """Judge pictures of one, two and three objects and of held-out combinations.

    Args:
        model: "sd3", "flux" or a folder in diffusers' format.
        guidance: guidance scales, one setting each.
        count: number of pictures per setting and kind of scene.
        stock: whether to judge the pipeline's default call too.
        only: a number of objects to restrict the scenes to.
        sheet: PNG file for the first 16 pictures of each kind in the first setting.
        batch: number of pictures generated at once.
        device: device of the model.
    """
    pipe, judge, shown = load(model).to(device), load_judge(), []
    for number, (name, call) in enumerate(settings_of(pipe, guidance, stock).items()):
        for solids, held_out in KINDS if only is None else ((only, False),):
            scenes = unseen_scenes("test", count, solids=solids, held_out=held_out)
            pictures = paint(pipe, scenes, batch=batch, **call)
            judged = verdict(judge, pictures, scenes)
            if not number:
                if not shown:
                    print(header(judged), flush=True)
                shown.append(pictures[:16])
            what = "held-out combination" if held_out else f"{solids} object{'s' * (solids > 1)}"
            print(row(f"{name}, {what}", judged), flush=True)
        if not number and sheet:
            write_png(plain_grid(pipe.image_processor.postprocess(torch.cat(shown))), sheet, {"call": call})


if __name__ == "__main__":
    tyro.cli(main)
