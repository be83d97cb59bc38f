"""The work and the handlers of the Train tab."""

import asyncio
import base64
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from PIL import Image
from safetensors.torch import load, load_file
from transformers import T5EncoderModel

pytest.importorskip("gradio")

from dit_heads.demo.drawing import Drawing, Lora
from dit_heads.demo.engine import ASIDE, Engine
from dit_heads.demo.facts import facts_of
from dit_heads.demo.in_context import DrawingSet
from dit_heads.demo.jobs import Job
from dit_heads.demo.limits import Limits
from dit_heads.demo.page import Page
from dit_heads.demo.shelf import Shelf
from dit_heads.demo.tabs import train as tab
from dit_heads.demo.training import Learning, Trained, Training, check_training
from dit_heads.errors import InputError
from dit_heads.loras.train import train
from tests.demo.test_set_files import sent, sets
from tests.demo.watched import cancelled_at, watched
from tests.saved import tiny_pipeline, tiny_vae

ANN = SimpleNamespace(session_hash="ann")


@pytest.fixture(scope="module")
def trainable(tmp_path_factory) -> str:
    """A folder of the tiny pipeline with an autoencoder that shrinks eight times, as the trainer expects."""
    torch.manual_seed(1)
    whole: Any = StableDiffusion3Pipeline(**{**tiny_pipeline().components, "vae": tiny_vae(8, 8, 8, 8)})
    folder = tmp_path_factory.mktemp("model") / "small"
    whole.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def engine(trainable):
    with Engine({trainable: partial(StableDiffusion3Pipeline.from_pretrained, trainable)}) as engine:
        yield engine


@pytest.fixture(scope="module")
def page(engine, trainable):
    return Page(engine, {trainable: facts_of(trainable)})


def written(folder, check=lambda: None):
    """Three sets of two panels."""
    check()
    for number, (name, data) in enumerate(sets(3).items()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
        if name.endswith(".png"):
            Image.new("RGB", (64, 64), (40 * number % 255, 90, 200)).save(folder / name)


@pytest.fixture
def training(trainable):
    shelf = Shelf("lora", 4, 2**24)  # its files last as long as it does

    def make(**changes) -> Training:
        quick = {"side": 64, "shelf": shelf, "steps": 4, "rank": 2, "precision": "no"}
        return Training(trainable, "mine.safetensors", written, rows=1, columns=2, **{**quick, **changes})

    return make


def test_what_is_trained_is_what_the_trainer_trains(engine, training, tmp_path):
    work = training(steps=12)
    found: Trained = engine.submit(ASIDE, work).wait(120)
    written(tmp_path / "sets")
    caption = "two. [LEFT] a cat [RIGHT] a dog"
    alone = train(work.config(tmp_path / "sets", tmp_path / "run", caption))
    ours, theirs = load_file(found.lora.path), load_file(alone)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert (found.done, found.lora.layout, found.caption) == (12, (1, 2), caption)
    assert [step for step, _ in found.drawings] == [3, 6, 9, 12]
    assert [step for step, _ in found.points] == [11]
    assert found.drawings[0][1].size == (128, 64)


def test_a_training_changes_no_picture_and_others_draw_meanwhile(engine, trainable, training, settings):
    asked = settings(model=trainable, seed=3)
    before = engine.submit(trainable, Drawing(asked)).wait(60).image.tobytes()
    meanwhile = []

    def draw(job, changes):
        if changes.get("step") == 2:
            meanwhile.append(engine.submit(trainable, Drawing(asked)).wait(60).image.tobytes())

    found = engine.submit(ASIDE, watched(training(), draw)).wait(120)
    assert meanwhile == [before]
    assert engine.submit(trainable, Drawing(asked)).wait(60).image.tobytes() == before
    used = engine.submit(trainable, Drawing(asked, [Lora(found.lora.path, 4.0)])).wait(60).image.tobytes()
    assert used != before
    assert engine.submit(trainable, Drawing(asked)).wait(60).image.tobytes() == before


def test_a_training_that_is_stopped_ends_after_its_step_and_keeps_what_it_learned(engine, training, tmp_path):
    found = engine.submit(ASIDE, cancelled_at(2, training(steps=400))).wait(120)
    assert (found.done, found.steps) == (2, 400)
    assert load_file(found.lora.path)
    assert engine.submit(ASIDE, lambda pipe, job: "next").wait(60) == "next"


@contextmanager
def counted(kind, at, act):
    """Count the calls of all models of a kind that come to their end; before number `at`, act."""
    begun, ended = [], []

    def before(module, _):
        if isinstance(module, kind) and not module.training:
            begun.append(module)
            if len(begun) == at:
                act()

    hooks = torch.nn.modules.module
    first = hooks.register_module_forward_pre_hook(before)
    last = hooks.register_module_forward_hook(
        lambda module, *_: ended.append(module) if isinstance(module, kind) and not module.training else None
    )
    try:
        yield ended
    finally:
        first.remove()
        last.remove()


def test_a_training_that_is_stopped_while_it_draws_ends_before_the_next_step_of_the_drawing(training):
    job = Job(training(), None, 3600.0, lambda job: 0)
    with counted(SD3Transformer2DModel, 5, job.cancel) as calls:
        job.run(None)
    found = job.wait(0)
    assert len(calls) == 4 and (found.done, found.drawings) == (1, ())


def test_a_training_that_is_cancelled_while_it_prepares_ends_before_the_next_set_or_caption(training):
    seen = []

    def rendering(folder, check):
        for number in range(9):
            check()
            seen.append(number)
            if number == 1:
                job.cancel()

    job = Job(replace(training(), write=rendering), None, 3600.0, lambda job: 0)
    job.run(None)
    assert job.view.state == "cancelled" and seen == [0, 1]
    job = Job(training(), None, 3600.0, lambda job: 0)
    with counted(T5EncoderModel, 2, job.cancel) as calls:
        job.run(None)
    assert job.view.state == "cancelled" and len(calls) == 1


def test_a_training_that_is_cancelled_before_its_first_step_keeps_nothing(engine, training):
    work = training()

    def cancelled(pipe, job):
        job.cancel()
        return work(pipe, job)

    job = engine.submit(ASIDE, cancelled)
    with pytest.raises(InputError):
        job.wait(120)
    assert job.view.state == "cancelled" and len(work.shelf) == 0


def test_a_training_whose_time_is_over_keeps_what_it_learned(training):
    def end(job, changes):
        if changes.get("step") == 1:
            job._deadline = 0.0

    job = Job(watched(training(steps=400), end), None, 3600.0, lambda job: 0)
    job.run(None)
    assert job.wait(0).done == 1


def test_sets_that_cannot_be_used_are_told_without_a_path(engine, training):
    def nothing(folder, check):
        folder.mkdir()
        (folder / "a.txt").write_text("a")

    with pytest.raises(InputError) as refused:
        engine.submit(ASIDE, replace(training(), write=nothing)).wait(120)
    assert "/" not in str(refused.value)


@pytest.mark.parametrize(
    "numbers", [(0, 8, 0), (601, 8, 0), (None, 8, 0), (20, 33, 0), (20, 8, -1), (20, 8, None), (True, 8, 0)]
)
def test_numbers_beyond_the_limits_are_refused(numbers):
    with pytest.raises(InputError, match="expected a whole number from"):
        check_training(Limits(), *numbers)


# --- handlers ---


def views(stream):
    async def all_of():
        return [shown async for shown in stream]

    return asyncio.run(all_of())


def event(**data):
    return SimpleNamespace(_data=data)


def started(page, drop, source=tab.OWN, name="my lora", numbers=(2, 2, 0)):
    return views(tab._starting(page)(ANN, "small", source, 20, drop, name, *numbers))


def test_from_files_to_a_lora_that_in_context_draws_with(page, trainable, engine):
    drop = {"layout": [1, 2]}
    told = tab._bringing(page)(ANN, "small", drop, event(files=sent(sets(3, (128, 128)))))
    assert told["told"] == "3 sets, ready to learn from." and not told["problems"]
    shown = started(page, {**drop, "id": told["id"]})
    board, _, stop, use, kept = shown[-1]
    assert board["state"] == "done" and use["visible"] and not stop["visible"]
    assert board["file"]["name"] == "my-lora.safetensors"
    assert load(base64.b64decode(board["file"]["href"].partition(",")[2]))
    again = views(tab._going_on(page)(kept))[-1]
    assert again[0]["note"] == board["note"] and again[0]["file"] == board["file"]
    _, model, panels, rack = tab._using(page)(kept)
    assert model == "small" and panels["layout"] == [1, 2] and panels["texts"] == ["a cat", "a dog"]
    from dit_heads.demo.tabs.in_context import work_from

    lines = {"loras": [{**rack["add"][-1], "on": True}]}
    work = work_from(page, page.first, {**panels}, lines, (0, "", 2.0, 2))
    assert isinstance(work, DrawingSet) and engine.submit(trainable, work).wait(60).panels
    page.leave("ann")
    assert page.loras.get(rack["add"][-1]["id"])


def test_another_layout_is_looked_at_again(page):
    told = tab._bringing(page)(ANN, "small", {"layout": [1, 2]}, event(files=sent(sets(1))))
    again = tab._checking(page)("small", {"layout": [2, 2], "id": told["id"]})
    assert "expected 4" in again["problems"][0] and "please mend this first" in again["told"]
    (board, *_), *_ = started(page, {"layout": [2, 2], "id": told["id"]})
    assert board["state"] == "error" and "cannot be used yet" in board["note"]


@pytest.mark.parametrize(
    ("drop", "source", "told"),
    [
        ({"layout": [1, 2]}, tab.OWN, "please bring some first"),
        ({"layout": [1, 2], "id": "x"}, tab.OWN, "sets: not here any more"),
        (None, tab.OWN, "layout: expected one of"),
        ({"layout": [1, 2]}, "Sky", "sets: expected one of"),
        ({"layout": [1, 2]}, next(iter(tab.EXAMPLES)), "sets: expected one of"),
    ],
)
def test_what_cannot_be_trained_is_told_in_a_sentence(page, drop, source, told):
    (board, *_), *_ = started(page, drop, source)
    assert board["state"] == "error" and told in board["note"]


def test_files_that_are_no_sets_are_told_and_the_old_ones_are_gone(page):
    told = tab._bringing(page)(ANN, "small", {"layout": [1, 2]}, event(files=sent(sets(1))))
    refused = tab._bringing(page)(ANN, "small", {"layout": [1, 2]}, event(files=sent({"a.zip": b"x"})))
    assert refused["id"] == "" and "damaged" in refused["problems"][0]
    with pytest.raises(InputError):
        page.sets.get(told["id"])


def test_nobody_uses_or_follows_a_run_that_is_not_there(page):
    import gradio as gr

    ((board, start, *_),) = views(tab._going_on(page)("none"))
    assert board["note"] == tab._IDLE and start["value"] == "Train"
    with pytest.raises(gr.Error, match="there is none"):
        tab._using(page)("none")
    tab._stopping(page)("none")


def test_what_a_run_shows_is_its_curve_and_its_drawings():
    seen = Learning(((1, 0.5), (11, 0.25)), ((5, Image.new("RGB", (8, 8))),))
    shown = tab._learned(seen)
    assert shown["points"] == [[1, 0.5], [11, 0.25]] and shown["drawings"][0]["step"] == 5
