"""Edit: a picture painted by an instruction in which pictures may stand for words."""

from __future__ import annotations

import json
import secrets
from dataclasses import replace
from typing import Any

import gradio as gr
from PIL import Image

from dit_heads.cli.edit import EditSettings
from dit_heads.cli.see import shipped_lora
from dit_heads.demo.components import component, event_data
from dit_heads.demo.controls import model_choice, recipe_codes, slider
from dit_heads.demo.edit_form import WHOLE, asked_for, example_change, examples
from dit_heads.demo.editing import MASK, RECORD, RESULT, Asked, Edited, Editing, Finding
from dit_heads.demo.facts import Facts
from dit_heads.demo.files import data_uri, plain_uri, png_uri, quick_uri
from dit_heads.demo.limits import MAX_SEED
from dit_heads.demo.page import QUIET, Page, cancelling
from dit_heads.demo.recipes import edit_command_line, edit_python_code
from dit_heads.demo.seeing import PICTURE, bounded
from dit_heads.demo.sentences import sentence
from dit_heads.demo.set_form import change, picture_from
from dit_heads.demo.stages import drawing, whole_numbers
from dit_heads.errors import InputError
from dit_heads.settings import as_mapping

STEPS = 20
MISSING = (
    "Pictures are edited by a model with a LoRA of the task multimodal, and none is here for this one. "
    "`dit-heads train loras/configs/multimodal.yaml` trains one; `dit-heads demo --edit-lora "
    "lora.safetensors` uses it."
)
NAMES = ("guidance_scale", "image_guidance_scale", "steps", "seed", "mask_feather")
"""Settings that have a control of their own, in the order of the controls."""
_LAST_SEED = """() => {
    const seed = document.querySelector('#dh-edit-stage .dh-stage').dataset.seed;
    return seed ? +seed : null;
}"""


def build(page: Page) -> None:
    """Lay the tab out and connect it; without a model that can edit, say what is needed."""
    models = {name: facts for name, facts in page.models.items() if facts.multimodal}
    if not models:
        gr.Markdown(MISSING, elem_id="dh-edit-missing")
        return
    with gr.Row(equal_height=False, elem_classes="dh-columns"):
        with gr.Column(scale=5, min_width=320):
            model = model_choice(models)
            board = component("edit_board", _first_board(), scripts=["mask_brush"])
            paint = gr.Button("Paint", variant="primary", size="lg", elem_id="dh-edit-paint")
            cancel = gr.Button("Cancel", size="lg", visible=False, elem_id="dh-edit-cancel")
            controls = _controls(page)
        with gr.Column(scale=6, min_width=320):
            stage = component("edit_stage", {"state": "empty"})
            with gr.Accordion("The same result from the command line or Python", open=False):
                code = recipe_codes("edit-")
    given: list[Any] = [model, board, *controls]
    painted = {"inputs": given, "outputs": [stage, *code, paint, cancel], **QUIET}
    paint.click(_painting(page), **painted)
    board.paint(_painting(page), **painted)
    board.find(_finding(page), given, [stage, board, paint, cancel], **QUIET)
    cancel.click(cancelling(page), None, None, **QUIET)
    board.give(_giving(page), None, [board], **QUIET)
    board.example(_trying, None, [board], **QUIET)
    stage.take(_taking(page), None, [board], **QUIET)


def _controls(page: Page) -> list[Any]:
    """Controls of the settings, in the order of `NAMES`."""
    with gr.Accordion("More settings", open=False):
        most = page.limits.scale
        with gr.Row():
            text = slider(0, min(12, most), 1, 0.5, "Guidance", "Towards the instruction; 1 is off")
            image = slider(0, min(12, most), 1, 0.5, "Image guidance", "Towards the picture; 1 is off")
        with gr.Row():
            steps = slider(
                1, page.limits.steps, min(STEPS, page.limits.steps), 1, "Steps", "More take longer"
            )
            feather = slider(0, 64, 8, 1, "Fading", "Pixels around a mask")
        with gr.Row():
            seed = gr.Number(
                None, label="Seed", info="Empty: another one each time", precision=0, minimum=0,
                maximum=MAX_SEED, min_width=140,
            )  # fmt: skip
            again = gr.Button("The last seed again", size="md", min_width=110, elem_classes="dh-dice")
            again.click(None, None, seed, js=_LAST_SEED, **QUIET)
    return [text, image, steps, seed, feather]


# --- the picture, the instruction and its pictures ---


def _first_board() -> dict[str, Any]:
    thumbs = [{"src": quick_uri(each.thumb), "name": each.text} for each in examples()]
    return {**example_change(examples()[0]), "examples": thumbs}


def _trying(event: gr.EventData) -> Any:
    number = event_data(event, "number")
    if not isinstance(number, int) or not 0 <= number < len(examples()):
        return gr.skip()
    return example_change(examples()[number])


def _giving(page: Page) -> Any:
    def give(event: gr.EventData) -> dict[str, Any]:
        slot = event_data(event, "slot")
        try:
            uri = plain_uri(bounded(picture_from(event_data(event, "data"), page.limits), page.limits))
        except InputError as error:
            return change(problem=sentence(error))
        if isinstance(slot, str) and slot:
            return change(add={"name": slot[: page.limits.characters], "src": uri}, problem="")
        return change(picture=uri, shows="Your picture", problem="")

    return give


def _taking(page: Page) -> Any:
    def take(event: gr.EventData) -> dict[str, Any]:
        try:
            picture = bounded(picture_from(event_data(event, "data"), page.limits), page.limits)
            return change(picture=plain_uri(picture), shows="The last result", area=WHOLE, problem="")
        except InputError as error:
            return change(problem=sentence(error))

    return take


# --- painting, and finding a mask ---


def _settings_from(values: tuple[Any, ...]) -> dict[str, Any]:
    """The settings that the controls say. An empty seed is a random one."""
    given: dict[str, Any] = dict(zip(NAMES, values, strict=True))
    if given["seed"] is None:
        given["seed"] = secrets.randbelow(2**31)
    whole_numbers(given, "steps", "seed", "mask_feather")
    return given


def _painting(page: Page) -> Any:
    def work(facts: Facts, board: Any, *values: Any) -> Editing:
        return Editing(asked_for(facts, board, _settings_from(values), page.limits, masked=True))

    return drawing(page, work, _finished)


def _finding(page: Page) -> Any:
    def work(facts: Facts, board: Any, *values: Any) -> Finding:
        found = asked_for(facts, board, _settings_from(values), page.limits, masked=False)
        if found.picture is None:
            raise InputError("mask: expected a picture in which to find it, got none")
        return Finding(found)

    return drawing(page, work, _found, others=1)


def _found(found: Image.Image, facts: Facts) -> list[Any]:
    note = "The mask lies on the picture. Move how far it reaches, add to it and erase from it, then paint."
    return [{"state": "done", "note": note}, change(map=plain_uri(found), problem="")]


def _finished(edited: Edited, facts: Facts) -> list[Any]:
    settings = public(edited.asked.settings, facts)
    shipped = facts.multimodal.parent.name if facts.multimodal else ""
    recipes = [
        edit_command_line(edited.asked, settings),
        edit_python_code(edited.asked, settings, shipped),
    ]
    return [finished(edited, settings), *recipes]


def public(settings: EditSettings, facts: Facts) -> EditSettings:
    """The settings as visitors see them. A LoRA that does not ship is named."""
    own = facts.multimodal if facts.multimodal != shipped_lora(facts.name, "multimodal") else None
    return replace(settings, model=facts.public, lora=own and own.name)


def finished(edited: Edited, settings: EditSettings) -> dict[str, Any]:
    """The stage with a result."""
    asked = edited.asked
    record = {**as_mapping(settings), "instruction": asked.text}
    after = png_uri(edited.image, record)
    return {
        "state": "done",
        "note": note(edited, settings),
        "picture": {
            "id": secrets.token_hex(6),
            "after": after,
            "before": plain_uri(asked.picture) if asked.picture else "",
            "size": list(edited.image.size),
            "alt": asked.text,
            "seed": settings.seed,
            "files": [{"name": RESULT, "label": "Save PNG", "href": after}, *_files(asked, record)],
        },
    }


def _files(asked: Asked, record: dict[str, Any]) -> list[dict[str, str]]:
    """What was asked for, as files: settings, picture, mask and references."""
    names = {"picture": PICTURE if asked.picture else None, "mask": MASK if asked.mask else None}
    text = json.dumps({**record, **names, "references": asked.files}, indent=2, ensure_ascii=False) + "\n"
    pictures = {PICTURE: ("Save the picture", asked.picture), MASK: ("Save the mask", asked.mask)}
    for name, file, picture in zip(asked.files, asked.files.values(), asked.pictures, strict=True):
        pictures[file] = f"Save reference {name}", picture
    return [
        {"name": RECORD, "label": "Save settings", "href": data_uri(text.encode(), "application/json")},
        *(
            {"name": file, "label": label, "href": plain_uri(picture)}
            for file, (label, picture) in pictures.items()
            if picture is not None
        ),
    ]


def note(edited: Edited, settings: EditSettings) -> str:
    """A line under a result."""
    asked = edited.asked
    where = "Edited" if asked.picture else "Painted on a blank canvas"
    if asked.mask:
        share = asked.mask.histogram()[255] / (asked.mask.width * asked.mask.height)
        where += f" inside the mask, {share:.0%} of the picture"
    parts = [where, f"{settings.steps} steps", f"seed {settings.seed}"]
    if settings.processing_resolution:
        parts.insert(1, f"at {settings.processing_resolution} pixels")
    unread = f" The model has never read: {', '.join(edited.unknown)}." if edited.unknown else ""
    return " \u00b7 ".join(parts) + "." + unread
