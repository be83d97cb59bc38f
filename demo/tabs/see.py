"""See: a question about a picture, answered with masks, boxes, depth or classes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from dit_heads.cli.see import SeeSettings, shipped_lora, shipped_tokens
from dit_heads.demo import answers
from dit_heads.demo.components import component, event_data
from dit_heads.demo.controls import model_choice, recipe_codes, seed_line, slider
from dit_heads.demo.facts import Facts
from dit_heads.demo.files import data_uri, plain_uri, png_uri, quick_uri
from dit_heads.demo.page import QUIET, Page, cancelling
from dit_heads.demo.recipes import see_command_line, see_python_code
from dit_heads.demo.seeing import ANSWER, PICTURE, WANTED, Seeing, Seen, asked, bounded, scale_of
from dit_heads.demo.sentences import sentence
from dit_heads.demo.set_form import change, picture_from
from dit_heads.demo.stages import drawing, whole_numbers
from dit_heads.errors import InputError
from dit_heads.settings import as_mapping
from dit_heads.tasks.annotations import Depth

STEPS = 8
QUESTIONS = (
    "Where are the cubes?",
    "How far is everything?",
    "Show each object in a colour of its own",
    "Segment the sphere",
    "Is it day, sunset or night?",
)
EXAMPLES = (
    (44, "Where are the cubes?", "Two cubes and a sphere at sunset"),
    (28, "How far is everything?", "Two cylinders and a cube on grass"),
    (97, "Show each object in a colour of its own", "A sphere, a cube and a cone"),
    (50, "Is it day, sunset or night?", "Three spheres at night"),
)
"""Scenes of the test split, each with a question and what it shows."""
MISSING = (
    "Questions about pictures are answered by a model with a LoRA of the task instruct, and none is here for "
    "this one. `dit-heads train loras/configs/instruct.yaml` trains one; `dit-heads demo --instruct-lora "
    "lora.safetensors` uses it."
)
METHODS = {"instruct": "The model, by instruction", "soft-tokens": "Soft tokens"}
LABELS = {".json": "Save JSON", "-labels.png": "Save label PNG", "-mm.png": "Save depth PNG (16 bits, mm)"}


def build(page: Page) -> None:
    """Lay the tab out and connect it; without a model that can answer, say what is needed."""
    models = {name: facts for name, facts in page.models.items() if any(map(facts.answers_by, METHODS))}
    if not models:
        gr.Markdown(MISSING, elem_id="dh-see-missing")
        return
    with gr.Row(equal_height=False, elem_classes="dh-columns"):
        with gr.Column(scale=5, min_width=320):
            model = model_choice(models)
            board = component("see_board", _first_board())
            ask = gr.Button("Ask", variant="primary", size="lg", elem_id="dh-see-ask")
            cancel = gr.Button("Cancel", size="lg", visible=False, elem_id="dh-see-cancel")
            method = _method_choice(models.values())
            with gr.Accordion("More settings", open=False):
                seed = seed_line()
                steps = slider(1, page.limits.steps, STEPS, 1, "Steps", "More take longer")
        with gr.Column(scale=6, min_width=320):
            stage = component("see_stage", {"state": "empty"}, scripts=["point_cloud"])
            with gr.Accordion("The same answer from the command line or Python", open=False):
                code = recipe_codes("see-")
    started = {"inputs": [model, board, method, seed, steps], "outputs": [stage, *code, ask, cancel], **QUIET}
    answer = _asking(page)
    ask.click(answer, **started)
    board.ask(answer, **started)
    cancel.click(cancelling(page), None, None, **QUIET)
    board.give(_giving(page), None, [board], **QUIET)
    board.example(_trying, None, [board], **QUIET)


def _method_choice(models: Iterable[Facts]) -> gr.Radio:
    """The ways of answering that some model of the page has; hidden where there is one alone."""
    there = [name for name in METHODS if any(facts.answers_by(name) for facts in models)]
    return gr.Radio(
        [(METHODS[name], name) for name in there],
        value=there[0],
        label="Answered by",
        info="Soft tokens read depth, boxes and objects in one look, without seed and steps",
        visible=len(there) > 1,
        elem_id="dh-see-method",
    )


# --- the picture and the question ---


@cache
def example_pictures() -> tuple[Image.Image, ...]:
    """The scenes of the examples."""
    from dit_heads.embedded.pairs import WorldPairs

    scenes = WorldPairs("test", 1 + max(number for number, *_ in EXAMPLES))
    return tuple(scenes.picture(number) for number, *_ in EXAMPLES)


def _first_board() -> dict[str, Any]:
    pairs = zip(example_pictures(), EXAMPLES, strict=True)
    thumbs = [{"src": quick_uri(picture), "name": name} for picture, (_, _, name) in pairs]
    return {**_example(0), "examples": thumbs, "questions": list(QUESTIONS)}


def _example(number: int) -> dict[str, Any]:
    picture, (_, question, name) = example_pictures()[number], EXAMPLES[number]
    return change(picture=plain_uri(picture), shows=name, question=question, problem="")


def _trying(event: gr.EventData) -> Any:
    number = event_data(event, "number")
    if not isinstance(number, int) or not 0 <= number < len(EXAMPLES):
        return gr.skip()
    return _example(number)


def _giving(page: Page) -> Any:
    def give(event: gr.EventData) -> dict[str, Any]:
        try:
            picture = bounded(picture_from(event_data(event, "data"), page.limits), page.limits)
            return change(picture=plain_uri(picture), shows="Your picture", problem="")
        except InputError as error:
            return change(problem=sentence(error))

    return give


# --- the answer ---


def _asking(page: Page) -> Any:
    def work(facts: Facts, board: Any, method: Any, seed: Any, steps: Any) -> Seeing:
        entered = board if isinstance(board, dict) else {}
        if not entered.get("picture"):
            raise InputError("picture: expected one; please choose it, or try a scene")
        picture = picture_from(entered["picture"], page.limits)
        if method not in WANTED:
            raise InputError(f"answered by: expected {' or '.join(WANTED)}, got {str(method)[:80]!r}")
        numbers = {"seed": seed, "steps": steps} if method == "instruct" else {}
        whole_numbers(numbers, *numbers)
        settings = SeeSettings(model=facts.name, method=method, **numbers)
        return asked(entered.get("question"), picture, settings, facts, page.limits)

    return drawing(page, work, _finished)


def _finished(seen: Seen, facts: Facts) -> list[Any]:
    settings = public(seen.settings, facts)
    recipes = [
        see_command_line(seen.question, settings),
        see_python_code(seen.question, settings, _shipped(facts, settings.method), scale_of(seen.picture)),
    ]
    return [finished(seen, facts, settings), *recipes]


def public(settings: SeeSettings, facts: Facts) -> SeeSettings:
    """The settings as visitors see them. Weights that do not ship are named."""
    part, ship = {"instruct": ("lora", shipped_lora), "soft-tokens": ("tokens", shipped_tokens)}[
        settings.method
    ]
    weights = facts.answers_by(settings.method)
    own = weights.name if weights and weights != ship(facts.name) else None
    return replace(settings, model=facts.public, **{part: own})


def _shipped(facts: Facts, method: str) -> str:
    """The name of the LoRA, or of the model of the soft tokens, where they ship."""
    weights = facts.answers_by(method)
    if weights is None:
        return ""
    return weights.name if method == "soft-tokens" else weights.parent.name


def finished(seen: Seen, facts: Facts, settings: SeeSettings) -> dict[str, Any]:
    """The stage with an answer."""
    query, (found,) = seen.output.query, seen.output.annotations
    words, scale = answers.in_words(found, query.names), scale_of(seen.picture)
    kept = {**as_mapping(settings), "question": seen.question}
    large = seen.picture.resize(seen.shown.size, Image.Resampling.BICUBIC)
    return {
        "state": "done",
        "note": f"{answers.understood(query)} {_made(settings)}",
        "answer": {
            "told": words,
            "size": list(seen.shown.size),
            "shown": png_uri(seen.shown, kept),
            "picture": quick_uri(large),
            "behind": _behind(seen, scale),
            "legend": answers.legend(found),
            "scale": answers.depth_scale(found) if isinstance(found, Depth) else None,
            "cloud": answers.cloud(found, seen.picture, facts) if isinstance(found, Depth) else None,
            "files": [
                {"name": ANSWER, "label": "Save PNG", "href": png_uri(seen.shown, kept)},
                *(_file(name, data) for name, data in seen.files.items()),
                {"name": PICTURE, "label": "Save the picture", "href": plain_uri(seen.picture)},
            ],
        },
    }


def _made(settings: SeeSettings) -> str:
    if settings.method == "soft-tokens":
        return "Read by soft tokens in one look."
    return f"{settings.steps} steps, seed {settings.seed}."


def _behind(seen: Seen, scale: int) -> dict[str, str] | None:
    """The picture that the answer was read from, or how certain its depth is."""
    output = seen.output
    if output.image:
        src = quick_uri(answers.painted(np.concatenate(output.image[0], 1), scale))
        return {"label": "As painted", "told": "What the model painted as its answer", "src": src}
    if output.uncertainty is None or not isinstance(output.annotations[0], Depth):
        return None
    doubt = np.asarray(output.uncertainty[0])
    grey = np.repeat(doubt.reshape(*doubt.shape[:2], 1), 3, -1)
    told = "How certain each pixel is: black is certain, white is a guess"
    return {"label": "Certainty", "told": told, "src": quick_uri(answers.painted(grey, scale))}


def _file(name: str, data: bytes) -> dict[str, str]:
    label = next(text for end, text in LABELS.items() if name.endswith(end))
    kind = "application/json" if name.endswith(".json") else "image/png"
    return {"name": name, "label": label, "href": data_uri(data, kind)}
