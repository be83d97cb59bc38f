"""What guidance does on held-out prompts: judge accuracy and CLIP score with 95 % bootstrap intervals.

Run it as `python benchmarks/effect.py --count 200`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import tyro

from dit_heads import load_embedded
from dit_heads.embedded.captions import caption
from dit_heads.embedded.evaluate import OWN_TEXT_TOKENS, cell, paint, unseen_scenes
from dit_heads.embedded.export import load_judge
from dit_heads.embedded.judge import verdict
from dit_heads.objectives import embedded_clip
from dit_heads.showcase import PRESET, Choice, columns, read_preset


def main(count: int = 200, preset: Path = PRESET) -> None:
    """`count` prompts of the test split, one seed each, the same for every column of the main job."""
    chosen = read_preset(preset)
    pipe, judge = load_embedded("sd3"), load_judge()
    score = embedded_clip()
    scenes = unseen_scenes("test", count)
    print(f"{count} test prompts, {chosen.steps} steps; in brackets the 95 % interval")
    print("| guidance | attributes right, % | difference to none, paired | CLIP score x 100 |")
    print("|---|---|---|---|")
    none: np.ndarray | None = None
    for column, cfg, choice in columns(chosen):
        pictures = _paint(pipe, scenes, cfg, choice, chosen.steps)
        right = 100 * verdict(judge, pictures, scenes).per_picture().numpy()
        pairs = zip(pictures.split(1), scenes, strict=True)
        with torch.no_grad():
            clip = 100 * torch.cat([score(p / 2 + 0.5, [caption(s)]) for p, s in pairs]).numpy()
        none = right if none is None else none
        name = column.name + (f" ({choice.label.replace(chr(10), ', ')})" if choice else "")
        cells = [cell(v) for v in (right, right - none, clip)]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def _paint(pipe, scenes, cfg: float, choice: Choice | None, steps: int) -> torch.Tensor:
    heads = choice and choice.guidance(pipe)
    call = {"guidance_scale": cfg, "num_inference_steps": steps, "max_sequence_length": OWN_TEXT_TOKENS}
    return paint(pipe, scenes, guidance=heads, **call)


if __name__ == "__main__":
    tyro.cli(main)
