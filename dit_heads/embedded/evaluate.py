"""What the embedded models paint, judged: `python -m dit_heads.embedded.evaluate --count 256`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from diffusers import DiffusionPipeline
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from dit_heads.embedded import load_embedded
from dit_heads.embedded.export import load_judge
from dit_heads.embedded.nets.judge import Verdict, verdict
from dit_heads.embedded.world.captions import caption
from dit_heads.embedded.world.scenes import Scene, Split, sample_scene, split_seed
from dit_heads.families import pipelines_of
from dit_heads.io.pictures import write_png
from dit_heads.io.sheets import plain_grid

OWN_TEXT_TOKENS = 64
KINDS = ((1, False), (2, False), (3, False), (1, True))  # objects, and whether a combination is held out
EVALUATED = 5_000_000  # evaluation scenes start here in a split, far from those that training validates on


def unseen_scenes(
    split: Split, count: int, *, solids: int | None = None, held_out: bool = False
) -> list[Scene]:
    """Scenes of a split to make prompts of; `solids` fixes how many objects each has, `held_out` gives each a
    combination of colour and shape that training never shows."""
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
) -> Tensor:
    """Pictures [B, 3, 128, 128] in [-1, 1], on the CPU, of the scenes' captions, or of `prompts`, picture i
    from seed `first_seed + i` whatever the batch; `call` goes to the pipeline."""
    said = [caption(s) for s in scenes] if prompts is None else list(prompts)
    pipe.set_progress_bar_config(disable=True)
    parts = []
    with guidance or nullcontext():
        for at in tqdm(range(0, len(said), batch), desc="painting", leave=False):
            some = said[at : at + batch]
            generators = [torch.Generator().manual_seed(first_seed + at + k) for k in range(len(some))]
            images = pipe(some, generator=generators, output_type="pt", **call).images
            parts.append(images.float().cpu() * 2 - 1)
    return torch.cat(parts)


def row(name: str, judged: Verdict) -> str:
    """A line of a Markdown table: every attribute, and all of a picture's attributes at once."""
    mean = judged.per_picture()
    shares = [*judged.accuracy().values(), mean.mean().item(), (mean == 1).float().mean().item()]
    return f"| {name} | {' | '.join(f'{100 * v:.1f}' for v in shares)} |"


def header(judged: Verdict) -> str:
    """The two lines above the rows."""
    names = [*judged.right, "mean", "all right"]
    return f"| | {' | '.join(names)} |\n|---|{'---|' * len(names)}"


def interval(values: NDArray[np.float64], rounds: int = 2000) -> tuple[float, float]:
    """95 % bootstrap interval of the mean of one value a prompt or set, which are resampled."""
    rng = np.random.default_rng(0)
    means = values[rng.integers(len(values), size=(rounds, len(values)))].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def cell(values: NDArray[np.float64], digits: int = 2) -> str:
    """The mean and its interval, for a table."""
    low, high = interval(values)
    return f"{values.mean():.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def settings_of(pipe: Any, guidance: Sequence[float], stock: bool) -> dict[str, dict[str, Any]]:
    """Calls of the pipeline by what they are named in the table; for FLUX, `guidance` is the embedded one."""
    name = "guidance" if pipelines_of(pipe.transformer).distilled else "CFG"
    own = {"num_inference_steps": 28, "max_sequence_length": OWN_TEXT_TOKENS}
    settings = {f"{name} {g:g}": {"guidance_scale": g, **own} for g in guidance}
    return settings | ({"stock defaults": {}} if stock else {})


def _pipeline(model: str) -> Any:
    """An embedded pipeline by its name, or one in a folder, fp32."""
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
    """Judge `count` pictures of one, two and three objects and of held-out combinations a setting; `model` is
    "sd3", "flux" or a folder, `stock` adds the pipeline's own defaults, `only` is a number of objects to keep
    to, `sheet` is a PNG for the first 16 of each four of the first setting; `batch` are painted at a time, on
    `device`."""
    pipe, judge, shown = _pipeline(model).to(device), load_judge(), []
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
