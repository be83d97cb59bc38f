"""From what a visitor entered to the settings of a set, and back."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from PIL import Image

from dit_heads.cli.in_context import SetSettings, panels_in
from dit_heads.demo.facts import Facts
from dit_heads.demo.files import png_uri, received
from dit_heads.demo.in_context import grid_for, joint_caption, layouts
from dit_heads.demo.limits import Limits, check_text
from dit_heads.errors import InputError
from dit_heads.io.pictures import decode
from dit_heads.loras.sets.captions import JointCaption
from dit_heads.loras.sets.panels import fit_panel
from dit_heads.tasks.markers import PLACES

_URI = "data:image/png;base64,"


@dataclass(frozen=True)
class Example:
    """A set to begin with: its LoRA, and the first panel where it is given."""

    name: str
    lora: str
    rows: int
    columns: int
    caption: JointCaption
    first: Image.Image | None = None


@cache
def examples() -> tuple[Example, ...]:
    """Sets of the embedded world, as the shipped LoRAs learned them."""
    from dit_heads.embedded.sets import split_sets, task_of
    from dit_heads.embedded.world.render import render

    def example(name: str, task: str, number: int, given: bool = False) -> Example:
        one, kind = split_sets(task, "test", number + 1)[number], task_of(task)
        first = Image.fromarray(render(one.scenes[0]).image) if given else None
        return Example(name, task, kind.rows, kind.columns, JointCaption.parse(one.caption), first)

    return (
        example("Day, sunset, night", "sky", 8),
        example("One subject, three places", "grounds", 9),
        example("A turntable", "turntable", 5),
        example("By day is given", "sky", 10, given=True),
    )


def caption_from(facts: Facts, value: object, limits: Limits) -> tuple[int, int, str]:
    """Rows, columns and the joint caption that a visitor entered.

    Raises:
        InputError: for a layout that the model cannot draw, and for a panel without words.
    """
    rows, columns = layout_from(facts, value, limits)
    entered = value if isinstance(value, dict) else {}
    summary, texts = entered.get("summary") or "", entered.get("texts")
    words = list(texts) if isinstance(texts, list) else []
    words = [text or "" for text in [*words, *[""] * (rows * columns)][: rows * columns]]
    check_text(limits, summary=summary, **{f"panel {n + 1}": text for n, text in enumerate(words)})
    return rows, columns, joint_caption(rows, columns, summary, words)


def layout_from(facts: Facts, value: object, limits: Limits) -> tuple[int, int]:
    """Rows and columns that a visitor chose. Raises InputError for what the model cannot draw."""
    there = layouts(facts, limits.pixels)
    found = value.get("layout") if isinstance(value, dict) else None
    for layout in there:
        if found == list(layout):
            return layout
    raise InputError(f"layout: expected one of {', '.join(f'{r} x {c}' for r, c in there)}")


def given_from(
    facts: Facts, value: object, layout: tuple[int, int], limits: Limits
) -> dict[int, Image.Image]:
    """The panels that a visitor gave, of the size of their cells, by their numbers.

    Raises:
        InputError: for one that is no picture, or too large.
    """
    found = value.get("given") if isinstance(value, dict) else None
    pictures = found if isinstance(found, dict) else {}
    panels = {str(number): number for number in range(layout[0] * layout[1])}
    return {
        number: fitted(facts, layout, picture_from(pictures[key], limits))
        for key, number in panels.items()
        if pictures.get(key)
    }


def picture_from(uri: object, limits: Limits) -> Image.Image:
    """A picture in base64, bounded before it is decoded. Raises InputError for anything else."""
    text = uri.removeprefix(_URI) if isinstance(uri, str) else uri
    data = received(text, limits.upload_bytes)
    try:
        return decode(data, limits.upload_pixels)
    except InputError as error:
        raise InputError(f"picture: this file {error}") from error


def fitted(facts: Facts, layout: tuple[int, int], picture: Image.Image) -> Image.Image:
    """A picture cropped to a panel."""
    grid = grid_for(facts, *layout)
    return fit_panel(picture, grid.heights[0], grid.widths[0])


# --- and back ---


def layout_lines(facts: Facts, limits: Limits) -> list[dict[str, Any]]:
    """The layouts of a model for the page, each with the names of its places."""
    return [
        {"rows": rows, "columns": columns, "places": [place_name(mark) for mark in PLACES[rows, columns]]}
        for rows, columns in layouts(facts, limits.pixels)
    ]


def first_layout(lines: Sequence[Mapping[str, Any]]) -> list[int]:
    """Rows and columns of the first layout."""
    return [lines[0]["rows"], lines[0]["columns"]] if lines else []


def place_name(marker: str) -> str:
    """What the page calls a panel: [TOP-LEFT] is "Top left"."""
    return marker.strip("[]").replace("-", " ").capitalize()


def change(**parts: Any) -> dict[str, Any]:
    """What the page's own part takes over once: everything that is left out stays as the visitor has it."""
    return {**parts, "stamp": secrets.token_hex(6)}


def example_change(example: Example) -> dict[str, Any]:
    """The page with an example."""
    given = {} if example.first is None else {"0": png_uri(example.first, {})}
    return filled(example.rows, example.columns, example.caption, given)


def filled(rows: int, columns: int, caption: JointCaption, given: Mapping[str, str]) -> dict[str, Any]:
    """The page with a caption and given panels."""
    words = {"summary": caption.summary, "texts": list(caption.panels)}
    return change(layout=[rows, columns], given=dict(given), problem="", **words)


def settings_change(
    facts: Facts, settings: SetSettings, image: Image.Image, given: Sequence[int]
) -> dict[str, Any]:
    """The page with the settings of a picture.

    Raises:
        InputError: for a picture of another size than its settings say.
    """
    grid = grid_for(facts, settings.rows, settings.columns)
    panels = {str(n): png_uri(panel, {}) for n, panel in panels_in(image, grid, given).items()}
    return filled(settings.rows, settings.columns, JointCaption.parse(settings.prompt), panels)
