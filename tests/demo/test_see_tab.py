"""The See tab's handlers, without a browser."""

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

from dit_heads.demo.facts import facts_of
from dit_heads.demo.files import plain_uri
from dit_heads.demo.limits import Limits
from dit_heads.demo.page import Page
from dit_heads.demo.set_form import picture_from
from dit_heads.demo.tabs import see

ANN = SimpleNamespace(session_hash="ann")
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (17, 24, 3), np.uint8))
BOARD = {"picture": plain_uri(PICTURE), "question": "how far is everything?"}


@pytest.fixture(scope="module")
def page(roomy, model, instruct_lora, soft_tokens):
    facts = replace(facts_of(model), instruct=instruct_lora, soft_tokens=soft_tokens)
    return Page(roomy, {model: facts})


def event(**data) -> Any:
    return SimpleNamespace(_data=data)


def answered(page, board=BOARD, values=(5, 2), method="instruct"):
    async def all_of():
        return [shown async for shown in see._asking(page)(ANN, "tiny", board, method, *values)]

    return asyncio.run(all_of())


def data_of(uri: str) -> bytes:
    return base64.b64decode(uri.partition(",")[2])


def test_asking_ends_with_the_answer_its_files_and_its_recipes(page, model):
    *_, (stage, command, code, *_) = answered(page)
    answer = stage["answer"]
    assert stage["state"] == "done" and stage["note"] == "Understood: how far each pixel is. 2 steps, seed 5."
    shown = Image.open(io.BytesIO(data_of(answer["shown"])))
    assert shown.size == tuple(answer["size"]) == (24 * 22, 17 * 22)
    kept = json.loads(shown.info["parameters"])
    assert (kept["question"], kept["seed"], kept["model"]) == ("how far is everything?", 5, "tiny")
    assert [each["name"] for each in answer["files"]] == ["answer.png", "answer-mm.png", "picture.png"]
    own = Image.open(io.BytesIO(data_of(answer["files"][-1]["href"])))
    assert own.tobytes() == PICTURE.tobytes() and not own.info
    assert answer["cloud"]["rows"] == 17 and answer["told"]
    assert (
        "--steps=2" in command and "--lora=seeing.safetensors" in command and "'seeing.safetensors'" in code
    )
    assert model not in f"{stage}{command}{code}"


def test_soft_tokens_answer_without_seed_and_steps_and_say_how_certain_they_are(page, model):
    *_, (stage, command, code, *_) = answered(page, values=(None, 2), method="soft-tokens")
    assert stage["note"] == "Understood: how far each pixel is. Read by soft tokens in one look."
    kept = json.loads(Image.open(io.BytesIO(data_of(stage["answer"]["shown"]))).info["parameters"])
    assert (kept["method"], kept["steps"]) == ("soft-tokens", 20)  # as the command has it by default
    assert "--method=soft-tokens --tokens=tokens" in command and "--steps" not in command
    assert "with_soft_tokens(load_pipeline('tiny'), 'tokens')" in code and "seed" not in code
    behind = stage["answer"]["behind"]
    assert behind["label"] == "Certainty" and behind["src"].startswith("data:image/")
    *_, (stage, *_) = answered(page, {**BOARD, "question": "where is the cube?"}, method="soft-tokens")
    assert stage["answer"]["behind"] is None and stage["state"] == "done"
    *_, (stage, *_) = answered(page, method="by hand")
    assert "answered by: expected instruct or soft-tokens, got 'by hand'" in stage["note"]


def test_boxes_leave_as_coco_json(page):
    *_, (stage, *_) = answered(page, {**BOARD, "question": "where are the cubes?"})
    files = {each["name"]: each["href"] for each in stage["answer"]["files"]}
    assert json.loads(data_of(files["answer.json"]))["categories"] == [{"id": 1, "name": "cube"}]
    assert stage["answer"]["cloud"] is stage["answer"]["scale"] is None


@pytest.mark.parametrize(
    ("changes", "values", "told"),
    [
        ({"picture": ""}, (0, 2), "picture: expected one; please choose it"),
        ({"picture": 7}, (0, 2), "file: expected its bytes"),
        ({"picture": "data:image/png;base64,xxxx"}, (0, 2), "picture: this file"),
        (
            {"question": "make it prettier"},
            (0, 2),
            "no task is understood in 'make it prettier'; try such as",
        ),
        ({"question": ["a"]}, (0, 2), "question: expected one"),
        ({}, (0, 61), "steps: expected at most 60"),
        ({}, (None, 2), "seed: expected a whole number"),
        ({}, (2**40, 2), "seed: expected"),
    ],
)
def test_what_cannot_be_asked_is_told_in_a_sentence(page, changes, values, told):
    *_, (stage, *_) = answered(page, {**BOARD, **changes}, values)
    assert stage["state"] == "error" and told in stage["note"], stage["note"]


def test_a_picture_is_taken_in_once_and_large_ones_are_made_smaller(page):
    def given(image: Image.Image, kind: str, **options: Any) -> dict[str, Any]:
        buffer = io.BytesIO()
        image.save(buffer, format=kind, **options)
        data = base64.b64encode(buffer.getvalue()).decode()
        return see._giving(page)(event(data=data))

    small = given(PICTURE, "PNG")
    assert picture_from(small["picture"], Limits()).tobytes() == PICTURE.tobytes() and not small["problem"]
    large = picture_from(given(Image.new("L", (3000, 1000), 90), "JPEG")["picture"], Limits())
    assert large.width * large.height <= Limits().pixels and abs(large.width / large.height - 3) < 0.01
    turned = Image.Exif()
    turned[274] = 6
    assert picture_from(given(PICTURE, "JPEG", exif=turned)["picture"], Limits()).size == (17, 24)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ("A" * (29 * 2**20), "file: expected at most 20.0 MB"),
        (base64.b64encode(b"no picture").decode(), "picture: this file is not a picture"),
        (None, "file: expected its bytes"),
    ],
)
def test_files_that_are_no_pictures_are_refused_in_words(page, data, told):
    assert see._giving(page)(event(data=data))["problem"].startswith(told)


def test_every_example_is_a_picture_with_a_question_that_is_understood():
    from dit_heads.tasks.router import route

    for number, (_, question, _) in enumerate(see.EXAMPLES):
        board = see._trying(event(number=number))
        assert board["question"] == question and picture_from(board["picture"], Limits()).size == (128, 128)
    for question in see.QUESTIONS:
        assert route(question)
    for number in (-1, 99, None, "0"):
        assert see._trying(event(number=number)) == gr.skip()


def test_a_page_without_such_a_lora_says_what_is_needed(roomy, model):
    bare = Page(roomy, {model: replace(facts_of(model), instruct=None)})
    with gr.Blocks() as blocks:
        see.build(bare)
    (part,) = (
        blocks.config["components"] if hasattr(blocks, "config") else blocks.get_config_file()["components"]
    )
    assert "--instruct-lora" in part["props"]["value"]
    *_, (stage, *_) = answered(bare)
    assert stage["note"].startswith("model: expected one with a LoRA of the task instruct")
