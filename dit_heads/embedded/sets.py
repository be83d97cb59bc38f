"""Sets of scenes for in-context LoRAs (arXiv 2410.23775) with joint captions, and how far painted sets agree.

Three tasks: `sky` shows one scene by day, at sunset and at night; `grounds` shows one subject in three
places; `turntable` turns two solids by 0, 90, 180 and 270 degrees. The embedded models saw none of them.

    python -m dit_heads.embedded.sets sky --count 60 --out FOLDER
"""

from __future__ import annotations

import itertools
import math
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Annotated

import numpy as np
import torch
import tyro
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from dit_heads.embedded.nets.judge import COUNTS, Judge, Verdict, verdict
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

FIRST = 8_000_000  # sets start here in a split, far from the scenes of training, evaluation and searches
TURNS = (0, 90, 180, 270)  # degrees
FRAMES = ("{things} {when}", "{when}, {things}")
NAMED_FRAMES = ("{name} is {things} {when}", "{when}, {name} is {things}")


@dataclass(frozen=True)
class SceneSet:
    """A set of `task`: a scene a panel, row by row, and the joint caption of all."""

    task: str
    scenes: tuple[Scene, ...]
    caption: str


@dataclass(frozen=True)
class Task:
    """`rows` x `columns` panels, whose scenes `sample` draws from a seed. `summaries` and `frames` of panels
    are ways to say it; `identity` are the attributes of solids that all panels share."""

    rows: int
    columns: int
    sample: Callable[[int], tuple[Scene, ...]]
    summaries: tuple[str, ...]
    frames: tuple[str, ...] = FRAMES
    identity: tuple[str, ...] = tuple(ATTRIBUTES)


def task_of(name: str) -> Task:
    """The entry of `TASKS`; ValueError for another name."""
    if name not in TASKS:
        raise InputError(f"task: expected one of {', '.join(TASKS)}, got {name!r}")
    return TASKS[name]


def sample_set(task: str, seed: int) -> SceneSet:
    """The set of a seed; like the world's scenes, without held-out combinations of colour and shape. Raises
    ValueError for an unknown task."""
    scenes = task_of(task).sample(seed)
    return SceneSet(task, scenes, _joint_caption(task_of(task), scenes, _rng("words", seed)))


def split_sets(task: str, split: Split, count: int) -> list[SceneSet]:
    """The first `count` sets of a split; splits share no seed. Raises ValueError for an unknown task and a
    count below 1."""
    if count < 1:
        raise InputError(f"count: expected at least 1, got {count}")
    return [sample_set(task, split_seed(split, FIRST + i)) for i in range(count)]


def _rng(use: str, seed: int) -> np.random.Generator:
    """Random numbers of a seed that are not those of its scene, nor those of another use."""
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
    """A scene of the subject alone, placed as the world places single solids."""
    x, z, yaw = rng.uniform(-0.5, 0.5), rng.uniform(-0.8, 0.9), rng.uniform(0, math.pi / 2)
    a, b, c, d = rng.uniform(0, 6, 4).tolist()
    return Scene((replace(subject, x=x, z=z, yaw=yaw),), ground, str(rng.choice(SKIES)), phase=(a, b, c, d))


def _turntable(seed: int) -> tuple[Scene, ...]:
    """Two solids: one would hardly change, and three hide each other from some side."""
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
    """The scene with its solids turned clockwise, seen from above, about the vertical axis through the mean
    of their places: what is on the right comes to the front at 90 degrees. Light, ground and camera stay."""
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
    """Whether each solid is in the picture over its whole width, and little of it behind another."""
    # The corners of a cube stand out beyond its radius by a sixth, and more when they come near.
    inside = all(abs(s.bearing) + 1.3 * s.half_width < HALF_VIEW and abs(s.z) < 0.9 for s in scene.solids)
    return inside and all(_apart(a, b) for a, b in itertools.combinations(scene.solids, 2))


def _apart(a: Solid, b: Solid) -> bool:
    touching = math.hypot(a.x - b.x, a.z - b.z) < 1.15 * (a.radius + b.radius)
    return not touching and abs(a.bearing - b.bearing) > 0.8 * (a.half_width + b.half_width)


# --- captions ---


def _joint_caption(task: Task, scenes: Sequence[Scene], rng: np.random.Generator) -> str:
    """A summary, then what each panel shows behind its marker, in words of the embedded vocabulary."""
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
        # A turn changes how far away a solid is, so how large it looks is no part of what it is.
        identity=("shape", "colour", "texture"),
    ),
}


# --- files ---


def write_sets(task: str, split: Split, count: int, folder: str | Path) -> None:
    """Render sets as `loras.dataset` reads them: `folder/set000/1.png` ... and `caption.txt`. The folder is
    there when it is complete.

    Raises ValueError for an unknown task, a count below 1 and a folder that exists already."""
    sets, folder = split_sets(task, split, count), Path(folder)
    if folder.exists():
        raise InputError(f"out: expected a new folder, got '{folder}', which exists")
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        for number, one in enumerate(tqdm(sets, desc=f"rendering {task}", leave=False)):
            _write_set(one, unfinished / f"set{number:03d}")
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write_set(one: SceneSet, folder: Path) -> None:
    folder.mkdir(parents=True)
    for number, scene in enumerate(one.scenes, 1):
        Image.fromarray(render(scene).image).save(folder / f"{number}.png")
    (folder / "caption.txt").write_text(one.caption + "\n", "utf-8")


# --- agreement of painted sets ---


@dataclass(frozen=True)
class Agreement:
    """What the judge finds in painted sets: `right`, a panel shows all that its caption asks for; `share`, of
    the attributes that are right; `kept`, the solids are the same in all panels of a set."""

    right: Bool[Tensor, "s p"]
    share: Float[Tensor, "s p"]
    kept: Bool[Tensor, " s"]


def agreement(judge: Judge, pictures: Float[Tensor, "s p 3 128 128"], sets: Sequence[SceneSet]) -> Agreement:
    """Judge panels in [-1, 1] of sets of one task. Raises ValueError for other numbers of panels, and for
    several tasks."""
    tasks = {one.task for one in sets}
    if len(tasks) != 1:
        raise InputError(f"sets: expected sets of one task, got {sorted(tasks)}")
    panels = len(sets[0].scenes)
    if pictures.shape[:2] != (len(sets), panels):
        raise InputError(
            f"pictures: expected {len(sets)} x {panels} panels, got the shape {tuple(pictures.shape)}"
        )
    judged = verdict(judge, pictures.flatten(0, 1), [scene for one in sets for scene in one.scenes])
    return Agreement(
        panels_right(judged, panels),
        judged.per_picture().view(-1, panels),
        identity_kept(judge, pictures, tasks.pop()),
    )


def panels_right(judged: Verdict, panels: int) -> Bool[Tensor, "s p"]:
    """Whether all attributes that were asked of a panel are right; the verdict's pictures are sets of
    `panels` panels, one set after the other."""
    whole = [ok for ok in judged.right.values() if ok.ndim == 1]
    solid = [(ok | ~judged.asked).all(-1) for ok in judged.right.values() if ok.ndim == 2]
    return torch.stack(whole + solid).all(0).view(-1, panels)


@torch.no_grad()
def identity_kept(
    judge: Judge, pictures: Float[Tensor, "s p 3 128 128"], task: str, batch: int = 32
) -> Bool[Tensor, " s"]:
    """Whether the judge sees the same solids in all panels of a set, whatever the caption asks for: as many,
    of the same attributes (`Task.identity`); places do not matter. Raises ValueError for an unknown task."""
    names = task_of(task).identity
    seen = [
        found for part in pictures.flatten(0, 1).split(batch) for found in solids_seen(judge(part), names)
    ]
    panels = pictures.shape[1]
    sets = [seen[at : at + panels] for at in range(0, len(seen), panels)]
    return torch.tensor([len(set(one)) == 1 for one in sets])


Seen = tuple[tuple[str, ...], ...]


def solids_seen(said: Mapping[str, Tensor], names: Sequence[str] = tuple(ATTRIBUTES)) -> list[Seen]:
    """What logits of the judge (`count` [B, 3]; `names` [B, 3, classes]) say of each picture: the attributes
    of each solid that it counts, sorted, so that equal multisets of solids are equal."""
    counts = [COUNTS[k] for k in said["count"].argmax(-1).tolist()]
    classes = torch.stack([said[name].argmax(-1) for name in names], -1).tolist()  # [B, 3, names]
    return [
        tuple(sorted(_in_words(solid, names) for solid in solids[:count]))
        for solids, count in zip(classes, counts, strict=True)
    ]


def _in_words(solid: Sequence[int], names: Sequence[str]) -> tuple[str, ...]:
    return tuple(ATTRIBUTES[name][k] for name, k in zip(names, solid, strict=True))


# --- command ---


def main(
    task: Annotated[str, tyro.conf.Positional],
    out: Path,
    count: int = 60,
    split: Split = "train",
) -> None:
    """Render `count` sets of a task (sky, grounds or turntable) into the new folder `out`, for training or,
    from another split, for tests."""
    write_sets(task, split, count, out)
    print(f"wrote {count} sets of {task_of(task).rows} x {task_of(task).columns} panels to {out}")


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
