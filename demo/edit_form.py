"""From what a visitor entered in Edit to what is asked for, and examples to begin with."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Any

from PIL import Image

from dit_heads.cli.edit import EditSettings
from dit_heads.demo.editing import Asked, asked, resolution
from dit_heads.demo.facts import Facts
from dit_heads.demo.files import plain_uri
from dit_heads.demo.limits import Limits
from dit_heads.demo.set_form import change, picture_from
from dit_heads.errors import InputError
from dit_heads.tasks.multimodal import MOST, PLACEHOLDER

WHOLE, INSIDE = "whole", "inside"
"""Where a picture may change: everywhere, or inside of a mask."""
_EXAMPLES = (("edit", 2), ("compositional", 0), ("edit", 7), ("subject", 0), ("subject", 7))
"""Tasks and numbers of instructions of the test split."""


@dataclass(frozen=True)
class Example:
    """An instruction with its pictures."""

    text: str
    picture: Image.Image | None
    references: dict[str, Image.Image]

    @property
    def thumb(self) -> Image.Image:
        """What stands for it: its picture, or else its first reference."""
        return self.picture or next(iter(self.references.values()))


@cache
def examples() -> tuple[Example, ...]:
    """Instructions about scenes of the embedded world. A reference has the name of its shape."""
    from dit_heads.embedded.edits import edit_of
    from dit_heads.embedded.world.render import render

    def drawn(scene: Any) -> Image.Image:
        return Image.fromarray(render(scene).image)

    def example(kind: Any, number: int) -> Example:
        made = edit_of("test", kind, number)
        references = {scene.solids[0].shape: drawn(scene) for scene in made.references}
        text = made.prompt
        for name in references:
            text = text.replace(PLACEHOLDER, f"<{name}>", 1)
        return Example(text, None if made.source is None else drawn(made.source), references)

    return tuple(example(*each) for each in _EXAMPLES)


def example_change(example: Example) -> dict[str, Any]:
    """The page with an example."""
    return change(
        picture="" if example.picture is None else plain_uri(example.picture),
        shows="A rendered scene",
        instruction=example.text,
        references=[{"name": name, "src": plain_uri(each)} for name, each in example.references.items()],
        area=WHOLE,
        problem="",
    )


def asked_for(
    facts: Facts, board: object, settings: dict[str, Any], limits: Limits, *, masked: bool
) -> Asked:
    """What a visitor asks for.

    Args:
        facts: of the model.
        board: the value of the page's own part.
        settings: by their names.
        limits: of the page.
        masked: whether the mask counts, if there is one.

    Raises:
        InputError: for what does not fit, as of `editing.asked`, and what is no picture.
    """
    entered = board if isinstance(board, dict) else {}
    picture = picture_from(entered["picture"], limits) if entered.get("picture") else None
    mask = None
    if masked and picture is not None and entered.get("area") == INSIDE:
        mask = mask_from(entered.get("mask"), limits)
    chosen = EditSettings(model=facts.name, processing_resolution=resolution(picture, facts.side), **settings)
    given = references_from(entered.get("references"), limits)
    return asked(entered.get("instruction"), given, picture, mask, chosen, facts.multimodal, limits)


def references_from(value: object, limits: Limits) -> dict[str, Image.Image]:
    """The pictures that a visitor gave, by slots. Raises InputError for what is no list of them, and
    for too many."""
    lines = [] if value is None else value
    if not isinstance(lines, list) or not all(
        isinstance(each, dict) and isinstance(each.get("name"), str) for each in lines
    ):
        raise InputError("references: expected a list of names with pictures, got something else")
    if len(lines) > MOST:
        raise InputError(
            f"references: expected at most {MOST} pictures, got {len(lines)}; please remove those that the "
            "instruction does not name"
        )
    return {each["name"][: limits.characters]: _reference(each, limits) for each in lines}


def _reference(line: dict[str, Any], limits: Limits) -> Image.Image:
    try:
        return picture_from(line.get("src"), limits)
    except InputError as error:
        raise InputError(f"references: <{line['name'][:80]}>: {error}") from error


def mask_from(uri: object, limits: Limits) -> Image.Image:
    """A mask that was painted. Raises InputError for none, and for what is no picture."""
    if not uri:
        raise InputError("mask: expected one; please paint it or find it, or let the whole picture change")
    try:
        found = picture_from(uri, limits)
    except InputError as error:
        raise InputError(re.sub("^(picture|file)", "mask", str(error))) from error
    return found.convert("L").point([0] * 128 + [255] * 128)
