"""What searches for heads of the real models take, and how they scale.

    python benchmarks/hunt_cost.py

Hours follow from the paper's figures. The speed-up by workers follows from times of batches of the embedded
SD3, measured here, each given to the first worker that is free.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Sequence
from statistics import fmean

import tyro

from dit_heads import HeadId, HeadSet
from dit_heads.embedded import TEXT_TOKENS
from dit_heads.embedded.objective import embedded_clip
from dit_heads.hunt.config import HuntConfig
from dit_heads.hunt.rounds import picture_count
from dit_heads.hunt.scorer import Scorer
from dit_heads.hunt.trials import Trial
from dit_heads.models import load_pipeline

# 11,520 pictures of 20 steps took about 3 hours on 8 H100 (arXiv 2506.10978); FLUX.1-dev by parameters.
HOURS_OF_SD3 = 8 * 3 / (11_520 * 20)
HOURS_OF_FLUX = HOURS_OF_SD3 * 11.9 / 2.0
PICTURES = 11_540  # of a general search of SD3-medium
# Name, heads, pairs, rounds, heads of a round, steps of a picture, hours of a step.
SEARCHES = (
    ("SD3-medium, general", 576, 20, 1, 24, 20, HOURS_OF_SD3),
    ("SD3-medium, a style", 576, 5, 5, 3, 20, HOURS_OF_SD3),
    ("FLUX.1-dev, a style", 1368, 5, 5, 3, 15, HOURS_OF_FLUX),
)


def makespan(times: Sequence[float], workers: int) -> float:
    """Seconds until the last of the tasks is done, each given to the first worker that is free."""
    free = [0.0] * workers
    for seconds in times:
        heapq.heapreplace(free, free[0] + seconds)
    return max(free)


def print_searches() -> None:
    """A table of pictures and hours of exhaustive and fast searches."""
    print("| search | pictures exhaustive | pictures fast | H100 hours exhaustive | H100 hours fast |")
    print("|---|---|---|---|---|")
    for name, heads, pairs, rounds, each, steps, hours in SEARCHES:
        whole, fast = (
            picture_count(HuntConfig(method=method, rounds=rounds, per_round=each), pairs, heads)
            for method in ("exhaustive", "fast")
        )
        print(f"| {name} | {whole} | {fast} | {whole * steps * hours:.1f} | {fast * steps * hours:.1f} |")


def batch_times(tasks: int, batch: int, steps: int, device: str) -> list[float]:
    """Seconds that each of `tasks` batches of a search of the embedded SD3 takes."""
    pipe = load_pipeline("embedded", "float32", device)
    pipe.set_progress_bar_config(disable=True)
    scorer = Scorer(pipe, embedded_clip(), {"guidance_scale": 1.0, "max_sequence_length": TEXT_TOKENS})
    blocks, times = pipe.transformer.config.num_layers, []
    for task in range(tasks):
        heads = str(HeadSet([HeadId(task * blocks // tasks, 0)]))  # later forks are cheaper
        trials = tuple(Trial(heads, "a large red cube", seed, steps, 2.0, 1.0) for seed in range(batch))
        began = time.perf_counter()
        scorer(trials)
        times.append(time.perf_counter() - began)
    return times


def main(tasks: int = 6, batch: int = 16, steps: int = 10, device: str = "auto") -> None:
    """Print both tables, the second from `tasks` measured batches of `batch` pictures of `steps` steps."""
    print_searches()
    times = batch_times(tasks, batch, steps, device)
    print(f"\nOf {len(times)} measured batches ({fmean(times):.1f} s each):\n")
    print("| workers | hours of a general search | speed-up |\n|---|---|---|")
    count = PICTURES // batch
    many = (times * (count // len(times) + 1))[:count]
    for workers in (1, 2, 4, 8, 16, 32, 64):
        span = makespan(many, workers)
        print(f"| {workers} | {span / 3600:.2f} | {makespan(many, 1) / span:.1f} |")


if __name__ == "__main__":
    tyro.cli(main)
