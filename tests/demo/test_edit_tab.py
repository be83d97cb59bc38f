"""The Edit tab's handlers, without a browser."""

import asyncio
import base64
import io
import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio")

import gradio as gr

from dit_heads.demo.edit_form import INSIDE, WHOLE, examples
from dit_heads.demo.editing import bound, slots_of
from dit_heads.demo.facts import facts_of
from dit_heads.demo.files import plain_uri
from dit_heads.demo.limits import Limits
from dit_heads.demo.page import Page
from dit_heads.demo.set_form import picture_from
from dit_heads.demo.tabs import edit

ANN = SimpleNamespace(session_hash="ann")
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (17, 24, 3), np.uint8))
HALF = Image.new("L", (24, 17))
HALF.paste(255, (12, 0, 24, 17))
CUBE = {"name": "cube", "src": plain_uri(PICTURE.rotate(90))}
BOARD = {"picture": plain_uri(PICTURE), "instruction": "make <cube> red", "references": [CUBE], "area": WHOLE}
MASKED = {**BOARD, "area": INSIDE, "mask": plain_uri(HALF)}
VALUES = (1, 1, 2, 5, 8)


@pytest.fixture(scope="module")
def page(roomy, model, edit_lora):
    return Page(roomy, {model: replace(facts_of(model), multimodal=edit_lora)})


def event(**data) -> Any:
    return SimpleNamespace(_data=data)


def outcome(handler, board=BOARD, values=VALUES):
    async def all_of():
        return [shown async for shown in handler(ANN, "tiny", board, *values)]

    return asyncio.run(all_of())[-1]


def data_of(uri: str) -> bytes:
    return base64.b64decode(uri.partition(",")[2])


def opened(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(data_of(uri)))


def test_painting_ends_with_the_result_its_files_and_its_recipes(page, model):
    stage, command, code, *_ = outcome(edit._painting(page), MASKED, (2, 1.5, 2, 5, 0))
    picture = stage["picture"]
    assert stage["state"] == "done"
    assert stage["note"] == "Edited inside the mask, 50% of the picture \u00b7 2 steps \u00b7 seed 5."
    result = opened(picture["after"])
    kept = json.loads(result.info["parameters"])
    assert (kept["instruction"], kept["seed"], kept["model"]) == ("make <cube> red", 5, "tiny")
    assert np.array_equal(np.asarray(result)[:, :12], np.asarray(PICTURE)[:, :12])
    assert opened(picture["before"]).tobytes() == PICTURE.tobytes()
    files = {each["name"]: each["href"] for each in picture["files"]}
    assert list(files) == ["result.png", "edit.json", "picture.png", "mask.png", "reference-1.png"]
    record = json.loads(data_of(files["edit.json"]))
    assert record["references"] == {"cube": "reference-1.png"} and record["image_guidance_scale"] == 1.5
    assert opened(files["mask.png"]).tobytes() == HALF.tobytes()
    for part in ("--ref cube=reference-1.png", "--mask mask.png", "--steps=2", "--lora=editing.safetensors"):
        assert part in command
    assert "'editing.safetensors'" in code and model not in f"{stage}{command}{code}"


def test_without_a_picture_a_new_one_is_painted(page):
    stage, command, *_ = outcome(edit._painting(page), {**MASKED, "picture": ""})
    assert stage["note"].startswith("Painted on a blank canvas") and not stage["picture"]["before"]
    assert opened(stage["picture"]["after"]).size == (32, 32) and "picture.png" not in command


def test_an_empty_seed_is_another_one_each_time_and_is_told(page):
    seeds = {outcome(edit._painting(page), values=(1, 1, 1, None, 8))[0]["picture"]["seed"] for _ in range(2)}
    assert len(seeds) == 2


def test_a_mask_is_found_and_kept_as_what_would_change(page):
    stage, board, *_ = outcome(edit._finding(page))
    found = opened(board["map"])
    assert stage["state"] == "done" and found.size == PICTURE.size and np.asarray(found).any()
    assert set(board) == {"map", "problem", "stamp"}  # all else stays as the visitor has it


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"references": []}, "references: expected a picture for <cube>, got none"),
        ({"references": [{**CUBE, "name": "dog"}]}, "expected a picture for <cube>"),
        ({"references": [CUBE, {**CUBE, "name": "dog"}]}, "instruction: expected <dog> in it"),
        ({"references": 7}, "references: expected a list of names with pictures"),
        ({"references": [{**CUBE, "name": str(n)} for n in range(5)]}, "references: expected at most 4"),
        ({"references": [{"name": "cube", "src": "xx"}]}, "references: <cube>: file: expected its bytes"),
        ({"picture": 7}, "file: expected its bytes"),
        ({"instruction": ["a"]}, "instruction: expected one"),
        ({"mask": plain_uri(Image.new("L", (9, 9), 255))}, "mask: expected the size of the picture"),
        ({"mask": plain_uri(Image.new("L", (24, 17)))}, "mask: expected white where"),
        ({"mask": ""}, "mask: expected one; please paint it or find it"),
        ({"mask": "data:image/png;base64,xxxx"}, "mask: this file"),
    ],
)
def test_what_cannot_be_painted_is_told_in_a_sentence(page, changes, told):
    stage, *_ = outcome(edit._painting(page), {**MASKED, **changes})
    assert stage["state"] == "error" and told in stage["note"], stage["note"]


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        (2, 61, "steps: expected at most 60"),
        (2, None, "steps: expected a whole"),
        (3, 2**40, "seed: expected"),
    ],
)
def test_settings_beyond_the_limits_are_told(page, place, value, told):
    values = [*VALUES[:place], value, *VALUES[place + 1 :]]
    stage, *_ = outcome(edit._painting(page), values=values)
    assert stage["state"] == "error" and told in stage["note"]


def test_a_mask_is_not_looked_for_without_a_picture(page):
    stage, *_ = outcome(edit._finding(page), {**BOARD, "picture": ""})
    assert stage["note"] == "mask: expected a picture in which to find it, got none"


def test_pictures_are_taken_in_for_the_canvas_and_for_names(page):
    buffer = io.BytesIO()
    Image.new("L", (3000, 1000), 90).save(buffer, format="JPEG")
    data = base64.b64encode(buffer.getvalue()).decode()
    given = edit._giving(page)(event(slot="", data=data))
    picture = picture_from(given["picture"], Limits())
    assert picture.width * picture.height <= Limits().pixels
    named = edit._giving(page)(event(slot="cube", data=data))
    assert named["add"]["name"] == "cube" and "picture" not in named
    refused = edit._giving(page)(event(slot="cube", data=base64.b64encode(b"no picture").decode()))
    assert refused["problem"].startswith("picture: this file is not a picture") and "add" not in refused
    again = edit._taking(page)(event(data=BOARD["picture"]))
    assert picture_from(again["picture"], Limits()).tobytes() == PICTURE.tobytes()
    assert edit._taking(page)(event(data=7))["problem"]


def test_every_example_has_the_pictures_that_its_instruction_names():
    for number, example in enumerate(examples()):
        assert tuple(bound(example.text, example.references)) == slots_of(example.text)
        board = edit._trying(event(number=number))
        assert board["instruction"] == example.text and bool(board["picture"]) == bool(example.picture)
    kinds = {(bool(each.picture), bool(each.references)) for each in examples()}
    assert kinds == {(True, False), (True, True), (False, True)}
    for number in (-1, 99, None, "0"):
        assert edit._trying(event(number=number)) == gr.skip()


def test_a_page_without_such_a_lora_says_what_is_needed(roomy, model):
    bare = Page(roomy, {model: replace(facts_of(model), multimodal=None)})
    with gr.Blocks() as blocks:
        edit.build(bare)
    (part,) = (
        blocks.config["components"] if hasattr(blocks, "config") else blocks.get_config_file()["components"]
    )
    assert "--edit-lora" in part["props"]["value"]
    stage, *_ = outcome(edit._painting(bare))
    assert stage["note"].startswith("model: expected one with a LoRA of the task multimodal")
