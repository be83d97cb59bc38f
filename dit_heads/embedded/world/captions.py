"""Captions of the blocks world: canonical ones, paraphrases, descriptions, joint captions of panels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dit_heads.embedded.world.scenes import COLOURS, SHAPES, Scene, Solid, sample_scene, split_seed
from dit_heads.errors import InputError
from dit_heads.tasks.markers import PLACES, families
from dit_heads.tasks.palette import COLOURS as CARDS

WHEN = {"day": "in the day", "sunset": "at sunset", "night": "at night"}
LONG_WHEN = {
    "day": "It is a bright day, the sky is blue and white.",
    "sunset": "The sun is low, the sky is orange at sunset.",
    "night": "It is a dark night with a moon and stars in the sky.",
}
NAMES = ("<Leo>", "<Mia>", "<Sam>", "<Zoe>", "<Max>", "<Ada>")
NUMBERS = ("one", "two", "three", "four", "five", "six")

# Instructions of vision tasks. Captions include them so that the text encoders learn all their words.
INSTRUCTIONS = (
    "Segment the {noun}: a white mask on a black background.",
    "Segment every {shape} in this image.",
    "Mark each pixel of the {noun} in white, everything else in black.",
    "Find the {noun} and outline it.",
    "Detect all objects and draw a blue box around each of them.",
    "Where is the {noun}? Put a box around it.",
    "Show the depth map of this scene: near is bright and far is dark.",
    "How far away is it? Estimate the distance in metres as gray values.",
    "If there is a {shape} then fill the frame with {card}, else with {card2}.",
    "Show {card} when you see a {colour} object, otherwise show {card2}.",
    "What shape is it? Paint {card} for a {shape} and {card2} if not.",
    "Which ground is this? Answer with a {card} or {card2} frame.",
    "Replace the {noun} with a {colour} {shape}.",
    "Remove the {noun} and keep the rest the same.",
    "Add a {colour} {shape} next to the {noun}.",
    "Change the sky to night but do not move the objects.",
    "Turn the ground into sand and the day into sunset.",
    "Make the {noun} {colour} and larger or smaller.",
    "Put the same subject from the first image into another place.",
    "Use this object instead of that one, without any other edit.",
    "The camera moves around: front view, side view, back view and a view from behind.",
    "Each view is turned by ninety degrees; rotate the object, same identity in all panels.",
    "A storyboard in three scenes: morning, evening and night, one story.",
    "A triptych of three panels: left, middle and right, top to bottom.",
    "A turntable of four views in a grid, first, second, third and fourth.",
    "A set of pictures with the same style and the same colours.",
    "Generate a new picture that follows this reference subject and instruction.",
    "Fill in the missing panel so that it fits its neighbours.",
)


def noun(solid: Solid, *, size: bool = True) -> str:
    """Size, finish, texture, colour and shape: "large shiny red cube". Plain and matt are not mentioned."""
    words = [solid.size] if size else []
    words += ["shiny"] if solid.shiny else []
    words += [solid.texture] if solid.texture != "plain" else []
    return " ".join([*words, solid.colour, solid.shape])


def _a(phrase: str) -> str:
    return ("an " if phrase[0] in "aeio" else "a ") + phrase


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def content(scene: Scene) -> str:
    """The solids from left to right, and the ground."""
    return f"{_listed([_a(noun(s)) for s in scene.solids])} on {scene.ground}"


def caption(scene: Scene) -> str:
    """The canonical caption, which names every attribute, from left to right."""
    style = "" if scene.style == "photo" else f", {scene.style}"
    return f"{content(scene)} {WHEN[scene.sky]}{style}"


def varied_caption(scene: Scene, rng: np.random.Generator) -> str:
    """A correct caption: mostly the canonical one, else a paraphrase, a shorter or a longer one."""
    draw = rng.random()
    if draw < 0.62:
        return caption(scene)
    if draw < 0.76:
        return reworded(scene, rng)
    if draw < 0.86:
        return partial(scene, rng)
    if draw < 0.96:
        return described(scene, rng)
    return f"{caption(scene)}. {instruction(scene, rng)}"


def reworded(scene: Scene, rng: np.random.Generator) -> str:
    """The content of the canonical caption in other words, with the places of two or three solids."""
    nouns = [_a(noun(s)) for s in scene.solids]
    things, where, when = _placed(nouns, rng), f"on {scene.ground}", WHEN[scene.sky]
    style = scene.style if scene.style != "photo" else str(rng.choice(["photo", "picture", "image"]))
    count = f"{'is' if len(nouns) == 1 else 'are'} {_objects(len(nouns))}"
    frames = [
        f"{_a(style)} of {things} {where} {when}",
        f"{style}: {things} {where} {when}",
        f"{when}, {things} {where}, {style}",
        f"show {things} {where} {when}, {_a(style)}",
        f"draw {things} {where} {when} as {_a(style)}",
        f"make {_a(style)} with {things} {where} {when}",
        f"There {count}: {things}. The ground is {scene.ground}, {when}, {style}.",
        f"{things} standing {where}, seen {when}, {style}",
    ]
    return str(rng.choice(frames))


def _objects(count: int) -> str:
    return f"{NUMBERS[count - 1]} object{'s' * (count > 1)}"


def _placed(nouns: list[str], rng: np.random.Generator) -> str:
    if len(nouns) == 2:
        a, b = nouns
        ways = [
            f"{a} to the left of {b}",
            f"{b} to the right of {a}",
            f"{a} on the left and {b} on the right",
            f"{a} beside {b}",
            f"{a} next to {b}",
        ]
        return str(rng.choice(ways))
    if len(nouns) == 3:
        a, b, c = nouns
        ways = [f"{a}, {b} and {c}", f"{a} on the left, {b} in the middle and {c} on the right"]
        return str(rng.choice(ways))
    return nouns[0]


def partial(scene: Scene, rng: np.random.Generator) -> str:
    """An incomplete caption, which may omit sizes, ground and sky."""
    nouns = [_a(noun(s, size=rng.random() < 0.4)) for s in scene.solids]
    where = f" on {scene.ground}" if rng.random() < 0.5 else ""
    when = f" {WHEN[scene.sky]}" if rng.random() < 0.5 else ""
    style = "" if scene.style == "photo" else f", {scene.style}"
    return _listed(nouns) + where + when + style


def described(scene: Scene, rng: np.random.Generator) -> str:
    """A description of 40 to 100 words, with one sentence per object."""
    style = "A photo" if scene.style == "photo" else f"{_a(scene.style).capitalize()} picture"
    parts = [f"{style} of {_objects(len(scene.solids))} on {scene.ground}."]
    name = str(rng.choice(NAMES)) if rng.random() < 0.3 else None
    for k, solid in enumerate(scene.solids):
        who = f"{name} is" if name and k == 0 else f"{_side(k, len(scene.solids))} there is"
        parts.append(f"{who} {_a(noun(solid))}, {_finish(solid)}.")
        if k:
            parts.append(_relation(solid, scene.solids[k - 1]))
    parts.append(LONG_WHEN[scene.sky])
    parts.append(f"The ground is {scene.ground} and each object casts a shadow on it.")
    return " ".join(parts)


def _side(k: int, count: int) -> str:
    return {1: ("In the middle",), 2: ("On the left", "On the right")}.get(
        count, ("On the left", "In the middle", "On the right")
    )[k]


def _finish(solid: Solid) -> str:
    surface = "shiny and bright" if solid.shiny else "matt"
    pattern = "of one plain colour" if solid.texture == "plain" else f"with a {solid.texture} pattern"
    return f"{surface}, {pattern}"


def _relation(solid: Solid, left: Solid) -> str:
    if abs(solid.z - left.z) < 0.3:
        return "Both stand side by side."
    where = "behind" if solid.z > left.z else "in front of"
    return f"The {solid.colour} {solid.shape} stands {where} the {left.colour} {left.shape}."


def instruction(scene: Scene, rng: np.random.Generator) -> str:
    """A random instruction about a solid of the scene."""
    solid = scene.solids[int(rng.integers(len(scene.solids)))]
    card, card2 = rng.choice(list(CARDS), 2, replace=False)
    words = {"noun": noun(solid, size=rng.random() < 0.5), "shape": str(rng.choice(SHAPES))}
    frame, colour = str(rng.choice(INSTRUCTIONS)), str(rng.choice(COLOURS))
    return frame.format(**words, colour=colour, card=card, card2=card2)


def world_prompts(count: int, style: str | None = None) -> list[str]:
    """Captions of scenes that the embedded models never saw in training.

    Args:
        count: number of captions.
        style: if given, the captions name solids and ground only, and leave the rest to the style.

    Raises:
        InputError: for a count below 1.
    """
    if count < 1:
        raise InputError(f"num_prompts: expected at least 1, got {count}")
    scenes = [sample_scene(split_seed("validation", 6_000_000 + i)) for i in range(count)]
    return [content(scene) if style else caption(scene) for scene in scenes]


# --- composites of panels ---

GRIDS = ((1, 2), (2, 1), (2, 2), (1, 3), (3, 1), (2, 3))  # rows, columns
SUMMARIES = (
    "{number} unrelated pictures.",
    "{number} unrelated pictures in {rows} rows and {columns} columns.",
    "{number} scenes.",
    "A set of pictures.",
    "{number} panels.",
    "{number} views, each of another scene.",
)


def panel_markers(rows: int, columns: int, rng: np.random.Generator) -> tuple[str, ...]:
    """Random markers for the panels of a grid, in reading order."""
    ways = families(rows, columns)
    ways += [PLACES[rows, columns]] if (rows, columns) in PLACES else []  # twice as often
    return ways[int(rng.integers(len(ways)))]


def panel_caption(scene: Scene, rng: np.random.Generator) -> str:
    """A panel's part of a joint caption: mostly the canonical caption, else a paraphrase."""
    return caption(scene) if rng.random() < 0.75 else reworded(scene, rng)


def joint_caption(panels: Sequence[str], rows: int, columns: int, rng: np.random.Generator) -> str:
    """A summary ("Four unrelated pictures."), then each panel's marker and caption, in reading order."""
    number = NUMBERS[len(panels) - 1].capitalize()
    summary = SUMMARIES[int(rng.integers(len(SUMMARIES)))]
    summary = summary.format(number=number, rows=rows, columns=columns)
    marked = [f"{m} {p}" for m, p in zip(panel_markers(rows, columns, rng), panels, strict=True)]
    return " ".join([summary, *marked])


def scenes_caption(scenes: Sequence[Scene], rows: int, columns: int, rng: np.random.Generator) -> str:
    """A joint caption of scenes in reading order."""
    return joint_caption([panel_caption(scene, rng) for scene in scenes], rows, columns, rng)


def padded_length(texts: Sequence[str]) -> int:
    """Smallest multiple of 32 T5 tokens that holds all texts: one per word or mark, and one for the end."""
    longest = max(len(t.replace(",", " ,").replace(".", " .").replace(":", " :").split()) for t in texts) + 1
    return -(-longest // 32) * 32
