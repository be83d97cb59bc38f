"""Questions about scenes of the blocks world, and their exact answers: what the instruct task learns from."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from dit_heads.embedded.world.data import scene_of
from dit_heads.embedded.world.render import SIZE, Rendering, render
from dit_heads.embedded.world.scenes import COLOURS, GROUNDS, SHAPES, SKIES, Scene, Solid, Split
from dit_heads.errors import InputError
from dit_heads.io.fingerprints import content_hash
from dit_heads.tasks.annotations import (
    Annotation,
    Boxes,
    Depth,
    Instances,
    Labels,
    Segmentation,
    box_of,
)
from dit_heads.tasks.query import ANYTHING, OTHER, TASKS, Query, Task

VERSION = 1  # raise it when the same index would give another picture or answer
ABSENT = 0.15  # share of questions about something that is not there
SEVERAL = 0.3  # share of questions about several classes at once
ALONE = 0.8  # share of choices in which one answer stands against all others
PLACES = ("sky", "ground")  # what can be segmented beside solids
NUMBERS = ("one", "two", "three")


class WorldPairs:
    """Scenes of a split of the blocks world, with questions and answers.

    Args:
        split: "train", "validation" or "test"; they share no scene.
        count: number of scenes.
        size: height and width of pictures.
    """

    tasks: tuple[Task, ...] = TASKS

    def __init__(self, split: Split, count: int, size: int = SIZE) -> None:
        self.split: Split = split
        self.count, self.size = count, size
        self._rendered = functools.lru_cache(64)(self._render)

    def __len__(self) -> int:
        return self.count

    @property
    def key(self) -> str:
        """Names all pictures and answers by content."""
        return content_hash("blocks world", str(VERSION), self.split, str(self.size))

    def name(self, index: int) -> str:
        """The name of a scene, for messages."""
        return f"{self.split} scene {index}"

    def picture(self, index: int) -> Image.Image:
        """A scene as it looks."""
        return Image.fromarray(self._rendered(index).image)

    def question(self, index: int, task: Task, rng: np.random.Generator) -> Query:
        """A question of a task that a scene has an answer to."""
        return QUESTIONS[task](scene_of(self.split, index), rng)

    def answer(self, index: int, query: Query) -> Annotation:
        """The exact answer to a question."""
        return ANSWERS[query.task](scene_of(self.split, index), self._rendered(index), query)

    def _render(self, index: int) -> Rendering:
        return render(scene_of(self.split, index), self.size)


# --- questions ---


def _segment(scene: Scene, rng: np.random.Generator) -> Query:
    if rng.random() < SEVERAL:
        return Query("segment", _several_shapes(scene, rng))
    draw = rng.random()
    if draw < 0.15:
        return Query("segment", (str(rng.choice(PLACES)),))
    return Query("segment", (ANYTHING if draw < 0.3 else _class(scene, rng),))


def _instances(scene: Scene, rng: np.random.Generator) -> Query:
    return Query("instances", (ANYTHING if rng.random() < 0.6 else _class(scene, rng),))


def _detect(scene: Scene, rng: np.random.Generator) -> Query:
    if rng.random() < SEVERAL:
        return Query("detect", _several_shapes(scene, rng))
    return Query("detect", (ANYTHING if rng.random() < 0.25 else _class(scene, rng),))


def _depth(_: Scene, __: np.random.Generator) -> Query:
    return Query("depth")


def _classify(scene: Scene, rng: np.random.Generator) -> Query:
    """Which of several answers is true of a scene, or whether one of them is."""
    query = choice_of(scene, rng)
    if rng.random() < ALONE:
        return Query("classify", (query.names[int(rng.integers(len(query.names)))], OTHER))
    return query


def choice_of(scene: Scene, rng: np.random.Generator) -> Query:
    """Which of two to four answers is true of a scene, as ground, sky, number of solids or shape."""
    right, others = _facts(scene)[int(rng.integers(len(_facts(scene))))]
    count = min(int(rng.integers(1, 4)), len(others))
    answers = [right, *(str(name) for name in rng.choice(others, count, replace=False))]
    return Query("classify", tuple(answers[k] for k in rng.permutation(len(answers))))


def _facts(scene: Scene) -> list[tuple[str, tuple[str, ...]]]:
    """What is true of a scene, each with what could be in its place and is not."""
    number = NUMBERS[len(scene.solids) - 1]
    facts = [(scene.ground, GROUNDS), (scene.sky, SKIES), (number, NUMBERS)]
    for name, values in (("shape", SHAPES), ("colour", COLOURS)):
        there = {getattr(solid, name) for solid in scene.solids}
        if len(there) == 1:
            (one,) = there
            facts.append((f"{one} object" if name == "colour" else one, _objects(values, name)))
    return [(right, tuple(value for value in values if value != right)) for right, values in facts]


def _objects(values: tuple[str, ...], name: str) -> tuple[str, ...]:
    return tuple(f"{value} object" for value in values) if name == "colour" else values


def _class(scene: Scene, rng: np.random.Generator) -> str:
    """A shape, or a shape and its colour, mostly of a solid that is there."""
    solid = scene.solids[int(rng.integers(len(scene.solids)))]
    shape, colour = solid.shape, solid.colour
    if rng.random() < ABSENT:
        shape, colour = str(rng.choice(SHAPES)), str(rng.choice(COLOURS))
    return shape if rng.random() < 0.6 else f"{colour} {shape}"


def _several_shapes(scene: Scene, rng: np.random.Generator) -> tuple[str, ...]:
    """Two or three shapes, one of which is there."""
    first = scene.solids[int(rng.integers(len(scene.solids)))].shape
    others = [shape for shape in SHAPES if shape != first]
    names = [first, *(str(n) for n in rng.choice(others, int(rng.integers(1, 3)), replace=False))]
    return tuple(names[k] for k in rng.permutation(len(names)))


QUESTIONS: dict[Task, Callable[[Scene, np.random.Generator], Query]] = {
    "segment": _segment,
    "instances": _instances,
    "detect": _detect,
    "depth": _depth,
    "classify": _classify,
}


# --- answers ---


def is_a(solid: Solid, name: str) -> bool:
    """Whether each word of a name is true of a solid."""
    true = {solid.shape, solid.colour, solid.texture, solid.size, ANYTHING}
    return set(name.split()) <= true | ({"shiny"} if solid.shiny else set())


def _segmentation(scene: Scene, seen: Rendering, query: Query) -> Segmentation:
    """Of classes that overlap, the one that is named last."""
    labels = np.zeros(seen.ids.shape, np.int64)
    free = seen.ids == 0
    areas = {"sky": free & np.isinf(seen.depth), "ground": free & np.isfinite(seen.depth)}
    for k, name in enumerate(query.names, 1):
        if name in areas:
            labels[areas[name]] = k
        for number, solid in enumerate(scene.solids, 1):
            if is_a(solid, name):
                labels[seen.ids == number] = k
    return Segmentation(labels, query.names)


def _named(scene: Scene, seen: Rendering, query: Query) -> list[tuple[Any, str]]:
    """The visible pixels of each solid that is asked for, and the first name that it has."""
    found = []
    for number, solid in enumerate(scene.solids, 1):
        name = next((name for name in query.names if is_a(solid, name)), None)
        if name is not None and (mask := seen.ids == number).any():
            found.append((mask, name))
    return found


def _instance_masks(scene: Scene, seen: Rendering, query: Query) -> Instances:
    found = _named(scene, seen, query)
    masks = np.stack([mask for mask, _ in found]) if found else np.zeros((0, *seen.ids.shape), bool)
    return Instances(masks, tuple(name for _, name in found))


def _boxes(scene: Scene, seen: Rendering, query: Query) -> Boxes:
    found = _named(scene, seen, query)
    boxes = np.array([box_of(mask) for mask, _ in found], float).reshape(-1, 4)
    return Boxes(boxes, tuple(name for _, name in found), seen.ids.shape)


def _labels(scene: Scene, _: Rendering, query: Query) -> Labels:
    """Of facts about the whole scene: exactly one of the answers is one, or none and `OTHER` is an answer."""
    true = {right for right, _ in _facts(scene)}
    right = [name for name in query.names if name in true]
    if not right and OTHER in query.names:
        right = [OTHER]
    if len(right) != 1:
        raise InputError(f"query: expected one true answer among {', '.join(query.names)}, got {right}")
    return Labels.of(query.names, right[0])


ANSWERS: dict[Task, Callable[[Scene, Rendering, Query], Annotation]] = {
    "segment": _segmentation,
    "instances": _instance_masks,
    "detect": _boxes,
    "depth": lambda scene, seen, query: Depth.from_metres(seen.depth),
    "classify": _labels,
}
