"""Questions about pictures: the work of the See tab, and what it leaves of the pipeline."""

import io
import json
import shlex
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dit_heads.cli import main
from dit_heads.cli.see import SeeSettings
from dit_heads.demo.drawing import Drawing, Lora
from dit_heads.demo.engine import Engine
from dit_heads.demo.facts import facts_of, with_lora, with_tokens
from dit_heads.demo.isolation import lent, state_of
from dit_heads.demo.jobs import Cancelled
from dit_heads.demo.limits import Limits
from dit_heads.demo.recipes import see_command_line, see_python_code
from dit_heads.demo.seeing import ANSWER, PICTURE, answering, asked, bounded, scale_of
from dit_heads.errors import InputError
from dit_heads.io.pictures import read_image
from dit_heads.models import load_pipeline
from dit_heads.pipelines import with_instruct_lora
from tests.demo.lone_runs import alone, visible_loras
from tests.demo.watched import cancelled_at, watched
from tests.saved import tiny_pipeline

QUESTIONS = ("where are the cubes?", "how far is it?", "segment the cube", "is it day or night?")


SETTINGS = ("model", "steps", "method")


def picture(seed: int = 0, size: tuple[int, int] = (24, 17)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def facts(model, instruct_lora, soft_tokens):
    return replace(facts_of(model), instruct=instruct_lora, soft_tokens=soft_tokens)


@pytest.fixture
def work(model, facts):
    def make(question: str = QUESTIONS[1], seed: int = 0, steps: int = 2, image: Any = None):
        settings = SeeSettings(model=model, steps=steps, seed=seed)
        return asked(question, image or picture(), settings, facts, Limits())

    return make


def painted(seen: Any) -> bytes:
    return seen.output.image[0].tobytes()


def lone(work: Any, lora: Any) -> Any:
    """The answer by a pipeline of its own, called as docs/vision.md does."""
    pipe: Any = tiny_pipeline()
    pipe.set_progress_bar_config(disable=True)
    noise = torch.Generator().manual_seed(work.settings.seed)
    call: Any = {"num_inference_steps": work.settings.steps, "guidance_scale": 1.0}
    see = with_instruct_lora(pipe, lora)
    return see.ask(work.picture, work.question, image_guidance_scale=1.0, generator=noise, **call)


def test_answers_of_visitors_at_once_are_those_of_lone_runs(roomy, model, work, instruct_lora):
    asked_for = [work(QUESTIONS[n % 4], seed=n, image=picture(n)) for n in range(6)]
    jobs = [roomy.submit(model, each, owner=f"visitor {n}") for n, each in enumerate(asked_for)]
    answers = [job.wait(60) for job in jobs]
    assert [seen.question for seen in answers] == [each.question for each in asked_for]
    for n in (0, 3, 5):
        expected = lone(asked_for[n], instruct_lora)
        assert painted(answers[n]) == expected.image[0].tobytes()
        assert answers[n].output.query == expected.query


def test_a_picture_of_guide_after_an_answer_is_that_of_a_lone_run(roomy, model, work, settings, tmp_path):
    lora = Lora(visible_loras(tmp_path)[0])
    for drawing in (Drawing(settings(seed=4)), Drawing(settings(seed=4, heads="L1H2"), (lora,))):
        answer = roomy.submit(model, work())
        drawn = roomy.submit(model, drawing)
        assert drawn.wait(60).image.tobytes() == alone(drawing)
        answer.wait(0)


def test_an_answer_leaves_no_trace_whether_it_ends_or_not(work):
    pipe: Any = tiny_pipeline()
    pipe.set_progress_bar_config(disable=True)
    before, config = state_of(pipe), dict(pipe.transformer.config)
    weights = {name: value.clone() for name, value in pipe.transformer.state_dict().items()}

    class Job:
        stop = None

        def update(self, **changes: Any) -> None:
            if self.stop and changes.get("step") == self.stop:
                raise Cancelled

    for stop in (None, 1):
        job: Any = Job()
        job.stop = stop
        try:
            with lent(pipe, lambda: None):
                work()(pipe, job)
        except Cancelled:
            assert stop
        assert state_of(pipe) == before and dict(pipe.transformer.config) == config
    after = pipe.transformer.state_dict()
    assert after.keys() == weights.keys()
    assert all(torch.equal(after[name], weights[name]) for name in weights)


def test_a_lora_that_fails_to_load_leaves_the_input_as_it_was(tmp_path, instruct_lora):
    pipe: Any = tiny_pipeline()
    before = state_of(pipe)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(instruct_lora.read_bytes().replace(b'\\"instruct\\"', b'\\"in_struct', 1))
    with pytest.raises(InputError), answering(pipe, broken):
        pass
    assert state_of(pipe) == before


def test_a_cancelled_answer_frees_the_model_within_one_step(roomy, model, work, instruct_lora):
    long, after = roomy.submit(model, cancelled_at(2, work(steps=50))), work(seed=9)
    assert painted(roomy.submit(model, after).wait(60)) == lone(after, instruct_lora).image[0].tobytes()
    assert long.view.state == "cancelled" and long._view.step == 2


def test_previews_have_the_shape_of_the_picture(roomy, model, work):
    seen = []

    def look(job, changes):
        seen.extend([changes["preview"].size] if "preview" in changes else [])

    answer = roomy.submit(model, watched(work(steps=4, image=picture(size=(64, 40))), look)).wait(60)
    assert seen and set(seen) == {(32, 20)}
    assert answer.shown.size == (8 * 64, 8 * 40)


def test_every_task_comes_with_the_files_of_the_command(roomy, model, work):
    kinds = {
        "where are the cubes?": {"answer.json"},
        "segment every cube individually": {"answer.json"},
        "segment the cube": {"answer.json", "answer-labels.png"},
        "how far is it?": {"answer-mm.png"},
        "is it day or night?": {"answer.json"},
    }
    for question, names in kinds.items():
        files = roomy.submit(model, work(question)).wait(60).files
        assert set(files) == names
        for name, data in files.items():
            if name.endswith(".png"):
                assert Image.open(io.BytesIO(data)).size == (24, 17)
            else:
                assert "answer" in json.loads(data) or json.loads(data)["images"][0]["file_name"] == PICTURE


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"question": " "}, "question: expected one, such as"),
        ({"question": None}, "question: expected one, such as"),
        ({"question": "x" * 1001}, "question: expected at most 1000 characters"),
        ({"question": "make it prettier"}, "no task is understood in 'make it prettier'; try such as"),
        ({"question": "segment"}, "names nothing to segment"),
        ({"steps": 61}, "steps: expected at most 60"),
        ({"instruct": None}, "model: expected one with a LoRA of the task instruct"),
        ({"method": "soft-tokens", "soft_tokens": None}, "expected a model with weights of soft tokens"),
        ({"method": "soft-tokens", "question": "is it day or night?"}, "soft tokens answer depth, instances"),
        ({"model": "embedded", "question": "where is the dinosaur?"}, "got dinosaur"),
    ],
)
def test_what_cannot_be_asked_is_told_before_it_waits(model, facts, changes, told):
    settings = SeeSettings(
        **{"model": model, "steps": 2} | {k: v for k, v in changes.items() if k in SETTINGS}
    )
    weights = {name: None for name in ("instruct", "soft_tokens") if name in changes}
    with pytest.raises(InputError, match=told):
        asked(changes.get("question", QUESTIONS[0]), picture(), settings, replace(facts, **weights), Limits())


def test_a_question_that_is_not_read_to_its_end_is_refused(roomy, model, work):
    names = ", ".join(f"{a}{b}{'x' * 20}" for a in "abcd" for b in "abcd")
    with pytest.raises(InputError, match="the model would not read"):
        roomy.submit(model, work(f"is it {names} or zzz?")).wait(60)


def test_pictures_are_bounded_and_small_answers_shown_large():
    limits = Limits(pixels=10_000)
    assert bounded(picture(size=(100, 100)), limits).size == (100, 100)
    assert bounded(picture(size=(400, 100)), limits).size == (200, 50)
    assert bounded(Image.new("RGB", (9_000, 1)), Limits(pixels=2_250)).size == (4_500, 1)
    assert [scale_of(picture(size=size)) for size in ((1, 1), (128, 128), (512, 4), (2_000, 9))] == [
        512,
        4,
        1,
        1,
    ]


def test_a_lora_of_another_task_is_refused(model, instruct_lora, tmp_path):
    assert with_lora(facts_of(model), instruct_lora).instruct == instruct_lora
    with pytest.raises(InputError, match="expected a LoRA of the task instruct"):
        with_lora(facts_of(model), visible_loras(tmp_path)[0])
    with pytest.raises(InputError, match="does not fit"):
        with_lora(facts_of("embedded"), instruct_lora)


def test_weights_of_soft_tokens_that_do_not_fit_are_refused(model, facts, soft_tokens, tmp_path):
    assert with_tokens(facts_of(model), soft_tokens).soft_tokens == soft_tokens
    with pytest.raises(InputError, match="expected a model with 48 channels of features"):
        with_tokens(facts_of("embedded/flux"), soft_tokens)
    with pytest.raises(InputError, match="expected a file of weights"):
        with_tokens(facts_of(model), tmp_path)


def check_recipes(seen: Any, settings: SeeSettings, folder: Path) -> None:
    """The command and the code, run in a folder, make the files and the picture of an answer."""
    seen.picture.save(folder / PICTURE)
    words = shlex.split(see_command_line(seen.question, settings))
    assert main(words[1:]) == 0
    assert {name: (folder / name).read_bytes() for name in seen.files} == seen.files
    (folder / ANSWER).unlink()
    exec(see_python_code(seen.question, settings, "", scale_of(seen.picture)), {})
    assert read_image(folder / ANSWER).tobytes() == seen.shown.tobytes()


@pytest.mark.parametrize(
    "question", ["where is the cube?", "how far is it?", "outline every cone one by one"]
)
def test_soft_tokens_answer_as_the_command_and_the_code_do(
    model, facts, soft_tokens, tmp_path, monkeypatch, question
):
    settings = SeeSettings(model=model, method="soft-tokens")
    with Engine({model: partial(load_pipeline, model)}) as engine:
        job = engine.submit(model, asked(question, picture(size=(40, 32)), settings, facts, Limits()))
        seen = job.wait(60)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(soft_tokens, "mine")
    settings = replace(settings, tokens="mine")
    check_recipes(seen, settings, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("question", ["where are the cubes?", "- how far is it?", "is it day or night?"])
def test_the_command_and_the_code_give_the_same_answer(
    model, work, instruct_lora, tmp_path, monkeypatch, question
):
    # Loaded from its files, since numbers at other addresses may be added up in another order.
    with Engine({model: partial(load_pipeline, model)}) as engine:
        seen = engine.submit(model, work(question, seed=7)).wait(60)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.safetensors").write_bytes(instruct_lora.read_bytes())
    settings = SeeSettings(model=model, lora="mine.safetensors", steps=2, seed=7)
    check_recipes(seen, settings, tmp_path)
