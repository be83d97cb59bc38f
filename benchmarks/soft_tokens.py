"""Depth and instance masks as soft tokens, on scenes of the test split.

    python benchmarks/soft_tokens.py train --only tokenizers
    python benchmarks/soft_tokens.py train --only solvers --seeds 0 1 2 --workers 4
    python benchmarks/soft_tokens.py table
    python benchmarks/soft_tokens.py sheet parallel-s0 --out docs/soft-tokens.png

`train` trains every row of the table that is not there yet, several at once, and scores it. `table` prints
the rows, each with the mean over its seeds and a 95 % interval (Student's t). `sheet` shows answers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from PIL import Image

from dit_heads.embedded import load_embedded
from dit_heads.embedded.soft_tokens.evaluate import FIGURES, SECONDS
from dit_heads.embedded.soft_tokens.runs import (
    WEIGHTS,
    SolverRun,
    folder_of,
    run_of,
    trained_reader,
)
from dit_heads.embedded.world.data import load_truth
from dit_heads.io.pictures import check_writable, write_png
from dit_heads.io.sheets import Column, contact_sheet
from dit_heads.pipelines.soft_tokens import SoftTokenPipeline

TRAIN, EVALUATE = "dit_heads.embedded.soft_tokens.train", "dit_heads.embedded.soft_tokens.evaluate"
MISSING = 0.3  # share of the training depth in the rows about gaps
STUDENT = {2: 12.7062, 3: 4.3027, 4: 3.1824, 5: 2.7764}  # 97.5 % quantiles of t for so many values
SHOWN = ("RMSE, m", "AbsRel", "delta1", "AP", "AP50")


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer that rows of the table need.

    Attributes:
        flags: of the training command.
        own: whether each seed trains its own, because the row is about the tokenizer.
    """

    flags: tuple[str, ...]
    own: bool = False


@dataclass(frozen=True)
class Row:
    """A row of the table: a solver, trained once a seed.

    Attributes:
        title: in the table.
        flags: of the training command.
        depth: name of its depth tokenizer.
    """

    title: str
    flags: tuple[str, ...] = ()
    depth: str = "depth"


GAPS = ("--missing", str(MISSING))
TOKENIZERS = {
    "depth": Tokenizer(("--kind", "depth")),
    "mask": Tokenizer(("--kind", "mask")),
    "depth-gaps": Tokenizer(("--kind", "depth", *GAPS), own=True),
    "depth-gaps-plain": Tokenizer(("--kind", "depth", *GAPS, "--no-augment"), own=True),
}
ROWS = {
    "parallel": Row("parallel"),
    "plain": Row("parallel, cross-entropy alone", ("--no-auxiliary",)),
    "autoregressive": Row("autoregressive", ("--order", "autoregressive")),
    "autoregressive-plain": Row(
        "autoregressive, cross-entropy alone", ("--order", "autoregressive", "--no-auxiliary")
    ),
    "levels": Row("noise levels 0.05, 0.2 and 0.5", ("--levels", "0.05", "0.2", "0.5")),
    "gaps": Row("30 % of the depth missing, mask augmentation", GAPS, "depth-gaps"),
    "gaps-plain": Row("30 % of the depth missing, no mask augmentation", GAPS, "depth-gaps-plain"),
    "inputs": Row("inputs after modulation", ("--features", "inputs")),
    "random": Row("a random tenth of the heads", ("--heads", "random 0.1")),
}
CHOSEN = "chosen"  # the row of the heads that `--chosen` names


@dataclass(frozen=True)
class Job:
    """A run and the command that makes it; `then` follows it."""

    name: str
    command: tuple[str, ...]
    then: tuple[str, ...] = ()

    @property
    def is_done(self) -> bool:
        """Whether all that it makes is there."""
        return (folder_of(self.name) / (FIGURES if self.then else WEIGHTS)).exists()

    def run(self) -> None:
        """Run it, with what it prints in a file beside its folder."""
        log = folder_of(self.name).with_suffix(".log")
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            for command in (self.command, self.then):
                if command:
                    subprocess.run([sys.executable, "-m", *command], check=True, stdout=file, stderr=file)
        print(f"{self.name}: done", flush=True)


def tokenizer_jobs(rows: Sequence[str], seeds: Sequence[int], common: Sequence[str]) -> list[Job]:
    """The training of the tokenizers that rows need; of all of them where none are named."""
    needed = {"mask", *(ROWS[name].depth if name in ROWS else "depth" for name in rows or ROWS)}
    jobs = []
    for name, kind in TOKENIZERS.items():
        if name not in needed:
            continue
        for seed in seeds if kind.own else (0,):
            run = f"{name}-s{seed}"
            flags = ("--name", run, "--seed", str(seed), *kind.flags, *common)
            jobs.append(Job(run, (TRAIN, "tokenizer", *flags)))
    return jobs


def solver_jobs(
    rows: Sequence[str], seeds: Sequence[int], common: Sequence[str], chosen: str, count: int
) -> list[Job]:
    """The training and the scores of all solvers."""
    every = {**ROWS, **({CHOSEN: Row("the chosen heads", ("--heads", chosen))} if chosen else {})}
    jobs = []
    for name in rows or every:
        row = every[name]
        for seed in seeds:
            run, depth = f"{name}-s{seed}", row.depth
            depth = f"{depth}-s{seed if TOKENIZERS[depth].own else 0}"
            flags = ("--name", run, "--seed", str(seed), "--depth", depth, "--mask", "mask-s0")
            command = (TRAIN, "solver", *flags, *row.flags, *common)
            jobs.append(Job(run, command, (EVALUATE, run, "--count", str(count))))
    return jobs


def train(
    only: Literal["tokenizers", "solvers"],
    seeds: tuple[int, ...] = (0, 1, 2),
    rows: tuple[str, ...] = (),
    workers: int = 1,
    steps: int = 3000,
    batch: int = 128,
    scenes: int = 12000,
    chosen: str = "",
    count: int = 500,
) -> None:
    """Train what is not there yet.

    Args:
        only: tokenizers, or the solvers that need them.
        seeds: of the rows.
        rows: names of rows; all by default. Of tokenizers, those that the rows need.
        workers: number of runs at once.
        steps: of each run.
        batch: maps, masks or scenes of a step.
        scenes: of the training split.
        chosen: heads for a row of their own, such as those that the atlas of perception finds.
        count: scenes of the test split that are scored.
    """
    if unknown := sorted(set(rows) - {*ROWS, CHOSEN}):
        raise SystemExit(f"rows: expected some of {', '.join([*ROWS, CHOSEN])}, got {', '.join(unknown)}")
    common = ("--steps", str(steps), "--batch", str(batch), "--scenes", str(scenes))
    jobs = (
        tokenizer_jobs(rows, seeds, common)
        if only == "tokenizers"
        else solver_jobs(rows, seeds, common, chosen, count)
    )
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(Job.run, [job for job in jobs if not job.is_done]))


# --- the table ---


def cell(values: Sequence[float], digits: int = 3) -> str:
    """A mean over seeds with its interval, where there are several."""
    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return f"{mean:.{digits}f}"
    half = STUDENT[min(count, max(STUDENT))] * float(np.std(values, ddof=1)) / count**0.5
    return f"{mean:.{digits}f} ± {half:.{digits}f}"


def line(title: str, found: Sequence[dict[str, Any]], key: str) -> str:
    """A row of the table: one way of reading the tokens of the runs of a row."""
    cells = [cell([each[key][name] for each in found]) for name in SHOWN]
    seconds = min(each[SECONDS] for each in found) if key != "tokenizers" else None
    return f"| {title} | {' | '.join(cells)} | {'' if seconds is None else f'{1000 * seconds:.1f}'} |"


def figures_of(name: str) -> list[dict[str, Any]]:
    """The figures of the runs of a row, seed by seed."""
    root = folder_of(name).parent
    paths = sorted(root.glob(f"{name}-s[0-9]*/{FIGURES}"))
    return [json.loads(path.read_text("utf-8")) for path in paths]


def table() -> None:
    """Print the rows that are there."""
    print(f"| | {' | '.join(SHOWN)} | ms a picture |\n|---|{'---|' * (len(SHOWN) + 1)}")
    every = {name: found for name in (*ROWS, CHOSEN) if (found := figures_of(name))}
    titles = {name: row.title for name, row in ROWS.items()} | {CHOSEN: "the chosen heads"}
    for name in every:
        if name in ("parallel", "gaps", "gaps-plain"):
            print(line(f"tokenizers alone: {titles[name]}", every[name], "tokenizers"))
    for name, found in every.items():
        for how in ("soft", "hard"):
            print(line(f"{titles[name]}, {how}", found, how))
    counts = {(name, len(found), found[0]["scenes"]) for name, found in every.items()}
    print("\n" + "; ".join(f"{name}: {seeds} seeds, {n} scenes" for name, seeds, n in sorted(counts)))


def sheet(name: tyro.conf.Positional[str], out: Path, count: int = 8) -> None:
    """Show the first scenes of the test split with their depth, their objects, and how certain both are.

    Args:
        name: run of a solver.
        out: PNG file.
        count: number of scenes.
    """
    check_writable(out)
    see = SoftTokenPipeline(load_embedded(run_of(name, SolverRun).model), trained_reader(name))
    pictures = [Image.fromarray(each) for each in load_truth("test", count)[0]]
    seen: Any = see(pictures)
    doubts = [Image.fromarray(np.round(255 * each).astype(np.uint8)) for each in seen.uncertainty]
    shown = (pictures, seen.depth.visualize(pictures), seen.instances.visualize(pictures), doubts)
    cells = [[image.convert("RGB") for image in row] for row in zip(*shown, strict=True)]
    columns = [Column(each) for each in ("picture", "depth", "objects", "uncertainty")]
    rows = [f"scene {k}" for k in range(count)]
    made = contact_sheet(cells, columns, rows, title="Soft tokens", cell=128)
    write_png(made, out, {"run": name, "scenes": count})


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"train": train, "table": table, "sheet": sheet})
