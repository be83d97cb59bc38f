"""What could hide calls or blocks from head guidance, in the forms in which public code does it."""

import copy
import functools
import gc
import types
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from diffusers.hooks import HookRegistry, ModelHook
from torch.testing import assert_close

from dit_heads import HeadGuidance
from dit_heads.pipelines.modular import HeadPerturbationGuidance
from tests.guidance.by_hand import STEPS, by_hand, run
from tests.pipelines.test_modular import guided
from tests.tiny import inputs, sd3, weights

EVERY: dict[str, Any] = {"conditional": slice(None)}


@pytest.fixture
def cached_class(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The class's `forward` replaced, as scripts of step caches do."""
    own = SD3Transformer2DModel.forward

    def cached_forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return own(self, *args, **kwargs)

    monkeypatch.setattr(SD3Transformer2DModel, "forward", cached_forward)
    yield


def cache(model: Any) -> None:
    own = type(model).forward

    @functools.wraps(own)
    def cached_forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return own(self, *args, **kwargs)

    model.forward = types.MethodType(cached_forward, model)


# --- a replaced forward ---


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["offloaded first", "replaced first"])
@pytest.mark.parametrize("hook", ["accelerate", "diffusers"])
def test_a_replaced_forward_is_noticed_under_hooks_that_replace_it_too(pipe, hook, order):
    def move() -> None:
        if hook == "accelerate":
            pipe.enable_model_cpu_offload(device="cpu")
            run(pipe)
        else:
            registry = HookRegistry.check_if_exists_or_initialize(pipe.transformer)
            registry.register_hook(ModelHook(), "group_offloading")

    actions = [move, lambda: cache(pipe.transformer)]
    for place in order:
        actions[place]()
    with pytest.raises(ValueError, match="the forward of 'transformer' was replaced"):
        HeadGuidance(pipe, "L1H0").attach()


def test_a_class_whose_forward_was_replaced_is_noticed(cached_class):
    with pytest.raises(ValueError, match="the forward of 'transformer' was replaced"):
        HeadGuidance(sd3(), "L1H0", **EVERY).attach()


def test_a_class_whose_forward_is_replaced_while_attached_is_noticed(pipe, request):
    with HeadGuidance(pipe, "L1H0"):
        run(pipe)
        request.getfixturevalue("cached_class")
        with pytest.raises(ValueError, match="the forward of 'transformer' was replaced"):
            run(pipe)


def test_a_subclass_with_a_forward_of_its_own_is_guided():
    class Mine(SD3Transformer2DModel):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **kwargs)

    stock = sd3()
    config: Any = stock.config
    mine: Any = Mine(**{k: v for k, v in config.items() if not k.startswith("_")}).double()
    mine.load_state_dict(stock.state_dict())
    for given in (inputs(2), {**inputs(2), "return_dict": False}):
        with torch.no_grad(), HeadGuidance(mine, "L1H0", **EVERY):
            got = mine(given.pop("hidden_states"), **given)[0]
        with torch.no_grad(), HeadGuidance(stock, "L1H0", **EVERY):
            assert torch.equal(stock(**inputs(2)).sample, got)


def test_a_call_without_latents_or_with_too_many_arguments_is_refused():
    with HeadGuidance(sd3(), "L1H0", **EVERY) as guide:
        for args in ((), range(40)):
            with pytest.raises(ValueError, match="expected calls of its transformer with hidden_states"):
                guide.transformer(*args)


# --- calls inside and after others ---


@pytest.mark.parametrize("trunk", ["shared", "two_pass"])
def test_a_call_of_a_bare_transformer_inside_a_call_of_it_is_refused(trunk):
    model = sd3()
    halves: dict[str, Any] = {"conditional": lambda batch: slice(batch // 2, batch)}
    with torch.no_grad(), HeadGuidance(model, "L1H0", trunk=trunk, **halves):
        expected = model(**inputs(4)).sample
        hook = model.transformer_blocks[2].register_forward_pre_hook(lambda *_: model(**inputs(2)) and None)
        with pytest.raises(ValueError, match="inside a call of it"):
            model(**inputs(4))
        hook.remove()
        assert torch.equal(model(**inputs(4)).sample, expected)


def test_a_call_that_raised_and_is_made_again_counts_once(pipe):
    """As by code that frees memory and tries again."""
    failures = []

    def fail_once(*_: Any) -> None:
        failures.append(1)
        if len(failures) == 2:
            raise MemoryError

    pipe.transformer.transformer_blocks[3].register_forward_pre_hook(fail_once)
    own = pipe.transformer

    class Patient(StableDiffusion3Pipeline):
        """Makes every call of the transformer again if it fails."""

        def __getattribute__(self, name: str) -> Any:
            found = super().__getattribute__(name)
            return Retry(found) if name == "transformer" and sheltered else found

    class Retry:
        def __init__(self, model: Any) -> None:
            self.model = model

        def __getattr__(self, name: str) -> Any:
            return getattr(self.model, name)

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            try:
                return self.model(*args, **kwargs)
            except MemoryError:
                return self.model(*args, **kwargs)

    sheltered: list[int] = []
    patient: Any = Patient(**pipe.components)
    patient.set_progress_bar_config(disable=True)
    with HeadGuidance(patient, "L1H0", scale=2.0) as guide:
        callback = functools.partial(_shelter, sheltered)
        got = run(patient, callback_on_step_end=callback)
    assert guide.report.guided == list(range(STEPS)) and len(failures) == STEPS + 1
    sheltered.clear()
    assert patient.transformer is own
    assert_close(got, by_hand(pipe, weights(2, (1, 0, 1.0)), 2.0))


def _shelter(sheltered: list[int], pipe: Any, step: int, time: Any, given: Any) -> Any:
    sheltered.append(1)
    return given


def test_guidance_that_is_detached_in_a_callback_ends_there(pipe):
    def detach(_: Any, step: int, time: Any, given: Any) -> Any:
        if step == 1:
            guide.detach()
        return given

    guide = HeadGuidance(pipe, "L1H0", scale=2.0).attach()
    got = run(pipe, callback_on_step_end=detach)
    assert guide.report.guided == [0, 1] and "step" not in vars(pipe.scheduler)
    with HeadGuidance(pipe, "L1H0", scale=2.0, stop=2 / STEPS):
        assert torch.equal(run(pipe), got)


@pytest.mark.parametrize("trunk", ["shared", "two_pass"])
def test_guidance_cannot_be_detached_inside_a_call(pipe, trunk):
    """The rows of its perturbed branch would be left in the picture."""
    plain = run(pipe)
    guide = HeadGuidance(pipe, "L1H0", trunk=trunk).attach()
    hook = pipe.transformer.transformer_blocks[2].register_forward_hook(lambda *_: guide.detach())
    with pytest.raises(ValueError, match="detach: a call of the transformer is under way"):
        run(pipe)
    hook.remove()
    guide.detach()
    assert torch.equal(run(pipe), plain)


@pytest.mark.parametrize("later", [False, True])
def test_a_shallow_copy_of_the_scheduler_does_not_step_the_run(pipe, later):
    copies = []

    def look_ahead(pipe: Any, step: int, time: Any, given: Any) -> Any:
        copies.append(copy.copy(pipe.scheduler))
        if not later:
            copies[-1].step(given["latents"], time, given["latents"])
        return given

    message = "step was called by something other than the loop"
    with HeadGuidance(pipe, "L1H0") as guide:
        if not later:
            with pytest.raises(ValueError, match=message):
                run(pipe, callback_on_step_end=look_ahead)
            return
        run(pipe, callback_on_step_end=look_ahead)
        report = guide.report
    with pytest.raises(ValueError, match=message):
        copies[0].step(torch.zeros(1), 0.0, torch.zeros(1))
    assert guide.report == report


# --- what stays ---


def test_nothing_of_a_call_is_kept_after_a_run(pipe):
    kept = []

    def remember(_: Any, __: Any, given: dict[str, Any]) -> None:
        kept.append(weakref.ref(given["encoder_hidden_states"]))

    pipe.transformer.register_forward_pre_hook(remember, with_kwargs=True)
    guide = HeadGuidance(pipe, "L1H0").attach()
    run(pipe)
    gc.collect()
    assert kept and all(reference() is None for reference in kept)
    guide.detach()


# --- the guider of modular pipelines ---


def test_a_guider_that_overrides_how_models_are_prepared_still_perturbs():
    class Mine(HeadPerturbationGuidance):
        def prepare_models(self, denoiser: Any) -> None:
            super().prepare_models(denoiser)

    kinds = (HeadPerturbationGuidance, Mine)
    plain, mine = (guided(kind(heads="L1H0", guidance_scale=1.0), sd3()) for kind in kinds)
    assert torch.equal(plain, mine)


def test_a_guider_whose_preparation_is_hidden_is_an_error_and_no_unguided_picture():
    guider = HeadPerturbationGuidance(heads="L1H0", guidance_scale=1.0)
    prepare = guider.prepare_models
    guider.prepare_models = lambda denoiser: prepare(denoiser)
    with pytest.raises(ValueError, match="its heads were not perturbed"):
        guided(guider, sd3())
