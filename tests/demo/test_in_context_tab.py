"""The In-context tab's handlers, without a browser."""

import asyncio
import base64
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("gradio")

from dit_heads.demo import set_form
from dit_heads.demo.facts import facts_of
from dit_heads.demo.files import opened, png_uri
from dit_heads.demo.limits import Limits
from dit_heads.demo.page import Page
from dit_heads.demo.tabs import in_context
from dit_heads.io.pictures import png_bytes

ANN = SimpleNamespace(session_hash="ann")
BOARD = {"layout": [1, 2], "summary": "two.", "texts": ["a cat", "a dog"], "given": {}}


@pytest.fixture(scope="module")
def page(roomy, model):
    return Page(roomy, {model: facts_of(model)})


def event(**data) -> Any:
    return SimpleNamespace(_data=data)


def drawn(page, board=BOARD, rack=None, values=(5, "", 2.0, 2)):
    async def all_of():
        draw = in_context._drawing(page)
        return [shown async for shown in draw(ANN, "tiny", board, rack, *values)]

    return asyncio.run(all_of())


def data_of(uri: str) -> bytes:
    return base64.b64decode(uri.partition(",")[2])


def test_drawing_ends_with_the_set_its_panels_and_its_recipes(page, model):
    *_, (stage, command, code, *_) = drawn(page)
    picture = stage["picture"]
    image, kept = opened(data_of(picture["whole"]), Limits())
    assert stage["state"] == "done" and image.size == (64, 32)
    assert kept["prompt"] == "two. [LEFT] a cat [RIGHT] a dog" and (kept["seed"], kept["given"]) == (5, [])
    assert [cell["place"] for cell in picture["panels"]] == ["Left", "Right"]
    assert "in-context" in command and "InContextPipeline" in code and model not in f"{stage}{command}{code}"


def test_a_given_panel_is_cropped_once_and_kept(page):
    wide = png_uri(Image.new("RGB", (90, 30), "red"), {})
    change = in_context._giving(page)("tiny", BOARD, event(number=1, data=wide))
    panel = change["add"]["1"]
    assert opened_size(panel) == (32, 32)
    *_, (stage, command, code, *_) = drawn(page, {**BOARD, "given": {"1": panel}})
    cells = stage["picture"]["panels"]
    assert [cell["given"] for cell in cells] == [False, True] and "--given none panel-2.png" in command
    assert image_of(cells[1]["src"]).tobytes() == Image.new("RGB", (32, 32), "red").tobytes()
    assert "given={1: 'panel-2.png'}" in code


def image_of(uri: str) -> Image.Image:
    return set_form.picture_from(uri, Limits())


def opened_size(uri: str) -> tuple[int, int]:
    return image_of(uri).size


def test_a_set_that_is_opened_again_sets_the_page_and_gives_the_same_set(page):
    red = png_uri(Image.new("RGB", (32, 32), "red"), {})
    *_, (stage, command, *_) = drawn(page, {**BOARD, "given": {"0": red}})
    whole = stage["picture"]["whole"]
    again = in_context._opening(page)(event(data=whole, id="mine"))
    shown, name, board, rack, *values, told, _ = again
    assert shown["state"] == "done" and shown["picture"]["id"] == "mine" and name == "tiny"
    assert told == command and board["layout"] == [1, 2] and list(board["given"]) == ["0"]
    *_, (repeated, *_) = drawn(page, board, rack, values)
    assert image_of(repeated["picture"]["whole"]).tobytes() == image_of(whole).tobytes()


def test_a_panel_of_the_result_can_be_kept(page):
    *_, (stage, *_) = drawn(page)
    panel = stage["picture"]["panels"][1]["src"]
    change = in_context._keeping(page)(event(number=1, data=panel))
    assert image_of(change["add"]["1"]).tobytes() == image_of(panel).tobytes()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"layout": [2, 9]}, "layout: expected one of 1 x 2"),
        ({"layout": None}, "layout: expected one of"),
        ({"texts": ["a cat"]}, "please describe each panel; there are no words for [RIGHT]"),
        ({"texts": ["a cat", 3]}, "panel 2: expected text, got int"),
        ({"summary": "x" * 1001}, "summary: expected at most 1000 characters"),
        ({"texts": ["[LEFT]", "a"]}, "caption: expected no marker inside a part"),
        ({"given": {"0": "data:image/png;base64,xxxx"}}, "picture: this file"),
        ({"given": {"0": 7}}, "file: expected its bytes"),
        ({"given": {str(n): png_uri(Image.new("RGB", (8, 8)), {}) for n in (0, 1)}}, "all of them are given"),
    ],
)
def test_what_cannot_be_drawn_is_told_in_a_sentence(page, changes, told):
    *_, (stage, *_) = drawn(page, {**BOARD, **changes})
    assert stage["state"] == "error" and told in stage["note"], stage["note"]


@pytest.mark.parametrize(
    "values", [(None, "", 2.0, 2), (0, "", 2.0, 61), (0, "", 31.0, 2), (2**40, "", 2.0, 2)]
)
def test_settings_beyond_the_limits_are_told_in_a_sentence(page, values):
    *_, (stage, *_) = drawn(page, values=values)
    assert stage["state"] == "error" and "expected" in stage["note"]


@pytest.mark.parametrize(
    "kept",
    [
        {},
        {"prompt": "a cat", "model": "tiny"},
        {"prompt": "a cat", "rows": 1, "columns": 2, "model": "tiny"},
        {"prompt": "[LEFT] a [RIGHT] b", "rows": 1, "columns": 2, "model": "other"},
        {"prompt": "[LEFT] a [RIGHT] b", "rows": 1, "columns": 2, "model": "tiny", "given": [7]},
        {"prompt": "[LEFT] a [RIGHT] b", "rows": 1, "columns": 2, "model": "tiny", "colour": 1},
    ],
)
def test_pictures_that_are_no_sets_of_the_page_are_refused(page, kept):
    data = base64.b64encode(png_bytes(Image.new("RGB", (64, 32)), kept)).decode()
    stage, *rest = in_context._opening(page)(event(data=data))
    assert stage["state"] == "error" and len(rest) == 3 + len(in_context.NAMES) + 2


def test_a_picture_that_is_too_large_is_refused_before_it_is_decoded(page):
    change = in_context._giving(page)("tiny", BOARD, event(number=0, data="A" * (29 * 2**20)))
    assert change["problem"].startswith("file: expected at most 20.0 MB")


def test_every_example_fits_its_layout_and_its_lora():
    from dit_heads.demo.lora_files import shipped

    there = {file.id: file.layout for file in shipped("embedded")}
    for number, example in enumerate(set_form.examples()):
        board, rack = in_context._trying(event(number=number))
        assert there[example.lora] == (example.rows, example.columns) and rack["on"] == {example.lora: 1.0}
        rows, columns, caption = set_form.caption_from(facts_of("embedded"), board, Limits())
        assert str(example.caption) == caption and len(board["texts"]) == rows * columns
