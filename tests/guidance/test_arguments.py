"""What `HeadGuidance` refuses, by the name of the argument."""

import pytest
import torch
from diffusers import StableDiffusion3PAGPipeline

from dit_heads import HeadGuidance, HeadSet
from tests.guidance.by_hand import run, state
from tests.tiny import inputs, sd3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": "L9H0"}, "blocks L0 to L3, got L9H0"),
        ({"heads": "L0H7"}, "heads up to L0H3, got L0H7"),
        ({"heads": "L0H0i"}, "no block of the model has an image-only attention"),
        ({"heads": ""}, "expected at least one"),
        ({"heads": "head 3"}, "got 'head'"),
        ({"heads": 3}, "heads: expected"),
        ({"heads": []}, "heads: expected"),
        ({"heads": ["L0", 3]}, "heads: expected"),
        ({"softness": 1.2}, "softness: expected a number from 0 to 1, got 1.2"),
        ({"softness": float("nan")}, "got nan"),
        ({"softness": True}, "got True"),
        ({"softness": "soft"}, "got 'soft'"),
        ({"softness": {"L0H1": 0.5}}, "differ: L0H0, L0H1"),
        ({"softness": {"L0H0": 2}}, "from 0 to 1, got 2"),
        ({"scale": float("inf")}, "scale: expected a finite number, got inf"),
        ({"scale": "3"}, "scale: expected a finite number, got '3'"),
        ({"start": 0.5, "stop": 0.5}, "expected 0 <= start < stop <= 1"),
        ({"stop": 1.5}, "expected 0 <= start < stop <= 1"),
        ({"rescale": 1.5}, "rescale: expected a number from 0 to 1, got 1.5"),
        ({"every": 0}, "every: expected a whole number of at least 1, got 0"),
        ({"every": 1.5}, "every: expected a whole number of at least 1, got 1.5"),
        ({"perturbation": "blur"}, "perturbation: expected identity"),
        ({"region": "sky"}, "region: expected joint"),
        ({"temperature": 2.0}, "temperature: expected a number for 'temperature'"),
        ({"trunk": "none"}, "trunk: expected auto, shared, two_pass, got 'none'"),
        ({"conditional": slice(None)}, "only for a bare transformer"),
        ({"pipe": "SD3"}, "expected a diffusers pipeline or its transformer, got str"),
    ],
)
def test_bad_arguments_are_refused_and_nothing_is_changed(pipe, options, message):
    before = state(pipe)
    arguments = {"pipe": pipe, "heads": "L0H0"} | options
    with pytest.raises(ValueError, match=message):
        HeadGuidance(arguments.pop("pipe"), arguments.pop("heads"), **arguments)
    assert state(pipe) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "a bare transformer needs a slice"),
        ({"conditional": 3}, "got 3"),
        ({"conditional": slice(None), "start": 0.5}, "has no steps"),
        ({"conditional": slice(None), "every": 2}, "has no steps"),
    ],
)
def test_a_bare_transformer_needs_to_know_its_conditional_rows(options, message):
    with pytest.raises(ValueError, match=message):
        HeadGuidance(sd3(), "L0H0", **options)


@pytest.mark.parametrize("rows", [slice(4, 8), slice(1, 4), slice(0, 0)])
def test_conditional_rows_that_do_not_tile_the_batch_are_refused(rows):
    model = sd3()
    with (
        HeadGuidance(model, "L0H0", conditional=rows),
        pytest.raises(ValueError, match="conditional: expected rows"),
    ):
        model(**inputs(4))


@pytest.mark.parametrize("rows", [slice(0, None, 2), slice(3, None, -1)])
def test_conditional_rows_that_are_not_side_by_side_are_refused(rows):
    model = sd3()
    with (
        HeadGuidance(model, "L0H0", conditional=rows),
        pytest.raises(ValueError, match="expected rows side by side"),
    ):
        model(**inputs(4))


@torch.no_grad()
def test_conditional_rows_may_depend_on_the_batch():
    model = sd3()
    with HeadGuidance(model, "L1H0", conditional=lambda batch: slice(batch // 2, batch)) as guide:
        assert len(model(**inputs(6)).sample) == 6
        assert len(model(**inputs(2)).sample) == 2
    assert guide.report.steps == 2


def test_a_range_of_steps_that_holds_none_is_refused(pipe):
    with HeadGuidance(pipe, "L1H0", start=0.3, stop=0.4), pytest.raises(ValueError, match="no step of 4"):
        run(pipe)


def test_head_sets_for_another_number_of_pictures_are_refused(pipe):
    with HeadGuidance(pipe, ["L1H0"] * 3), pytest.raises(ValueError, match="each of 2 pictures, got 3"):
        run(pipe)


def test_pag_pipelines_are_refused(pipe):
    pag = StableDiffusion3PAGPipeline.from_pipe(pipe, pag_applied_layers=["blocks.1"])
    with pytest.raises(ValueError, match="adds rows of its own"):
        HeadGuidance(pag, "L1H0")


def test_a_head_set_object_is_as_good_as_its_text(pipe):
    with HeadGuidance(pipe, HeadSet.parse("L1H0") | HeadSet.parse("L2H1")):
        joined = run(pipe)
    with HeadGuidance(pipe, "L2H1 L1H0"):
        assert torch.equal(run(pipe), joined)
