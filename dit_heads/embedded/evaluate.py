"""What the embedded model paints, judged: `python -m dit_heads.embedded.evaluate --cfg 1 4 --count 256`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import tyro
from torch import Tensor
from tqdm import tqdm

from dit_heads.embedded import load_embedded
from dit_heads.embedded.captions import caption
from dit_heads.embedded.export import load_judge
from dit_heads.embedded.judge import Verdict, verdict
from dit_heads.embedded.scenes import Scene, Split, sample_scene, split_seed

OWN_TEXT_TOKENS = 64
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
    first_seed: int = 0,
    batch: int = 32,
    guidance: AbstractContextManager[Any] | None = None,
    **call: Any,
) -> Tensor:
    """Pictures [B, 3, 128, 128] in [-1, 1] of the scenes' captions, picture i from seed `first_seed + i`
    whatever the batch; `call` goes to the pipeline."""
    pipe.set_progress_bar_config(disable=True)
    parts = []
    with guidance or nullcontext():
        for at, some in _batches(scenes, batch):
            generators = [torch.Generator().manual_seed(first_seed + at + k) for k in range(len(some))]
            prompts = [caption(s) for s in some]
            parts.append(pipe(prompts, generator=generators, output_type="pt", **call).images.float() * 2 - 1)
    return torch.cat(parts)


def _batches(scenes: Sequence[Scene], size: int) -> Iterator[tuple[int, Sequence[Scene]]]:
    for at in tqdm(range(0, len(scenes), size), desc="painting", leave=False):
        yield at, scenes[at : at + size]


def row(name: str, judged: Verdict) -> str:
    """A line of a Markdown table: every attribute, and all of a picture's attributes at once."""
    mean = judged.per_picture()
    shares = [*judged.accuracy().values(), mean.mean().item(), (mean == 1).float().mean().item()]
    return f"| {name} | {' | '.join(f'{100 * v:.1f}' for v in shares)} |"


def header(judged: Verdict) -> str:
    """The two lines above the rows."""
    names = [*judged.right, "mean", "all right"]
    return f"| | {' | '.join(names)} |\n|---|{'---|' * len(names)}"


def main(
    cfg: tuple[float, ...] = (1.0, 3.0, 4.0, 6.0),
    count: int = 128,
    stock: bool = True,
    model: str | None = None,
) -> None:
    """Judge `count` pictures of one, two and three objects a setting; `stock` adds the pipeline's own
    defaults (28 steps, CFG 7, 256 text tokens); `model` is a folder, without it the embedded one."""
    from diffusers import StableDiffusion3Pipeline

    pipe = StableDiffusion3Pipeline.from_pretrained(model) if model else load_embedded("sd3")
    judge = load_judge()
    settings = {
        f"CFG {g:g}": {"guidance_scale": g, "num_inference_steps": 28, "max_sequence_length": OWN_TEXT_TOKENS}
        for g in cfg
    }
    settings |= {"stock defaults": {}} if stock else {}
    started = False
    for name, call in settings.items():
        for solids, held_out in ((1, False), (2, False), (3, False), (1, True)):
            scenes = unseen_scenes("test", count, solids=solids, held_out=held_out)
            judged = verdict(judge, paint(pipe, scenes, **call), scenes)
            if not started:
                print(header(judged), flush=True)
                started = True
            what = "held-out combination" if held_out else f"{solids} object{'s' * (solids > 1)}"
            print(row(f"{name}, {what}", judged), flush=True)


if __name__ == "__main__":
    tyro.cli(main)
