"""Steps belong to the run: whatever else calls, changes or interrupts a model is counted right or refused."""

import copy
import threading
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import FirstBlockCacheConfig, FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
from diffusers.hooks import apply_first_block_cache
from diffusers.models.attention_processor import JointAttnProcessor2_0
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from dit_heads import HeadGuidance
from dit_heads.guidance.runs import Plan, Run
from tests import tiny
from tests.guidance.test_guidance import STEPS, Stop, by_hand, run
from tests.pipelines.test_pipelines import call, flux
from tests.tiny import explicit, inputs, pipeline, sd3, weights


@pytest.fixture
def pipe() -> Any:
    return pipeline(sd3())


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


def test_a_copy_of_the_pipeline_is_refused_while_attached_and_free_afterwards(pipe):
    plain = run(pipe)
    with HeadGuidance(pipe, "L1H0"):
        with pytest.raises(ValueError, match="cannot be copied; detach first"):
            copy.deepcopy(pipe.transformer)
        shallow = copy.copy(pipe)
        with pytest.raises(ValueError, match="expected a run of its own"):
            run(shallow)
        assert not torch.equal(run(pipe), plain)
    assert torch.equal(run(copy.deepcopy(pipe)), plain) and torch.equal(run(shallow), plain)


def test_a_scheduler_cannot_be_copied_in_a_guided_run_and_has_nothing_of_ours_after_it(pipe):
    def copied(pipe, step, time, given):
        copy.deepcopy(pipe.scheduler)
        return given

    with HeadGuidance(pipe, "L1H0"):
        with pytest.raises(ValueError, match="scheduler cannot be copied"):
            run(pipe, callback_on_step_end=copied)
        assert "step" not in vars(pipe.scheduler)


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


# --- what happens to the model while attached ---


def replaced_forward(model: Any) -> None:
    own = type(model).forward
    model.forward = types.MethodType(lambda self, *args, **kwargs: own(self, *args, **kwargs), model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: replaced_forward(m), "the forward of 'transformer' was replaced"),
        (lambda m: replaced_forward(m.transformer_blocks[2]), "the forward of 'transformer_blocks.2' was"),
        (lambda m: apply_first_block_cache(m, FirstBlockCacheConfig(threshold=0.1)), "a block cache"),
        (lambda m: setattr(m, "forward", torch.compile(m.forward, backend="eager")), "is compiled"),
    ],
    ids=["forward", "forward of a block", "cache", "compiled forward"],
)
@pytest.mark.parametrize("attached", [False, True])
def test_what_hides_calls_is_refused_before_and_while_attached(pipe, change, message, attached):
    guide = HeadGuidance(pipe, "L1H0", trunk="two_pass")
    if attached:
        guide.attach()
    change(pipe.transformer)
    with pytest.raises(ValueError, match=message):
        run(pipe) if attached else guide.attach()
    guide.detach()


def test_a_processor_replaced_after_the_fork_is_noticed(pipe):
    with HeadGuidance(pipe, "L1H0"):
        pipe.transformer.transformer_blocks[0].attn.processor = JointAttnProcessor2_0()  # before the fork
        run(pipe)
        pipe.transformer.transformer_blocks[3].attn.processor = JointAttnProcessor2_0()
        with pytest.raises(ValueError, match=r"transformer_blocks\.3\.attn: its attention processor was"):
            run(pipe)


class Mixing(JointAttnProcessor2_0):
    """Looks across the rows of a batch."""

    def __call__(self, attn: Any, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(attn, hidden_states + hidden_states.mean(0), *args, **kwargs)


@torch.no_grad()
def test_auto_takes_two_passes_where_a_processor_is_unknown_and_says_so():
    model: Any = sd3()
    model.transformer_blocks[2].attn.processor = Mixing()
    options: dict[str, Any] = {"scale": 2.0, "conditional": slice(None)}
    with HeadGuidance(model, "L1H0", trunk="two_pass", **options):
        expected = model(**inputs(2)).sample
    with HeadGuidance(model, "L1H0", **options) as guide:
        assert torch.equal(model(**inputs(2)).sample, expected)
        assert guide.report.trunk == "two_pass" and "has Mixing" in guide.report.reason
    with pytest.raises(ValueError, match=r"trunk: expected stock .* has Mixing"):
        HeadGuidance(model, "L1H0", trunk="shared", **options).attach()
    with HeadGuidance(model, "L3H0", **options) as guide:  # the fork lies behind it
        model(**inputs(2))
        assert guide.report.trunk == "shared"


@torch.no_grad()
@pytest.mark.parametrize("trunk", ["shared", "two_pass"])
def test_masks_have_the_rows_of_the_batch(trunk):
    model, arguments = tiny.flux(), inputs(4, "flux")
    tokens = arguments["encoder_hidden_states"].shape[1] + arguments["hidden_states"].shape[1]
    mask = torch.rand(4, 1, 1, tokens, generator=torch.Generator().manual_seed(0)) > 0.3
    call = {**arguments, "joint_attention_kwargs": {"attention_mask": mask}}
    with HeadGuidance(model, "L1H0, L3H2", scale=2.0, conditional=slice(2, 4), trunk=trunk):
        together = model(**call).sample
    for row in (2, 3):
        rows = slice(row, row + 1)
        alone = {k: v[rows] if len(v) == 4 else v for k, v in arguments.items()}
        alone["joint_attention_kwargs"] = {"attention_mask": mask[rows]}
        with HeadGuidance(model, "L1H0, L3H2", scale=2.0, conditional=slice(None), trunk=trunk):
            assert_close(together[rows], model(**alone).sample, atol=1e-5, rtol=1e-5)


def test_a_lora_under_layerwise_casting_is_guided():
    from peft import LoraConfig

    model = sd3(dtype=torch.float32)
    model.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    given = {k: v.float() if v.is_floating_point() else v for k, v in inputs(2).items()}
    options: dict[str, Any] = {"scale": 2.0, "conditional": slice(None)}
    with torch.no_grad(), HeadGuidance(model, "L1H0", trunk="two_pass", **options):
        expected = model(**given).sample
    with torch.no_grad(), HeadGuidance(model, "L1H0", trunk="shared", **options):
        assert_close(model(**given).sample, expected, atol=1e-4, rtol=1e-4)


def test_nothing_of_ours_stays_when_projections_are_fused_while_attached(pipe):
    plain = run(pipe)
    with HeadGuidance(pipe, "L1H0"):
        pipe.transformer.fuse_qkv_projections()
    pipe.transformer.unfuse_qkv_projections()
    assert {type(p) for p in pipe.transformer.attn_processors.values()} == {JointAttnProcessor2_0}
    assert_close(run(pipe), plain)
    HeadGuidance(pipe, "L1H0").attach().detach()


def test_a_backend_set_while_attached_stays_set():
    from diffusers.models.attention_dispatch import attention_backend

    model: Any = tiny.flux()
    with attention_backend("native"):
        with HeadGuidance(model, "L1H0", conditional=slice(None)):
            model.set_attention_backend("_native_math")
        assert {p._attention_backend for p in model.attn_processors.values()} == {"_native_math"}


@torch.no_grad()
def test_sd3_does_not_take_up_the_backend_of_another_model():
    from diffusers.models.attention_dispatch import attention_backend

    model = sd3(dtype=torch.float32)
    given = {k: v.float() if v.is_floating_point() else v for k, v in inputs(2).items()}
    with HeadGuidance(model, "L1H0", conditional=slice(None)):
        expected = model(**given).sample
        with attention_backend("_native_cudnn"):  # cannot run here; stock SD3 does not ask for it
            assert torch.equal(model(**given).sample, expected)


# --- bare transformers ---


@pytest.mark.parametrize("rows", [slice(0, None, 2), slice(3, None, -1)])
def test_conditional_rows_that_are_not_side_by_side_are_refused(rows):
    model = sd3()
    with (
        HeadGuidance(model, "L0H0", conditional=rows),
        pytest.raises(ValueError, match="expected rows side by side"),
    ):
        model(**inputs(4))


@torch.no_grad()
def test_explicit_maps_agree_after_all_of_it():
    model, arguments = sd3(), inputs(2)
    clean = explicit(model, {}, **arguments)
    expected = clean + 2.0 * (clean - explicit(model, weights(2, (1, 0, 1.0)), **arguments))
    for _ in range(2):
        with HeadGuidance(model, "L1H0", scale=2.0, conditional=slice(None)):
            assert_close(model(**arguments).sample, expected)


def test_another_pipeline_may_run_in_a_callback(pipe):
    other: StableDiffusion3Pipeline = pipeline(sd3("sd3.5-large"))

    def draw_another(_, step, time, given):
        run(other)
        return given

    with HeadGuidance(pipe, "L1H0"):
        alone = run(pipe)
        assert torch.equal(run(pipe, callback_on_step_end=draw_another), alone)
