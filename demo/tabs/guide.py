"""Guide: a picture led by chosen heads, beside the one without them."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from dit_heads.cli.generate import Settings, settings_of, stored
from dit_heads.demo.components import chosen_text, component, event_data, map_value
from dit_heads.demo.controls import (
    model_choice,
    negative_prompt,
    recipe_codes,
    seed_line,
    slider,
)
from dit_heads.demo.drawing import Drawing, Drawn, check_settings
from dit_heads.demo.facts import Facts, known_as
from dit_heads.demo.files import opened, png_uri, quick_uri, received
from dit_heads.demo.page import QUIET, Page, cancelling
from dit_heads.demo.recipes import command_line, python_code
from dit_heads.demo.sentences import sentence
from dit_heads.demo.stages import drawing, whole_numbers
from dit_heads.errors import InputError

EXAMPLES = (
    "a large red cube on grass in the day",
    "a small blue sphere and a large yellow cone on sand at sunset",
    "a large striped green pyramid on snow at night",
)
STEPS = 12
PERTURBATIONS = {
    "identity: each token keeps its own value": "identity",
    "uniform: the mean of all values": "uniform",
    "mean query: all tokens ask alike": "mean_query",
    "arg max: the nearest token alone": "arg_max",
    "temperature: a blurred attention map": "temperature",
}
REGIONS = {
    "text and picture": "joint",
    "picture": "image",
    "picture, but its text is kept (identity only)": "image_to_image",
}
# Settings that have a control of their own, in the order of `Controls.inputs`.
NAMES = (
    *("prompt", "scale", "softness", "seed", "negative_prompt", "guidance_scale", "steps"),
    *("perturbation", "region", "temperature", "start", "stop"),
)


def build(page: Page) -> None:
    """Lay the tab out and connect it."""
    with gr.Row(equal_height=False, elem_classes="dh-columns"):
        with gr.Column(scale=5, min_width=320):
            model = model_choice(page.models)
            prompt = _prompt(page.first)
            draw = gr.Button("Draw", variant="primary", size="lg", elem_id="dh-draw")
            cancel = gr.Button("Cancel", size="lg", visible=False, elem_id="dh-cancel")
            heads = component("head_map", map_value(page.first, _first_heads(page.first)))
            sliders = _sliders(page.first)
            seed, more = _more(page)
        with gr.Column(scale=6, min_width=320):
            stage = component("stage", {"state": "empty"})
            with gr.Accordion("The same picture from the command line or Python", open=False):
                code = recipe_codes("")
    controls = [prompt, *sliders, seed, *more]
    page.heads, page.strength = heads, sliders
    outputs = [stage, *code, draw, cancel]
    started = {"inputs": [model, heads, *controls], "outputs": outputs, **QUIET}
    gr.on([draw.click, prompt.submit], _drawing(page), **started)
    cancel.click(cancelling(page), None, None, **QUIET)
    heads.preset(_preset, None, sliders, **QUIET)
    stage.pick(_picking(page), [model], [model, heads, *controls, *code], **QUIET)
    stage.open(_opening(page), [model], [stage, model, heads, *controls, *code], **QUIET)
    model.input(_switching(page), [model], [heads, *sliders], **QUIET)


# --- controls ---


def _first_heads(facts: Facts) -> str:
    return facts.presets[0]["heads"] if facts.presets else ""


def _prompt(facts: Facts) -> gr.Textbox:
    prompt = gr.Textbox(
        EXAMPLES[0] if facts.embedded else "",
        label="Prompt",
        lines=2,
        max_lines=5,
        max_length=1000,
        placeholder="What the picture shows",
        elem_id="dh-prompt",
    )
    if facts.embedded:
        gr.Examples([[text] for text in EXAMPLES], [prompt], label="Try", api_visibility="private")
    return prompt


def _sliders(facts: Facts) -> list[gr.Slider]:
    first = _first_strength(facts)
    with gr.Row():
        return [
            slider(0, 12, first["scale"], 0.1, "Strength", "w: how hard the heads guide"),
            slider(0, 1, first["softness"], 0.05, "Softness", "u: how far they are bent"),
        ]


def _first_strength(facts: Facts) -> Mapping[str, Any]:
    return facts.presets[0] if facts.presets else {"scale": 3.0, "softness": 1.0}


def _more(page: Page) -> tuple[gr.Number, list[Any]]:
    """The folded settings."""
    with gr.Accordion("More settings", open=False):
        seed, negative = seed_line(), negative_prompt()
        with gr.Row():
            cfg = slider(1, 12, 4.0, 0.5, "CFG", "Guidance by the prompt; 1 is off")
            steps = slider(1, page.limits.steps, STEPS, 1, "Steps", "More take longer")
        kind = _choice(PERTURBATIONS, "Perturbation", "What replaces a head's attention map")
        region = _choice(REGIONS, "Region", "Tokens whose attention is changed")
        temperature = gr.Slider(1, 20, 3.0, step=0.5, label="Temperature", visible=False)
        shown = lambda kind: gr.update(visible=kind == "temperature")  # noqa: E731
        kind.change(shown, kind, temperature, **QUIET)
        with gr.Row():
            start = slider(0, 1, 0.0, 0.05, "From", "Share of the steps")
            stop = slider(0, 1, 1.0, 0.05, "To", "Share of the steps")
    return seed, [negative, cfg, steps, kind, region, temperature, start, stop]


def _choice(names: Mapping[str, str], label: str, info: str) -> gr.Dropdown:
    return gr.Dropdown(list(names.items()), value=next(iter(names.values())), label=label, info=info)


# --- from controls to settings and back ---


def settings_from(facts: Facts, heads: str, values: Sequence[Any]) -> Settings:
    """The settings that the controls say. Raises InputError for what does not fit."""
    given: dict[str, Any] = dict(zip(NAMES, values, strict=True))
    for name in ("prompt", "negative_prompt"):
        given[name] = given[name] or ""
    whole_numbers(given, "steps", "seed")
    if given["perturbation"] != "temperature":
        given["temperature"] = None
    return Settings(**given, model=facts.name, heads=heads or None)


def _controls(settings: Settings) -> list[Any]:
    """Updates of the controls, in the order of `NAMES`."""
    values = {name: getattr(settings, name) for name in NAMES}
    temperature = values.pop("temperature")
    value = {} if temperature is None else {"value": temperature}
    shown = gr.update(visible=temperature is not None, **value)
    return [shown if name == "temperature" else values[name] for name in NAMES]


def _recipe(settings: Settings, facts: Facts) -> list[str]:
    public = replace(settings, model=facts.public)
    return [command_line(public), python_code(public)]


# --- drawing ---


def _drawing(page: Page) -> Any:
    def work(facts: Facts, heads: Any, *values: Any) -> Drawing:
        settings = settings_from(facts, chosen_text(heads), values)
        check_settings(settings, page.limits)
        return Drawing(settings, compare=True, cache=page.cache)

    return drawing(page, work, _finished)


def _finished(drawn: Drawn, facts: Facts) -> list[Any]:
    return [finished(drawn, facts), *_recipe(drawn.settings, facts)]


def finished(drawn: Drawn, facts: Facts) -> dict[str, Any]:
    """The stage with a picture, whose PNG keeps its settings."""
    kept = stored(replace(drawn.settings, model=facts.public))
    before = None if drawn.unguided is None else quick_uri(drawn.unguided)
    picture = _picture(png_uri(drawn.image, kept), before, kept)
    return {"state": "done", "note": picture["note"], "picture": picture}


def _picture(after: str, before: str | None, kept: Mapping[str, Any]) -> dict[str, Any]:
    settings = dict(kept)
    return {
        "id": secrets.token_hex(6),
        "after": after,
        "before": before,
        "alt": str(settings["prompt"]),
        "name": f"dit-heads-{settings['seed']}.png",
        "note": caption(settings),
        "settings": settings,
    }


def caption(kept: Mapping[str, Any]) -> str:
    """A line under a picture."""
    strength = f" \u00b7 w {kept['scale']:g} \u00b7 u {kept['softness']:g}"
    guided = f"{kept['heads']}{strength}" if kept["heads"] else "no heads"
    rest = ("CFG {guidance_scale:g}", "{steps} steps", "seed {seed}")
    return " \u00b7 ".join([guided, *(part.format_map(kept) for part in rest)])


# --- presets, pictures of the gallery, files ---


def _preset(event: gr.EventData) -> list[Any]:
    scale, softness = (event_data(event, name) for name in ("scale", "softness"))
    return [value if isinstance(value, int | float) else gr.skip() for value in (scale, softness)]


def _switching(page: Page) -> Any:
    def switch(model: str) -> list[Any]:
        facts = known_as(model, page.models)
        first = _first_strength(facts)
        return [map_value(facts, _first_heads(facts)), first["scale"], first["softness"]]

    return switch


def _picking(page: Page) -> Any:
    def pick(model: str, event: gr.EventData) -> list[Any]:
        try:
            return _taken(page, _checked(page, event_data(event, "settings")))
        except InputError as error:
            raise gr.Error(sentence(error), print_exception=False) from error

    return pick


def _opening(page: Page) -> Any:
    def open_picture(model: str, event: gr.EventData) -> list[Any]:
        skipped = [gr.skip()] * (2 + len(NAMES) + 2)
        try:
            data = received(event_data(event, "data"), page.limits.upload_bytes)
            image, kept = opened(data, page.limits)
            facts, settings = _checked(page, kept)
            again = stored(replace(settings, model=facts.public))
            picture = _picture(png_uri(image, again), None, again)
            stage = {"state": "done", "note": picture["note"], "picture": picture}
            return [stage, *_taken(page, (facts, settings))]
        except InputError as error:
            return [{"state": "error", "note": sentence(error)}, *skipped]

    return open_picture


def _checked(page: Page, kept: object) -> tuple[Facts, Settings]:
    """Settings that come from outside, and their model.

    Raises:
        InputError: for what is unknown, does not fit, or is beyond the limits.
    """
    if not isinstance(kept, dict):
        raise InputError("picture: expected its settings, got none")
    facts = known_as(kept.get("model", ""), page.models)
    settings = settings_of({**kept, "model": facts.name}, Path("this picture"))
    check_settings(settings, page.limits)
    return facts, settings


def _taken(page: Page, found: tuple[Facts, Settings]) -> list[Any]:
    """Model, head map, controls and recipes as settings say."""
    facts, settings = found
    scores = map_value(facts, settings.heads or "")
    return [facts.public, scores, *_controls(settings), *_recipe(settings, facts)]
