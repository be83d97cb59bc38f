"""Instructions with pictures about scenes of the blocks world, with exact results: subjects in new scenes,
edits, and both at once (the three tasks of MIGE, arXiv 2502.21291)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from dit_heads.embedded.world.captions import WHEN, content, noun
from dit_heads.embedded.world.scenes import (
    COLOURS,
    GROUNDS,
    HELD_OUT,
    SKIES,
    STYLES,
    Scene,
    Solid,
    Split,
    sample_scene,
    split_seed,
)
from dit_heads.tasks.multimodal import PLACEHOLDER
from dit_heads.tasks.words import indefinite

Kind = Literal["subject", "edit", "compositional"]
AS_STYLE = {
    "line drawing": "a line drawing",
    "pixel art": "pixel art",
    "poster": "a poster",
    "vintage": "vintage",
}
SWAPS = 1_000_000  # added to the index of a scene that lends a look, so that it is another scene's


@dataclass(frozen=True)
class Edit:
    """An instruction and its result.

    Attributes:
        kind: the task.
        what: what changes, such as "recolour".
        prompt: the instruction, with a placeholder for each reference.
        target: the result.
        source: what is edited; None for a blank canvas.
        references: scenes whose pictures stand for the placeholders.
    """

    kind: Kind
    what: str
    prompt: str
    target: Scene
    source: Scene | None = None
    references: tuple[Scene, ...] = ()


def edit_of(split: Split, kind: Kind, index: int, held_out: bool = False) -> Edit:
    """Instruction `index` of a task, a function of its arguments alone.

    Args:
        split: whose scenes it is about.
        kind: the task.
        index: as of `scene_of`.
        held_out: whether each scene has a combination of colour and shape that training never shows.
    """
    rng = np.random.default_rng((7, split_seed(split, index), list(KINDS).index(kind)))
    seeds = (split_seed(split, each) for each in (index, SWAPS + index))
    scene, other = (sample_scene(seed, held_out=held_out) for seed in seeds)
    return KINDS[kind](scene, other, rng)


def portrait(solid: Solid, rng: np.random.Generator) -> Scene:
    """A picture of a solid alone, turned, on some ground under some sky."""
    turned = replace(solid, x=0.0, z=0.0, yaw=float(rng.uniform(0, np.pi / 2)))
    phase: tuple[float, float, float, float] = tuple(rng.uniform(0, 6, 4).tolist())  # pyright: ignore
    return Scene((turned,), str(rng.choice(GROUNDS)), str(rng.choice(SKIES)), "photo", phase)


# --- subjects ---


def _subject(scene: Scene, _: Scene, rng: np.random.Generator) -> Edit:
    """The caption of a scene with a picture in place of a solid."""
    target = replace(scene, style="photo")
    number = int(rng.integers(len(scene.solids)))
    solid = scene.solids[number]
    words = f"{content(target)} {WHEN[target.sky]}"
    before, found, after = _cut(words, scene.solids, number)
    assert found == noun(solid)
    return Edit("subject", "subject", before + PLACEHOLDER + after, target, None, (portrait(solid, rng),))


def _cut(words: str, solids: tuple[Solid, ...], number: int) -> tuple[str, str, str]:
    """The text before the name of a solid, with no article, the name, and the text after it."""
    at = 0
    for solid in solids[:number]:
        at = words.index(noun(solid), at) + len(noun(solid))
    name = noun(solids[number])
    start = words.index(name, at)
    before = words[:start]
    article = before.rstrip().rsplit(" ", 1)[-1]
    return before.rstrip().removesuffix(article), name, words[start + len(name) :]


# --- edits ---


def _edit(scene: Scene, other: Scene, rng: np.random.Generator) -> Edit:
    """A change that words describe. A scene with one solid keeps it."""
    impossible = {"add", "remove"} if len(scene.solids) == 1 else set[str]()
    impossible |= set() if _resizable(scene) else {"resize"}
    names = [name for name in EDITS if name not in impossible]
    what = names[int(rng.integers(len(names)))]
    source, target, prompt = EDITS[what](scene, other, rng)
    return Edit("edit", what, prompt, target, source)


Change = tuple[Scene, Scene, str]


def _recolour(scene: Scene, _: Scene, rng: np.random.Generator) -> Change:
    number = int(rng.integers(len(scene.solids)))
    solid = scene.solids[number]
    new = _coloured(solid, rng)
    return scene, _with(scene, number, new), f"Make the {noun(solid)} {new.colour}."


def _resize(scene: Scene, _: Scene, rng: np.random.Generator) -> Change:
    """A large solid becomes small; a small one large only where it is alone, so that none get in the way."""
    free = _resizable(scene)
    number = free[int(rng.integers(len(free)))]
    solid = scene.solids[number]
    size, word = ("large", "larger") if solid.size == "small" else ("small", "smaller")
    return scene, _with(scene, number, replace(solid, size=size)), f"Make the {noun(solid)} {word}."


def _resizable(scene: Scene) -> list[int]:
    large = [k for k, solid in enumerate(scene.solids) if solid.size == "large"]
    return [0] if len(scene.solids) == 1 else large


def _add(scene: Scene, _: Scene, rng: np.random.Generator) -> Change:
    number, near = _two(scene, rng)
    words = f"Add {indefinite(noun(scene.solids[number]))} next to the {noun(scene.solids[near])}."
    return _without(scene, number), scene, words


def _remove(scene: Scene, _: Scene, rng: np.random.Generator) -> Change:
    number = int(rng.integers(len(scene.solids)))
    words = f"Remove the {noun(scene.solids[number])} and keep the rest the same."
    return scene, _without(scene, number), words


def _swap(scene: Scene, other: Scene, rng: np.random.Generator) -> Change:
    number, look = int(rng.integers(len(scene.solids))), other.solids[0]
    solid = scene.solids[number]
    new = _looking(solid, look, rng)
    words = f"Replace the {noun(solid)} with {indefinite(noun(new))}."
    return scene, _with(scene, number, new), words


def _sky(scene: Scene, _: Scene, rng: np.random.Generator) -> Change:
    sky = _another(SKIES, scene.sky, rng)
    return scene, replace(scene, sky=sky), f"Change the sky to {sky}."


def _ground(scene: Scene, _: Scene, rng: np.random.Generator) -> Change:
    ground = _another(GROUNDS, scene.ground, rng)
    return scene, replace(scene, ground=ground), f"Turn the ground into {ground}."


def _style(scene: Scene, _: Scene, rng: np.random.Generator) -> Change:
    source = replace(scene, style="photo")
    style = _another(STYLES, "photo", rng)
    return source, replace(scene, style=style), f"Make the picture {AS_STYLE[style]}."


EDITS: dict[str, Callable[[Scene, Scene, np.random.Generator], Change]] = {
    "recolour": _recolour,
    "resize": _resize,
    "add": _add,
    "remove": _remove,
    "swap": _swap,
    "sky": _sky,
    "ground": _ground,
    "style": _style,
}


# --- both ---


def _compositional(scene: Scene, other: Scene, rng: np.random.Generator) -> Edit:
    """A solid in a picture is added to a scene, or takes the place of another."""
    if len(scene.solids) > 1 and rng.random() < 0.5:
        number, near = _two(scene, rng)
        words = f"Add {PLACEHOLDER} next to the {noun(scene.solids[near])}."
        shown = (portrait(scene.solids[number], rng),)
        return Edit("compositional", "add", words, scene, _without(scene, number), shown)
    number, look = int(rng.integers(len(scene.solids))), other.solids[0]
    solid = scene.solids[number]
    target = _with(scene, number, _looking(solid, look, rng))
    words = f"Replace the {noun(solid)} with {PLACEHOLDER}."
    return Edit("compositional", "replace", words, target, scene, (portrait(target.solids[number], rng),))


KINDS: dict[Kind, Callable[[Scene, Scene, np.random.Generator], Edit]] = {
    "subject": _subject,
    "edit": _edit,
    "compositional": _compositional,
}


# --- scenes ---


def _two(scene: Scene, rng: np.random.Generator) -> tuple[int, int]:
    """Two different solids of a scene."""
    one, two = rng.choice(len(scene.solids), 2, replace=False)
    return int(one), int(two)


def _with(scene: Scene, number: int, solid: Solid) -> Scene:
    return replace(scene, solids=(*scene.solids[:number], solid, *scene.solids[number + 1 :]))


def _without(scene: Scene, number: int) -> Scene:
    return replace(scene, solids=(*scene.solids[:number], *scene.solids[number + 1 :]))


def _looking(solid: Solid, look: Solid, rng: np.random.Generator) -> Solid:
    """A solid in its place and size, with the look of another, or in another colour if that is its own."""
    new = replace(look, size=solid.size, x=solid.x, z=solid.z, yaw=solid.yaw)
    return _coloured(new, rng) if new == solid else new


def _coloured(solid: Solid, rng: np.random.Generator) -> Solid:
    """A solid in another colour, in a combination that training may show."""
    free = [c for c in COLOURS if c != solid.colour and (c, solid.shape) not in HELD_OUT]
    return replace(solid, colour=free[int(rng.integers(len(free)))])


def _another(values: tuple[str, ...], value: str, rng: np.random.Generator) -> str:
    free = [each for each in values if each != value]
    return free[int(rng.integers(len(free)))]
