"""Search the heads and the block that the main job uses, and how strongly they should guide.

    python benchmarks/choose_heads.py --out dit_heads/presets/embedded-sd3.json

HeadHunter on validation prompts, scored by the embedded CLIP without CFG, as the paper searches (arXiv
2506.10978); the judge that reports on the result is not asked. Stopped, it goes on where it was.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import tyro

from dit_heads import HeadHunter, HeadSet, load_embedded
from dit_heads.embedded.captions import caption
from dit_heads.embedded.evaluate import OWN_TEXT_TOKENS, unseen_scenes
from dit_heads.hunt_config import HuntConfig
from dit_heads.objectives import embedded_clip
from dit_heads.training import write_atomically

HEAD_SCALES, BLOCK_SCALES, SOFTNESSES = (0.5, 1.0, 2.0, 3.0), (0.25, 0.5, 1.0, 2.0), (0.5, 1.0)


def main(
    out: Path = Path("dit_heads/presets/embedded-sd3.json"),
    folder: Path = Path("out/choose_heads"),
    prompts: int = 20,
    steps: int = 10,
    batch: int = 32,
) -> None:
    """Choose by `prompts` prompts of the validation split, one seed each; `folder` keeps what was drawn."""
    pipe = load_embedded("sd3")
    pipe.set_progress_bar_config(disable=True)
    said = [caption(scene) for scene in unseen_scenes("validation", prompts)]
    config = HuntConfig(per_round=6, scale=2.0, steps=steps, batch=batch)
    call = {"max_sequence_length": OWN_TEXT_TOKENS}
    hunter = HeadHunter(pipe, embedded_clip(), said, folder, config, call=call)
    found = hunter.run()
    unguided = fmean(found.unguided)
    (singles,) = (found_round.scores for found_round in found.rounds)
    gains = {head: fmean(scores) - unguided for head, scores in singles.items()}
    print(f"{sum(gain > 0 for gain in gains.values())} of {len(gains)} heads raise {unguided:.4f} alone")

    first = [HeadSet(found.chosen[:n]) for n in (1, 3, 6)]
    blocks = [HeadSet.parse(f"L{b}") for b in range(pipe.transformer.config.num_layers)]
    heads, gain = _best(hunter, first, HEAD_SCALES, unguided)
    block, block_gain = _best(hunter, blocks, BLOCK_SCALES, unguided)
    print(f"heads {heads} {gain:+.4f}; block {block} {block_gain:+.4f}")
    provenance = {
        "command": f"python benchmarks/choose_heads.py --prompts {prompts} --steps {steps}",
        "score": {"no guidance": unguided, "heads": unguided + gain, "block": unguided + block_gain},
        "single heads": {str(head): round(gains[head], 5) for head in sorted(gains, key=lambda h: -gains[h])},
        **found.provenance,
    }
    preset = {"model": "embedded/sd3", "heads": heads, "block": block, "cfg": 4.0, "steps": 28}
    write_atomically(out, json.dumps(preset | {"provenance": provenance}, indent=1) + "\n")
    print(f"wrote {out}")


def _best(
    hunter: HeadHunter, sets: Sequence[HeadSet], scales: Sequence[float], unguided: float
) -> tuple[dict[str, Any], float]:
    """The best of sets x scales x softnesses, and what it gains."""
    means = {
        (heads, scale, softness): fmean(scores)
        for scale, softness in itertools.product(scales, SOFTNESSES)
        for heads, scores in zip(sets, hunter.scores(sets, scale=scale, softness=softness), strict=True)
    }
    heads, scale, softness = best = max(means, key=lambda key: means[key])
    return {"set": str(heads), "scale": scale, "softness": softness}, means[best] - unguided


if __name__ == "__main__":
    tyro.cli(main)
