"""In-context: a set of pictures from one joint caption, whole or around given panels."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from dit_heads.cli.in_context import SetSettings, set_of, stored_set
from dit_heads.cli.loras import SUFFIX, parsed_lora
from dit_heads.demo import set_form
from dit_heads.demo.components import component, event_data
from dit_heads.demo.controls import (
    model_choice,
    negative_prompt,
    recipe_codes,
    seed_line,
    slider,
)
from dit_heads.demo.facts import Facts, known_as
from dit_heads.demo.files import opened, png_uri, received
from dit_heads.demo.in_context import DrawingSet, DrawnSet, check_set_settings, grid_for
from dit_heads.demo.lora_files import bring, chosen, entries, shipped
from dit_heads.demo.page import QUIET, Page, cancelling, visitor
from dit_heads.demo.recipes import given_file, set_command_line, set_python_code
from dit_heads.demo.sentences import sentence
from dit_heads.demo.stages import drawing, whole_numbers
from dit_heads.errors import InputError
from dit_heads.loras.sets.panels import split
from dit_heads.tasks.markers import PLACES

STEPS = 14
NAMES = ("seed", "negative_prompt", "guidance_scale", "steps")
"""Settings that have a control of their own, in the order of the controls."""


def build(page: Page) -> None:
    """Lay the tab out and connect it."""
    with gr.Row(equal_height=False, elem_classes="dh-columns"):
        with gr.Column(scale=5, min_width=320):
            model = model_choice(page.models)
            board = component("set_board", _first_board(page))
            rack = component("lora_rack", first_rack(page))
            draw = gr.Button("Draw the set", variant="primary", size="lg", elem_id="dh-set-draw")
            cancel = gr.Button("Cancel", size="lg", visible=False, elem_id="dh-set-cancel")
            with gr.Accordion("More settings", open=False):
                seed, negative = seed_line(), negative_prompt()
                with gr.Row():
                    cfg = slider(1, 12, 4.0, 0.5, "CFG", "Guidance by the caption; 1 is off")
                    steps = slider(1, page.limits.steps, STEPS, 1, "Steps", "More take longer")
        with gr.Column(scale=6, min_width=320):
            stage = component("set_stage", {"state": "empty"})
            with gr.Accordion("The same set from the command line or Python", open=False):
                code = recipe_codes("set-")
    controls = [seed, negative, cfg, steps]
    page.rack = [model, board, rack]
    drawn = {"inputs": [model, board, rack, *controls], "outputs": [stage, *code, draw, cancel]}
    draw.click(_drawing(page), **drawn, **QUIET)
    cancel.click(cancelling(page), None, None, **QUIET)
    model.input(_switching(page), [model], [board, rack], **QUIET)
    board.example(_trying, None, [board, rack], **QUIET)
    board.give(_giving(page), [model, board], [board], **QUIET)
    rack.bring(_bringing(page), [model], [rack], **QUIET)
    stage.keep(_keeping(page), None, [board], **QUIET)
    opened = [stage, model, board, rack, *controls, *code]
    stage.open(_opening(page), None, opened, **QUIET)


def _first_board(page: Page) -> dict[str, Any]:
    lines = set_form.layout_lines(page.first, page.limits)
    first: dict[str, Any] = {"layouts": lines, "layout": set_form.first_layout(lines)}
    if page.first.embedded:
        first |= set_form.example_change(set_form.examples()[0])
    return set_form.change(**{**first, "examples": example_names(page)})


def example_names(page: Page) -> list[str]:
    """The examples of a page; they are for the embedded models."""
    return [kind.name for kind in set_form.examples()] if page.first.embedded else []


def first_rack(page: Page) -> dict[str, Any]:
    """The picker with the LoRAs that ship, the first example's switched on."""
    on = {set_form.examples()[0].lora: 1.0} if page.first.embedded else {}
    return set_form.change(loras=rack_lines(page), on=on, model=page.first.public)


def rack_lines(page: Page) -> list[dict[str, Any]]:
    """The LoRAs that ship for the models of a page."""
    return [line for facts in page.models.values() for line in entries(facts, shipped(facts.name), {})]


# --- drawing ---


def _drawing(page: Page) -> Any:
    def work(facts: Facts, board: Any, rack: Any, *values: Any) -> DrawingSet:
        return work_from(page, facts, board, rack, values)

    return drawing(page, work, _finished)


def work_from(page: Page, facts: Facts, board: Any, rack: Any, values: Sequence[Any]) -> DrawingSet:
    """What a visitor asks for. Raises InputError for what does not fit."""
    rows, columns, caption = set_form.caption_from(facts, board, page.limits)
    given = set_form.given_from(facts, board, (rows, columns), page.limits)
    files, names = chosen(rack, page.loras, facts, page.limits)
    more: dict[str, Any] = dict(zip(NAMES, values, strict=True))
    more["negative_prompt"] = more["negative_prompt"] or ""
    whole_numbers(more, "seed", "steps")
    settings = SetSettings(prompt=caption, rows=rows, columns=columns, loras=names, model=facts.name, **more)
    check_set_settings(settings, given, page.limits)
    return DrawingSet(settings, files, given)


def _finished(drawn: DrawnSet, facts: Facts) -> list[Any]:
    return [finished(drawn, facts), *_recipe(drawn.settings, drawn.given, facts)]


def finished(drawn: DrawnSet, facts: Facts) -> dict[str, Any]:
    """The stage with a set, whose PNG keeps its settings."""
    kept = stored_set(replace(drawn.settings, model=facts.public), dict.fromkeys(drawn.given))
    picture = _picture(drawn.image, drawn.panels, kept)
    note = " ".join([picture["note"], *(f"\u00b7 {note}" for note in drawn.notes)])
    return {"state": "done", "note": note, "picture": {**picture, "note": note}}


def _picture(image: Image.Image, panels: Sequence[Image.Image], kept: Mapping[str, Any]) -> dict[str, Any]:
    places = [set_form.place_name(mark) for mark in PLACES[kept["rows"], kept["columns"]]]
    cells = [
        {"src": png_uri(panel, kept), "place": place, "name": given_file(n), "given": n in kept["given"]}
        for n, (panel, place) in enumerate(zip(panels, places, strict=True))
    ]
    return {
        "id": secrets.token_hex(6),
        "whole": png_uri(image, kept),
        "size": list(image.size),
        "panels": cells,
        "alt": kept["prompt"],
        "name": f"dit-heads-set-{kept['seed']}.png",
        "note": _caption(kept),
    }


def _caption(kept: Mapping[str, Any]) -> str:
    """A line under a set."""
    loras = [f"{name.removesuffix(SUFFIX)} {scale:g}" for name, scale in map(parsed_lora, kept["loras"])]
    rest = ("CFG {guidance_scale:g}", "{steps} steps", "seed {seed}")
    return " \u00b7 ".join([*(loras or ["no LoRA"]), *(part.format_map(kept) for part in rest)])


def _recipe(settings: SetSettings, given: Sequence[int], facts: Facts) -> list[str]:
    public = replace(settings, model=facts.public)
    grid = grid_for(facts, settings.rows, settings.columns)
    return [set_command_line(public, given), set_python_code(public, grid, given)]


# --- examples, given panels, LoRAs, models ---


def _trying(event: gr.EventData) -> list[Any]:
    kinds, number = set_form.examples(), event_data(event, "number")
    if not isinstance(number, int) or not 0 <= number < len(kinds):
        return [gr.skip(), gr.skip()]
    return [set_form.example_change(kinds[number]), set_form.change(on={kinds[number].lora: 1.0})]


def _giving(page: Page) -> Any:
    def give(model: str, board: Any, event: gr.EventData) -> dict[str, Any]:
        try:
            facts = known_as(model, page.models)
            layout = set_form.layout_from(facts, board, page.limits)
            picture = set_form.picture_from(event_data(event, "data"), page.limits)
            panel = set_form.fitted(facts, layout, picture)
            return set_form.change(add={_number(event): png_uri(panel, {})}, problem="")
        except InputError as error:
            return set_form.change(problem=sentence(error))

    return give


def _number(event: gr.EventData) -> str:
    number = event_data(event, "number")
    if not isinstance(number, int) or not 0 <= number < 9:
        raise InputError("panel: there is none of this number")
    return str(number)


def _keeping(page: Page) -> Any:
    def keep(event: gr.EventData) -> dict[str, Any]:
        try:
            picture = set_form.picture_from(event_data(event, "data"), page.limits)
            return set_form.change(add={_number(event): png_uri(picture, {})}, problem="")
        except InputError as error:
            return set_form.change(problem=sentence(error))

    return keep


def _bringing(page: Page) -> Any:
    def take_in(request: gr.Request, model: str, event: gr.EventData) -> dict[str, Any]:
        try:
            facts, name = known_as(model, page.models), event_data(event, "name")
            data = received(event_data(event, "data"), page.limits.lora_upload_bytes)
            file = bring(page.loras, facts, str(name), data, visitor(request), page.limits)
            return set_form.change(add=entries(facts, [file], {file.id: 1.0}), problem="")
        except InputError as error:
            return set_form.change(problem=sentence(error))

    return take_in


def _switching(page: Page) -> Any:
    def switch(model: str) -> list[Any]:
        facts = known_as(model, page.models)
        lines = set_form.layout_lines(facts, page.limits)
        return [set_form.change(layouts=lines), set_form.change(model=facts.public)]

    return switch


# --- sets that are opened again ---


def _opening(page: Page) -> Any:
    def open_set(event: gr.EventData) -> list[Any]:
        try:
            uri = str(event_data(event, "data") or "")
            data = received(uri.partition(",")[2] or uri, page.limits.upload_bytes)
            return _opened(page, *opened(data, page.limits), event_data(event, "id"))
        except InputError as error:
            skipped = [gr.skip()] * (3 + len(NAMES) + 2)
            return [{"state": "error", "note": sentence(error)}, *skipped]

    return open_set


def _opened(page: Page, image: Image.Image, kept: Mapping[str, Any], key: object) -> list[Any]:
    """The page as a picture's settings have it.

    Raises:
        InputError: for settings that are unknown, do not fit, or are beyond the limits.
    """
    if "prompt" in kept and "rows" not in kept:
        raise InputError("picture: it is a single one; please open it in Guide")
    facts = known_as(str(kept.get("model", "")), page.models)
    settings, given = set_of({**kept, "model": facts.name}, Path("this picture"))
    check_set_settings(settings, dict.fromkeys(given), page.limits)
    board = set_form.settings_change(facts, settings, image, given)
    again = stored_set(replace(settings, model=facts.public), dict.fromkeys(given))
    picture = _picture(image, split(image, grid_for(facts, settings.rows, settings.columns)), again)
    if isinstance(key, str):
        picture["id"] = key[:40]
    on, missing = _loras_of(facts, settings)
    note = picture["note"]
    if missing:
        note += f" \u00b7 It was drawn with {', '.join(missing)}: please bring the file, or train it, again."
    stage = {"state": "done", "note": note, "picture": picture}
    values = [getattr(settings, name) for name in NAMES]
    rack = set_form.change(model=facts.public, on=on)
    return [stage, facts.public, board, rack, *values, *_recipe(settings, given, facts)]


def _loras_of(facts: Facts, settings: SetSettings) -> tuple[dict[str, float], list[str]]:
    """The scales of shipped LoRAs, and the names of those that are a visitor's own."""
    named = dict(map(parsed_lora, settings.loras))
    there = {file.id for file in shipped(facts.name)}
    return {n: s for n, s in named.items() if n in there}, [n for n in named if n not in there]
