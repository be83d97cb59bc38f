"""Steps belong to the run: whatever else calls or interrupts a model is counted right or refused."""

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    StableDiffusion3Pipeline,
)
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from dit_heads import HeadGuidance
from dit_heads.guidance.runs import Plan, Run
from tests.guidance.by_hand import STEPS, Stop, by_hand, run
from tests.pipelines.test_pipelines import call, flux
from tests.tiny import explicit, inputs, pipeline, sd3, weights


def flux_call(pipe: Any) -> torch.Tensor:
    """A run of a FLUX pipeline with true CFG, which is a second call in each step."""
    return call(pipe, {"true_cfg_scale": 2.0})


# --- plans and steps ---


@given(st.integers(1, 30), st.floats(0, 0.9), st.floats(0.1, 1), st.integers(1, 4))
def test_a_run_guides_the_steps_of_its_plan_and_evaluates_every_nth(steps, start, width, every):
    plan = Plan(start, min(1.0, start + width), every)
    made = Run(plan, "shared", "", steps)
    evaluated = []
    for step in range(steps):
        made.begin_call(float)
        if made.evaluates:
            evaluated.append(step)
            made.difference = torch.zeros(1)
        made.end_call()
        made.end_step()
    guided = [i for i in range(steps) if plan.start <= i / steps < plan.stop]
    assert made.report().guided == guided and evaluated == guided[::every]
    made.finish(interrupted=False)


def test_a_run_that_lacks_steps_is_an_error_unless_it_was_interrupted():
    made = Run(Plan(), "shared", "", steps=3)
    made.begin_call(float)
    made.difference = torch.zeros(1)
    made.end_call()
    made.end_step()
    made.finish(interrupted=True)
    with pytest.raises(ValueError, match=r"a run of 3 steps .* got 1 steps, guided \[0\]"):
        made.finish(interrupted=False)


# --- calls that are no step ---


@pytest.mark.parametrize("trunk", ["shared", "two_pass"])
def test_a_hook_that_replaces_the_latents_changes_no_count(pipe, trunk):
    """As one that joins a source to them would."""
    hook = pipe.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: (args, {**kwargs, "hidden_states": kwargs["hidden_states"].clone()}),
        with_kwargs=True,
    )
    with HeadGuidance(pipe, "L1H0", scale=2.0, trunk=trunk) as guide:
        got = run(pipe, skip_guidance_layers=[2], skip_layer_guidance_scale=0.0)
    hook.remove()
    assert guide.report.guided == list(range(STEPS))
    assert_close(got, by_hand(pipe, weights(2, (1, 0, 1.0)), 2.0))


def test_calls_that_are_not_a_run_of_the_attached_pipeline_are_refused(pipe):
    other = StableDiffusion3Pipeline(**pipe.components)
    with HeadGuidance(pipe, "L1H0"):
        for call in (lambda: run(other), lambda: pipe.transformer(**inputs(2))):
            with pytest.raises(ValueError, match="something other than a run"):
                call()
        run(pipe)
    run(other)


def test_a_call_in_a_callback_is_refused(pipe):
    def call(pipe, step, time, given):
        pipe.transformer(**inputs(4))
        return given

    with HeadGuidance(pipe, "L1H0"), pytest.raises(ValueError, match=r"had ended step 0 .by a callback"):
        run(pipe, callback_on_step_end=call)


def test_a_call_inside_a_call_is_refused(pipe):
    block = pipe.transformer.transformer_blocks[0]
    hook = block.register_forward_hook(lambda *_: pipe.transformer(**inputs(4)) and None)
    with HeadGuidance(pipe, "L1H0"), pytest.raises(ValueError, match="inside a call of it"):
        run(pipe)
    hook.remove()


def test_a_scheduler_replaced_during_the_run_is_noticed(pipe):
    def exchange(pipe, step, time, given):
        other = FlowMatchEulerDiscreteScheduler(shift=3.0)
        other.set_timesteps(STEPS)
        pipe.scheduler = other
        return given

    with HeadGuidance(pipe, "L1H0"), pytest.raises(ValueError, match=r"scheduler replaced|steps, guided"):
        run(pipe, callback_on_step_end=exchange)


@pytest.mark.parametrize("before", [False, True])
def test_a_loop_of_ones_own_is_refused(pipe, before):
    if before:
        run(pipe)  # leaves its number of steps behind
    pipe.scheduler.set_timesteps(8)
    message = "expected a run of its own `__call__`"
    with HeadGuidance(pipe, "L1H0"), pytest.raises(ValueError, match=message), pipe.progress_bar(total=8):
        pass


def test_a_run_inside_a_run_is_refused(pipe):
    with HeadGuidance(pipe, "L1H0"), pytest.raises(ValueError, match="a guided run of it is under way"):
        run(pipe, callback_on_step_end=lambda *_: run(pipe))


def test_another_pipeline_may_run_in_a_callback(pipe):
    other: StableDiffusion3Pipeline = pipeline(sd3("sd3.5-large"))

    def draw_another(_, step, time, given):
        run(other)
        return given

    with HeadGuidance(pipe, "L1H0"):
        alone = run(pipe)
        assert torch.equal(run(pipe, callback_on_step_end=draw_another), alone)


def test_a_scheduler_cannot_be_copied_in_a_guided_run_and_has_nothing_of_ours_after_it(pipe):
    def copied(pipe, step, time, given):
        copy.deepcopy(pipe.scheduler)
        return given

    with HeadGuidance(pipe, "L1H0"):
        with pytest.raises(ValueError, match="scheduler cannot be copied"):
            run(pipe, callback_on_step_end=copied)
        assert "step" not in vars(pipe.scheduler)


# --- threads ---


def in_thread(action: Callable[[], Any]) -> list[Any]:
    """What `action` returns, or raises, in another thread."""
    found: list[Any] = []

    def caught():
        try:
            found.append(action())
        except ValueError as error:
            found.append(error)

    thread = threading.Thread(target=caught)
    thread.start()
    thread.join()
    return found


def test_a_second_thread_is_refused_and_the_first_run_goes_on(pipe):
    refused = []

    def elsewhere(pipe, step, time, given):
        def calls():
            for other in (lambda: run(pipe), lambda: pipe.transformer(**inputs(4))):
                with pytest.raises(
                    ValueError, match=r"a guided run of it is under way|something other than a run"
                ) as error:
                    other()
                refused.append(error)

        # The scheduler is the pipeline's, which diffusers does not guard; keep what the first run needs.
        kept, vars_before = pipe.scheduler, dict(vars(pipe.scheduler))
        thread = threading.Thread(target=calls)
        thread.start()
        thread.join()
        vars(kept).update(vars_before)
        return given

    with HeadGuidance(pipe, "L1H0"):
        alone = run(pipe)
        assert torch.equal(run(pipe, callback_on_step_end=elsewhere), alone)
    assert len(refused) == 2 * STEPS


def test_an_unguided_run_in_another_thread_is_refused_while_attached(pipe):
    with HeadGuidance(pipe, "L1H0"):
        (error,) = in_thread(lambda: run(pipe))
        assert "attached to it in another thread" in str(error)
        guided = run(pipe)
    (plain,) = in_thread(lambda: run(pipe))
    assert not torch.equal(plain, guided)


@torch.no_grad()
def test_a_bare_transformer_is_refused_in_another_thread_by_its_own_message():
    model = sd3()
    with HeadGuidance(model, "L1H0", conditional=slice(None)):
        (error,) = in_thread(lambda: model(**inputs(2)))
        assert "in another thread" in str(error)
        model(**inputs(2))


# --- interruption ---


@pytest.mark.parametrize("kind", ["sd3", "flux"])
@pytest.mark.parametrize("error", [Stop, KeyboardInterrupt])
@pytest.mark.parametrize("trunk", ["shared", "two_pass"])
def test_a_run_after_one_that_was_interrupted_inside_a_call_is_exact(kind, error, trunk):
    """The first call of the next run evaluates nothing, and must not find an earlier run's branch."""
    made = flux("FluxPipeline") if kind == "flux" else pipeline(sd3())
    draw = flux_call if kind == "flux" else run
    with HeadGuidance(made, "L1H0", start=0.5, trunk=trunk) as guide:
        expected, guided = draw(made), guide.report.guided
        last = made.transformer.get_submodule(guide.layout.blocks[-1])

        def interrupt(*_: Any):
            under_way: Any = guide._attached and guide._attached.runs.current
            if len(guide.report.guided) == 1 or under_way.evaluates:
                raise error

        hook = last.register_forward_hook(interrupt)
        with pytest.raises(error):
            draw(made)
        hook.remove()
        assert torch.equal(draw(made), expected) and guide.report.guided == guided


@torch.no_grad()
def test_a_bare_transformer_is_exact_after_a_call_that_raised():
    model = sd3()
    with HeadGuidance(model, "L1H0", conditional=slice(None)):
        expected = model(**inputs(2)).sample
        hook = model.transformer_blocks[-1].register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(**inputs(2))
        hook.remove()
        assert torch.equal(model(**inputs(2)).sample, expected)


@torch.no_grad()
def test_explicit_maps_agree_after_all_of_it():
    model, arguments = sd3(), inputs(2)
    clean = explicit(model, {}, **arguments)
    expected = clean + 2.0 * (clean - explicit(model, weights(2, (1, 0, 1.0)), **arguments))
    for _ in range(2):
        with HeadGuidance(model, "L1H0", scale=2.0, conditional=slice(None)):
            assert_close(model(**arguments).sample, expected)
