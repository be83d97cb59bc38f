"""Edits of pictures: the work of the Edit tab, and what it leaves of the pipeline."""

import shlex
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dit_heads.cli import main
from dit_heads.cli.edit import EditSettings
from dit_heads.demo.drawing import Drawing
from dit_heads.demo.editing import Editing, Finding, asked, bound, slots_of
from dit_heads.demo.engine import Engine
from dit_heads.demo.facts import facts_of, with_lora
from dit_heads.demo.isolation import lent, state_of
from dit_heads.demo.jobs import Cancelled
from dit_heads.demo.limits import Limits
from dit_heads.demo.recipes import edit_command_line, edit_python_code
from dit_heads.errors import InputError
from dit_heads.io.pictures import read_image
from dit_heads.models import load_pipeline
from dit_heads.pipelines import with_multimodal_lora
from tests.demo.lone_runs import alone
from tests.demo.watched import cancelled_at, watched
from tests.saved import tiny_pipeline

TEXT = "make <cube> red"


def picture(seed: int = 0, size: tuple[int, int] = (24, 17)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)
    return Image.fromarray(pixels)


def half(size: tuple[int, int] = (24, 17)) -> Image.Image:
    mask = Image.new("L", size)
    mask.paste(255, (size[0] // 2, 0, *size))
    return mask


@pytest.fixture
def want(model, edit_lora):
    """What is asked for, some of it otherwise."""

    def make(text: str = TEXT, seed: int = 0, steps: int = 2, **changes: Any):
        settings = EditSettings(model=model, steps=steps, seed=seed, **changes.pop("settings", {}))
        given = {"given": {"cube": picture(9)}, "picture": picture(), "mask": None} | changes
        return asked(text, **given, settings=settings, lora=edit_lora, limits=Limits())

    return make


def lone(one: Any) -> np.ndarray:
    """The result of a pipeline of its own, called as docs/edit.md does."""
    pipe: Any = tiny_pipeline()
    pipe.set_progress_bar_config(disable=True)
    noise, paint = torch.Generator().manual_seed(one.settings.seed), with_multimodal_lora(pipe, one.lora)
    call: Any = {"num_inference_steps": one.settings.steps, "guidance_scale": 1.0, "generator": noise}
    return np.asarray(paint(one.text, one.references, one.picture, mask=one.mask, **call).images[0])


# --- the engine ---


def test_edits_of_visitors_at_once_are_those_of_lone_runs(roomy, model, want):
    each = [
        want(),
        want(seed=1, given={"cube": picture(3)}),
        want("a <cube> on sand", picture=None),
        want("<imagehere> or <imagehere>", given={"imagehere 1": picture(4), "imagehere 2": picture(5)}),
        want("make it red", given={}, mask=half()),
    ]
    jobs = [roomy.submit(model, Editing(one), owner=f"visitor {n}") for n, one in enumerate(each)]
    results = [np.asarray(job.wait(60).image) for job in jobs]
    for one, result in zip(each, results, strict=True):
        assert np.array_equal(result, lone(one))
    assert not np.array_equal(results[0], results[1])


def test_outside_of_a_mask_nothing_changes(roomy, model, want):
    one = want(mask=half(), settings={"mask_feather": 0})
    result = np.asarray(roomy.submit(model, Editing(one)).wait(60).image)
    assert np.array_equal(result[:, :12], np.asarray(one.picture)[:, :12])
    assert (result[:, 12:] != np.asarray(one.picture)[:, 12:]).any()


def test_a_map_of_changes_gives_the_masks_of_the_pipeline(roomy, model, want):
    one = want("make it red", given={}, seed=4)
    found = np.asarray(roomy.submit(model, Finding(one)).wait(60))
    pipe: Any = tiny_pipeline()
    paint = with_multimodal_lora(pipe, one.lora)
    for threshold in np.quantile(found, (0.3, 0.6)) / 255 + 0.002:
        noise = torch.Generator().manual_seed(4)
        (mask,) = paint.find_mask(one.text, (), one.picture, threshold=float(threshold), generator=noise)
        differ = (found >= 255 * threshold) != (np.asarray(mask) > 0)
        assert differ.mean() <= 0.02 and 0 < np.asarray(mask).mean() < 255  # found is in 256 levels
    assert found.shape == (17, 24)


def test_a_picture_of_guide_after_an_edit_is_that_of_a_lone_run(roomy, model, want, settings):
    drawing = Drawing(settings(seed=4, heads="L1H2"))
    first, found = roomy.submit(model, Editing(want())), roomy.submit(model, Finding(want()))
    drawn = roomy.submit(model, drawing)
    assert drawn.wait(60).image.tobytes() == alone(drawing)
    assert first.wait(0) and found.wait(0)


@pytest.mark.parametrize("stop", [None, 1])
@pytest.mark.parametrize("kind", [Editing, Finding])
def test_an_edit_leaves_no_trace_whether_it_ends_or_not(want, stop, kind):
    pipe: Any = tiny_pipeline()
    pipe.set_progress_bar_config(disable=True)
    before, config = state_of(pipe), dict(pipe.transformer.config)

    class Quiet:
        def update(self, **changes: Any) -> None: ...

    calls = []

    def check() -> None:
        calls.append(1)
        if stop and len(calls) > stop:
            raise Cancelled

    job: Any = Quiet()
    try:
        with lent(pipe, check):
            kind(want())(pipe, job)
    except Cancelled:
        assert stop
    assert calls and state_of(pipe) == before and dict(pipe.transformer.config) == config


def test_a_cancelled_edit_frees_the_model_within_one_step(roomy, model, want):
    long, after = roomy.submit(model, cancelled_at(2, Editing(want(steps=50)))), want(seed=9)
    assert np.array_equal(np.asarray(roomy.submit(model, Editing(after)).wait(60).image), lone(after))
    assert long.view.state == "cancelled" and long._view.step == 2


@pytest.mark.parametrize(("image", "size"), [((64, 40), (64, 40)), (None, (32, 32))])
def test_previews_have_the_shape_of_the_result(roomy, model, want, image, size):
    seen = []
    one = want(steps=4, picture=image and picture(size=image))
    look = lambda job, changes: seen.extend(  # noqa: E731
        [changes["preview"].size] if "preview" in changes else []
    )
    edited = roomy.submit(model, watched(Editing(one), look)).wait(60)
    assert seen and set(seen) == {size} and edited.image.size == size


# --- what is asked for ---


def test_slots_are_names_each_once_or_numbers():
    assert slots_of("put <a> on <b>, not <a>") == ("a", "b")
    assert slots_of("<imagehere> and <imagehere>") == ("imagehere 1", "imagehere 2")
    assert slots_of("<imagehere> and <b>") == ("imagehere", "b")
    assert slots_of("a < b and c > d") == ()
    one, other = picture(1), picture(2)
    assert bound("<b> then <a>", {"a": one, "b": other}) == {"b": other, "a": one}
    assert bound("<imagehere> <imagehere>", {"imagehere 2": one, "imagehere 1": other}) == [other, one]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"text": " "}, "instruction: expected one, such as"),
        ({"text": None}, "instruction: expected one, such as"),
        ({"text": "x" * 1001}, "instruction: expected at most 1000 characters"),
        ({"given": {}}, "references: expected a picture for <cube>, got none"),
        ({"text": "a <imagehere>", "given": {}}, "expected a picture for <imagehere> number 1"),
        ({"text": "make it red"}, "instruction: expected <cube> in it, since there is a picture for it"),
        ({"text": "<a> <b> <c> <d> <e>"}, "instruction: expected at most 4 pictures in it, got 5"),
        ({"text": "<a=b>", "given": {"a=b": picture()}}, "expected names of letters, digits, - and _"),
        ({"mask": half((9, 9))}, "mask: expected the size of the picture, 17 x 24, got 9 x 9"),
        ({"mask": Image.new("L", (24, 17))}, "mask: expected white where the picture may change"),
        ({"mask": half(), "picture": None}, "mask: expected a picture to edit beside it"),
        ({"steps": 61}, "steps: expected at most 60"),
        ({"settings": {"image_guidance_scale": 99.0}}, "image_guidance_scale: expected at most 30"),
    ],
)
def test_what_cannot_be_asked_is_told_before_it_waits(want, changes, told):
    with pytest.raises(InputError, match=told):
        want(**changes)


def test_an_instruction_that_is_not_read_to_its_end_is_refused(roomy, model, want):
    with pytest.raises(InputError, match=r"the model would not read: .*zzz"):
        roomy.submit(model, Editing(want(f"{'w' * 300} <cube> zzz"))).wait(60)


def test_a_lora_of_another_task_or_without_its_encoder_is_refused(model, instruct_lora, edit_lora, tmp_path):
    assert with_lora(facts_of(model), edit_lora, "multimodal").multimodal == edit_lora
    with pytest.raises(InputError, match="edit_lora: expected a LoRA of the task multimodal"):
        with_lora(facts_of(model), instruct_lora, "multimodal")
    (bare := tmp_path / "bare.safetensors").write_bytes(edit_lora.read_bytes())
    with pytest.raises(InputError, match="edit_lora: expected the encoder of references"):
        with_lora(facts_of(model), bare, "multimodal")


# --- recipes ---


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "changes"),
    [
        (TEXT, {"mask": half(), "settings": {"guidance_scale": 2.0, "mask_feather": 1}}),
        ("- <imagehere>", {"given": {"imagehere 1": picture(3)}, "picture": None}),
        ("make it red", {"given": {}, "settings": {"processing_resolution": 16}}),
    ],
)
def test_the_command_and_the_code_give_the_same_result(
    model, want, edit_lora, tmp_path, monkeypatch, text, changes
):
    one = want(text, seed=7, **changes)
    # Loaded from its files, since numbers at other addresses may be added up in another order.
    with Engine({model: partial(load_pipeline, model)}) as engine:
        edited = engine.submit(model, Editing(one)).wait(60)
    monkeypatch.chdir(tmp_path)
    for name in ("editing.safetensors", "references.safetensors"):
        (tmp_path / name).write_bytes(edit_lora.with_name(name).read_bytes())
    if one.picture:
        one.picture.save("picture.png")
    if one.mask:
        one.mask.save("mask.png")
    for file, each in zip(one.files.values(), one.pictures, strict=True):
        each.save(file)
    shown = EditSettings(
        model=model, lora="editing.safetensors", steps=2, seed=7, **changes.get("settings", {})
    )
    assert main(shlex.split(edit_command_line(one, shown))[1:]) == 0
    assert np.array_equal(np.asarray(read_image(tmp_path / "result.png")), np.asarray(edited.image))
    (tmp_path / "result.png").unlink()
    exec(edit_python_code(one, shown, ""), {})
    assert np.array_equal(np.asarray(read_image(tmp_path / "result.png")), np.asarray(edited.image))
