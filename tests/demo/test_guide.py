"""The Guide tab's handlers, without a browser."""

import asyncio
import base64
from types import SimpleNamespace

import pytest

pytest.importorskip("gradio")

from dit_heads.cli.generate import Settings
from dit_heads.demo.app import build
from dit_heads.demo.facts import facts_of, known_as
from dit_heads.demo.files import opened
from dit_heads.demo.limits import Limits
from dit_heads.demo.page import Page
from dit_heads.demo.tabs import guide
from dit_heads.errors import InputError
from dit_heads.io.pictures import png_bytes

ANN = SimpleNamespace(session_hash="ann")


@pytest.fixture(scope="module")
def page(roomy, model):
    return Page(roomy, {model: facts_of(model)})


def values(**changes):
    """The controls in their order."""
    usual = {name: getattr(Settings(), name) for name in guide.NAMES}
    return list({**usual, "prompt": "a cat", "steps": 2, "guidance_scale": 2.0, **changes}.values())


def drawn(page, model, heads="L1", **changes):
    async def all_of():
        draw, name = guide._drawing(page), page.models[model].public
        return [shown async for shown in draw(ANN, name, {"text": heads}, *values(**changes))]

    return asyncio.run(all_of())


def test_drawing_ends_with_the_picture_its_comparison_and_its_recipes(page, model):
    *_, last = drawn(page, model, "L1H1", seed=5)
    picture = last[0]["picture"]
    assert last[0]["state"] == "done" and picture["before"].startswith("data:image/jpeg")
    _, kept = opened(base64.b64decode(picture["after"].partition(",")[2]), Limits())
    assert (kept["heads"], kept["seed"], kept["prompt"]) == ("L1H1", 5, "a cat")
    assert "--heads=L1H1" in last[1] and "HeadGuidance(pipe, 'L1H1'" in last[2]


def test_a_folder_is_shown_by_its_name_alone(page, model):
    *_, last = drawn(page, model)
    assert "/" in model and model not in str(last)
    assert last[0]["picture"]["settings"]["model"] == "tiny"


def test_without_heads_there_is_nothing_to_compare(page, model):
    *_, last = drawn(page, model, heads="")
    assert last[0]["picture"]["before"] is None and last[0]["note"].startswith("no heads")


@pytest.mark.parametrize(
    ("heads", "changes", "told"),
    [
        ("L9", {}, "heads: the model has blocks"),
        ("nose", {}, "heads: expected"),
        ("L1", {"prompt": " "}, "prompt: expected"),
        ("L1", {"prompt": "x" * 1001}, "prompt: expected at most 1000"),
        ("L1", {"steps": 61}, "steps: expected at most 60"),
        ("L1", {"seed": None}, "seed: expected"),
        ("L1", {"start": 0.5, "stop": 0.5}, "start: expected less than stop"),
        ("L1", {"perturbation": "uniform", "region": "image_to_image"}, "region:"),
        ("L1", {"scale": float("nan")}, "scale: expected"),
    ],
)
def test_what_cannot_be_drawn_is_told_in_a_sentence(page, model, heads, changes, told):
    *_, last = drawn(page, model, heads, **changes)
    assert last[0]["state"] == "error" and last[0]["note"].startswith(told)


def test_a_picture_that_is_dropped_sets_the_controls(page, model):
    *_, last = drawn(page, model, "L2", scale=5.0, seed=11)
    event = SimpleNamespace(_data={"data": last[0]["picture"]["after"].partition(",")[2]})
    stage, name, heads, *rest = guide._opening(page)(model, event)
    assert stage["state"] == "done" and name == "tiny" and heads["text"] == "L2"
    assert dict(zip(guide.NAMES, rest, strict=False))["scale"] == 5.0
    assert rest[-2] == last[1]


@pytest.mark.parametrize(
    "kept",
    [
        {"prompt": "a cat", "model": "other/model"},
        {"prompt": "a cat", "model": "tiny", "steps": 900},
        {"prompt": "a cat", "model": "tiny", "colour": "red"},
        {},
    ],
)
def test_a_picture_with_settings_that_cannot_be_followed_is_refused(page, model, kept):
    from PIL import Image

    data = base64.b64encode(png_bytes(Image.new("RGB", (8, 8)), kept)).decode()
    stage, *rest = guide._opening(page)(model, SimpleNamespace(_data={"data": data}))
    assert stage["state"] == "error" and len(rest) == 2 + len(guide.NAMES) + 2


def test_models_are_known_by_what_visitors_see(page, model):
    facts = {name: facts_of(name) for name in ("embedded", "embedded/flux")}
    assert known_as("embedded/sd3", facts).name == "embedded"
    assert known_as("tiny", page.models).name == model
    with pytest.raises(InputError, match="model: expected one of this page"):
        known_as("embedded", page.models)
    assert facts["embedded"].scores["L0H5"] > 0 and facts["embedded/flux"].distilled


def test_only_the_calls_of_the_api_are_public(page):
    blocks = build(page)
    public = {fn.api_name for fn in blocks.fns.values() if fn.api_visibility == "public"}
    assert public == {"draw"}
