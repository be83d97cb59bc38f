"""Sets of scenes with joint captions for in-context LoRAs (arXiv 2410.23775), scored by `agreement`.

There are three tasks: `sky` shows one scene by day, at sunset and at night; `grounds` shows one subject in
three places; `turntable` turns two solids by 0, 90, 180 and 270 degrees. None was seen in training.

    python -m dit_heads.embedded.sets sky --count 60 --out FOLDER
"""

from __future__ import annotations

import itertools
import math
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Annotated

import numpy as np
import tyro
from PIL import Image
from tqdm import tqdm

from dit_heads.embedded.world.captions import NAMES, WHEN, content
from dit_heads.embedded.world.data import ATTRIBUTES
from dit_heads.embedded.world.render import render
from dit_heads.embedded.world.scenes import (
    GROUNDS,
    HALF_VIEW,
    SKIES,
    Scene,
    Solid,
    Split,
    left_to_right,
    sample_scene,
    split_seed,
)
from dit_heads.errors import InputError
from dit_heads.tasks.markers import markers

FIRST = 8_000_000  # the first set of a split, far from the scenes of training, evaluation and searches
TURNS = (0, 90, 180, 270)  # degrees
FRAMES = ("{things} {when}", "{when}, {things}")
NAMED_FRAMES = ("{name} is {things} {when}", "{when}, {name} is {things}")


@dataclass(frozen=True)
class SceneSet:
    """A set of a task: one scene per panel, row by row, and their joint caption."""

    task: str
    scenes: tuple[Scene, ...]
    caption: str


@dataclass(frozen=True)
class Task:
    """A kind of set.

    Attributes:
        rows: rows of panels.
        columns: columns of panels.
        sample: seed -> one scene per panel.
        summaries: templates for the summary of the joint caption.
        frames: templates for the caption of a panel.
        identity: attributes of solids that all panels share.
    """

    rows: int
    columns: int
    sample: Callable[[int], tuple[Scene, ...]]
    summaries: tuple[str, ...]
    frames: tuple[str, ...] = FRAMES
    identity: tuple[str, ...] = tuple(ATTRIBUTES)


def task_of(name: str) -> Task:
    """The task of a name. Raises InputError for an unknown name."""
    if name not in TASKS:
        raise InputError(f"task: expected one of {', '.join(TASKS)}, got {name!r}")
    return TASKS[name]


def sample_set(task: str, seed: int) -> SceneSet:
    """The set of a seed, without held-out combinations of colour and shape.

    Raises:
        InputError: for an unknown task.
    """
    scenes = task_of(task).sample(seed)
    return SceneSet(task, scenes, _joint_caption(task_of(task), scenes, _rng("words", seed)))


def split_sets(task: str, split: Split, count: int) -> list[SceneSet]:
    """The first `count` sets of a split. Splits share no seeds.

    Raises:
        InputError: for an unknown task and for a count below 1.
    """
    if count < 1:
        raise InputError(f"count: expected at least 1, got {count}")
    return [sample_set(task, split_seed(split, FIRST + i)) for i in range(count)]


def _rng(use: str, seed: int) -> np.random.Generator:
    """A random generator for a seed, independent of those of its scene and of other uses."""
    return np.random.default_rng((*use.encode(), seed))


# --- scenes ---


def _sky(seed: int) -> tuple[Scene, ...]:
    scene = replace(sample_scene(seed), style="photo")
    return tuple(replace(scene, sky=sky) for sky in SKIES)


def _grounds(seed: int) -> tuple[Scene, ...]:
    rng = _rng("places", seed)
    (subject,) = sample_scene(seed, count=1).solids
    return tuple(_elsewhere(rng, subject, str(ground)) for ground in rng.permutation(GROUNDS)[:3])


def _elsewhere(rng: np.random.Generator, subject: Solid, ground: str) -> Scene:
    """A scene of the subject alone, placed like single solids elsewhere in the world."""
    x, z, yaw = rng.uniform(-0.5, 0.5), rng.uniform(-0.8, 0.9), rng.uniform(0, math.pi / 2)
    a, b, c, d = rng.uniform(0, 6, 4).tolist()
    return Scene((replace(subject, x=x, z=z, yaw=yaw),), ground, str(rng.choice(SKIES)), phase=(a, b, c, d))


def _turntable(seed: int) -> tuple[Scene, ...]:
    """Two solids: one alone would hardly change, and three would hide each other from some side."""
    rng = _rng("places", seed)
    scene = replace(sample_scene(seed, count=2), style="photo")
    for _ in range(10_000):
        solids = left_to_right(_opposite(rng, *scene.solids))
        views = tuple(turned(replace(scene, solids=solids), degrees) for degrees in TURNS)
        if all(_seen_well(view) for view in views):
            return views
    raise RuntimeError("no place found for the solids")  # pragma: no cover


def _opposite(rng: np.random.Generator, a: Solid, b: Solid) -> list[Solid]:
    """Two solids on opposite sides of a place near the middle."""
    x, z = rng.uniform(-0.1, 0.1, 2).tolist()
    angle, away = rng.uniform(0, math.tau), rng.uniform(0.6, 1.05)
    right, back = away * math.cos(angle), away * math.sin(angle)
    return [replace(a, x=x + right, z=z + back), replace(b, x=x - right, z=z - back)]


def turned(scene: Scene, degrees: float) -> Scene:
    """The scene with its solids turned clockwise, seen from above, about the mean of their places.

    At 90 degrees the solid on the right has come to the front. Light, ground and camera stay the same.
    """
    angle = math.radians(degrees)
    c, s = math.cos(angle), math.sin(angle)
    x, z = fmean(o.x for o in scene.solids), fmean(o.z for o in scene.solids)
    solids = [
        replace(
            o,
            x=x + c * (o.x - x) + s * (o.z - z),
            z=z - s * (o.x - x) + c * (o.z - z),
            yaw=(o.yaw + angle) % math.tau,
        )
        for o in scene.solids
    ]
    return replace(scene, solids=left_to_right(solids))


def _seen_well(scene: Scene) -> bool:
    """Whether each solid is in the picture over its whole width and hardly hidden by another."""
    # The corners of a cube reach a sixth beyond its radius, and look larger when they are near.
    inside = all(abs(s.bearing) + 1.3 * s.half_width < HALF_VIEW and abs(s.z) < 0.9 for s in scene.solids)
    return inside and all(_apart(a, b) for a, b in itertools.combinations(scene.solids, 2))


def _apart(a: Solid, b: Solid) -> bool:
    touching = math.hypot(a.x - b.x, a.z - b.z) < 1.15 * (a.radius + b.radius)
    return not touching and abs(a.bearing - b.bearing) > 0.8 * (a.half_width + b.half_width)


# --- captions ---


def _joint_caption(task: Task, scenes: Sequence[Scene], rng: np.random.Generator) -> str:
    """A summary, then each panel's marker and caption, in words of the embedded vocabulary."""
    name, frame = str(rng.choice(NAMES)), str(rng.choice(task.frames))
    first, second, third = (scene.ground for scene in scenes[:3])
    summary = str(rng.choice(task.summaries)).format(name=name, first=first, second=second, third=third)
    panels = [frame.format(name=name, things=content(s), when=WHEN[s.sky]) for s in scenes]
    marked = zip(markers(task.rows, task.columns), panels, strict=True)
    return " ".join([summary, *(f"{marker} {panel}" for marker, panel in marked)])


TASKS: dict[str, Task] = {
    "sky": Task(
        1,
        3,
        _sky,
        (
            "Three pictures of the same scene: in the day, at sunset and at night.",
            "A triptych of one scene: first in the day, then at sunset, then at night.",
            "The same scene on the same ground in three panels: day, sunset and night.",
        ),
    ),
    "grounds": Task(
        1,
        3,
        _grounds,
        (
            "Three pictures of {name}: the same subject on {first}, on {second} and on {third}.",
            "A triptych of {name}, the same object on {first}, {second} and {third}.",
            "{name} is the same object in all three panels, with another ground in each.",
        ),
        NAMED_FRAMES,
    ),
    "turntable": Task(
        2,
        2,
        _turntable,
        (
            "A turntable of four views: each view is turned by ninety degrees.",
            "Four views of the same scene, each turned by ninety degrees.",
            "The same objects seen in four views, each turned by ninety degrees.",
        ),
        # A turn changes the distance of a solid, so its apparent size does not identify it.
        identity=("shape", "colour", "texture"),
    ),
}


# --- files ---


def write_sets(
    task: str, split: Split, count: int, folder: str | Path, before_set: Callable[[], None] = lambda: None
) -> None:
    """Render sets in the format that `loras.sets` reads: `folder/set000/1.png` ... and `caption.txt`.

    The folder appears once it is complete.

    Args:
        task, split, count: as of `split_sets`.
        folder: a new one.
        before_set: called before each set; what it raises ends the work.

    Raises:
        InputError: for an unknown task, a count below 1 and a folder that exists already.
    """
    sets, folder = split_sets(task, split, count), Path(folder)
    if folder.exists():
        raise InputError(f"out: expected a new folder, got '{folder}', which exists")
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        for number, one in enumerate(tqdm(sets, desc=f"rendering {task}", leave=False)):
            before_set()
            _write_set(one, unfinished / f"set{number:03d}")
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write_set(one: SceneSet, folder: Path) -> None:
    folder.mkdir(parents=True)
    for number, scene in enumerate(one.scenes, 1):
        Image.fromarray(render(scene).image).save(folder / f"{number}.png")
    (folder / "caption.txt").write_text(one.caption + "\n", "utf-8")


# --- command ---


def main(
    task: Annotated[str, tyro.conf.Positional],
    out: Path,
    count: int = 60,
    split: Split = "train",
) -> None:
    """Render sets of a task, for training or for tests.

    Args:
        task: sky, grounds or turntable.
        out: new folder of the sets.
        count: number of sets.
        split: train, validation or test.
    """
    write_sets(task, split, count, out)
    print(f"wrote {count} sets of {task_of(task).rows} x {task_of(task).columns} panels to {out}")


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
