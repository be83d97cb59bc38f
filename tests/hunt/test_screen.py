"""The gradient screen against finite differences of guidance written out."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dit_heads import HeadId
from dit_heads.guidance.perturb import Perturbation
from dit_heads.hunt.screen import Recorder, estimated_pictures, screened, slopes
from tests import tiny
from tests.saved import red as saved_red
from tests.saved import tiny_flux_pipeline, tiny_pipeline
from tests.tiny import explicit

SCALE, SIGMA, STEP = 2.0, 0.5, 1e-4


def red(images: torch.Tensor, prompts: Any) -> torch.Tensor:
    return images[:, 0].pow(2).mean(tuple(range(1, images.ndim - 1)))


def clean(latents: torch.Tensor, velocity: torch.Tensor) -> torch.Tensor:
    return (latents - SIGMA * velocity).tanh()


@torch.no_grad()
def score(model: Any, call: dict[str, Any], u: dict[HeadId, float], kind: Perturbation) -> float:
    weights: dict[tuple[int, str], torch.Tensor] = {}
    for head, value in u.items():
        place = (head.block, "attn2" if head.image_only else "attn")
        of_attention = weights.setdefault(place, torch.zeros(2, tiny.HEADS, dtype=torch.float64))
        of_attention[:, head.head] = value
    plain = explicit(model, {}, **call)
    perturbed = explicit(model, weights, kind, **call)
    return red(clean(call["hidden_states"], plain + SCALE * (plain - perturbed)), None).mean().item()


@pytest.mark.parametrize("kind", [Perturbation(), Perturbation("uniform", "image")], ids=str)
@pytest.mark.parametrize("model", tiny.MODELS)
@pytest.mark.parametrize("chosen", [{}, {HeadId(1, 2): 0.7}], ids=["none chosen", "one chosen"])
def test_slopes_are_those_of_finite_differences(model, chosen, kind):
    transformer, call = tiny.transformer(model), tiny.inputs(2, model)
    found = slopes(
        SimpleNamespace(transformer=transformer), red, ["a", "b"], call, clean,
        scale=SCALE, chosen=chosen, perturbation=kind,
    )  # fmt: skip
    heads = [HeadId(b, h) for b in range(tiny.BLOCKS) for h in range(tiny.HEADS)]
    assert {head for head in found if not head.image_only} == set(heads)
    dual = [HeadId(1, 3, True)] if "medium" in model else []
    for head in [HeadId(0, 1), HeadId(1, 2), HeadId(3, 0), *dual]:
        at = chosen.get(head, 0.0)
        low, high = (score(transformer, call, chosen | {head: at + d}, kind) for d in (-STEP, STEP))
        # qk-norm rounds to fp32, which a difference of two scores shows
        assert found[head] == pytest.approx((high - low) / (2 * STEP), rel=3e-3, abs=3e-6)


def test_the_model_is_put_back():
    transformer, call = tiny.transformer("sd3"), tiny.inputs(2)
    before = {name: id(p) for name, p in transformer.attn_processors.items()}
    slopes(
        SimpleNamespace(transformer=transformer), red, ["a", "b"], call, clean,
        scale=1.0, chosen={}, perturbation=Perturbation(),
    )  # fmt: skip
    assert {name: id(p) for name, p in transformer.attn_processors.items()} == before
    assert all(p.grad is None for p in transformer.parameters())


def test_a_recorder_keeps_the_calls_of_the_nearest_noise_levels():
    pipe: Any = tiny_pipeline()
    pipe.set_progress_bar_config(disable=True)
    with Recorder(pipe, [0.9, 0.1]) as recorder:
        pipe("a cat", num_inference_steps=4, guidance_scale=1.0, output_type="latent")
    times = pipe.scheduler.timesteps  # 1000, 858, 601, 9
    assert [call["timestep"].tolist() for call in recorder.calls] == [[times[1]], [times[3]]]
    assert not pipe.transformer._forward_pre_hooks


@torch.no_grad()
def test_the_last_step_estimates_the_very_picture():
    """Its noise level goes to 0, so that x - s v is what the pipeline decodes."""
    pipe: Any = tiny_pipeline()
    pipe.set_progress_bar_config(disable=True)
    with Recorder(pipe, [0.0]) as recorder:
        images = pipe("a cat", num_inference_steps=4, guidance_scale=1.0, output_type="pt").images
    (call,) = recorder.calls
    velocity = pipe.transformer(**call)[0]
    found = estimated_pictures(pipe, call, call["hidden_states"], velocity)
    torch.testing.assert_close(found.clamp(0, 1), images)


def test_a_screen_is_the_mean_of_slopes_over_calls_and_pictures():
    pipe: Any = tiny_pipeline()
    pipe.set_progress_bar_config(disable=True)
    options: Any = {"scale": 2.0, "chosen": {}, "perturbation": Perturbation()}
    runs = []
    for prompts in (["a cat", "two dogs"], ["a"]):
        with Recorder(pipe, [0.6, 0.0]) as recorder:
            pipe(prompts, num_inference_steps=4, guidance_scale=3.0, output_type="latent")
        assert [len(call["hidden_states"]) for call in recorder.calls] == [2 * len(prompts)] * 2
        runs.append((prompts, recorder.calls))
    found = screened(pipe, saved_red, runs, **options)
    expected = torch.zeros(12)
    for prompts, calls in runs:
        for call in calls:
            half = {k: v[len(prompts) :] if isinstance(v, torch.Tensor) else v for k, v in call.items()}
            for row, prompt in enumerate(prompts):
                one = {k: v[row : row + 1] if isinstance(v, torch.Tensor) else v for k, v in half.items()}

                def clean(x: torch.Tensor, v: torch.Tensor, one: Any = one) -> torch.Tensor:
                    return estimated_pictures(pipe, one, x, v)

                of_row = slopes(pipe, saved_red, [prompt], one, clean, **options)
                expected += torch.tensor([of_row[head] for head in sorted(of_row)]) / 6
    torch.testing.assert_close(torch.tensor([found[head] for head in sorted(found)]), expected)


def test_an_objective_without_a_gradient_is_refused():
    pipe: Any = tiny_pipeline()
    pipe.set_progress_bar_config(disable=True)
    with Recorder(pipe) as recorder:
        pipe("a cat", num_inference_steps=2, guidance_scale=1.0, output_type="latent")
    with pytest.raises(
        ValueError, match=r"gradient, which .*:flat does not give; search with method exhaustive"
    ):
        screened(pipe, flat, [(["a cat"], recorder.calls)], scale=1.0, chosen={}, perturbation=Perturbation())


def flat(images: torch.Tensor, prompts: Any) -> torch.Tensor:
    return saved_red(images.detach(), prompts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("steps", [4, 10, 28])
def test_steps_are_told_by_index_in_every_precision(steps, dtype):
    pipe: Any = tiny_flux_pipeline()
    pipe.set_progress_bar_config(disable=True)
    pipe.transformer.to(dtype)
    pipe.text_encoder.to(dtype)
    pipe.text_encoder_2.to(dtype)
    with Recorder(pipe, [0.5, 0.3, 0.15]) as recorder:
        pipe("a cat", num_inference_steps=steps, output_type="latent")
    noise = (pipe.scheduler.timesteps / 1000).tolist()
    nearest = sorted({min(noise, key=lambda s, level=level: abs(s - level)) for level in (0.5, 0.3, 0.15)})
    found = sorted(call["timestep"].item() for call in recorder.calls)
    assert found == pytest.approx(nearest, rel=2**-7)  # rounded twice


def test_a_run_that_does_not_come_to_a_level_is_refused():
    pipe: Any = tiny_pipeline()
    pipe.set_progress_bar_config(disable=True)

    def interrupt(pipe: Any, step: int, *_: Any) -> dict[str, Any]:
        pipe._interrupt = step == 1
        return {}

    refused = pytest.raises(ValueError, match=r"noise levels 0\.9, 0\.1; it ended after")
    with refused, Recorder(pipe, [0.9, 0.1]):
        pipe("a cat", num_inference_steps=4, output_type="latent", callback_on_step_end=interrupt)
    assert not pipe.transformer._forward_pre_hooks and "step" not in vars(pipe.scheduler)


@pytest.mark.parametrize("make", [tiny_pipeline, tiny_flux_pipeline])
@pytest.mark.parametrize("chosen", [pytest.param({}, marks=pytest.mark.slow), {HeadId(1, 2): 0.7}])
def test_micro_batches_give_the_slopes_of_the_whole_batch(make, chosen):
    pipe: Any = make()
    pipe.set_progress_bar_config(disable=True)
    prompts = ["a cat", "two dogs", "a"]
    with Recorder(pipe, [0.6, 0.0]) as recorder:
        pipe(prompts, num_inference_steps=4, output_type="latent")
    options: Any = {"scale": 2.0, "chosen": chosen, "perturbation": Perturbation()}
    found = [
        screened(pipe, saved_red, [(prompts, recorder.calls)], micro_batch=size, **options)
        for size in (None, 1, 2)
    ]
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-4, abs=1e-7)


def test_checkpointing_changes_no_slope_and_is_put_back():
    pipe: Any = tiny_pipeline()
    pipe.set_progress_bar_config(disable=True)
    with Recorder(pipe, [0.3]) as recorder:
        pipe("a cat", num_inference_steps=4, guidance_scale=1.0, output_type="latent")
    (call,) = recorder.calls
    before = [dict(vars(part)) for model in (pipe.transformer, pipe.vae) for part in model.modules()]

    def clean(x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return estimated_pictures(pipe, call, x, v)

    options: Any = {"scale": 2.0, "chosen": {}, "perturbation": Perturbation()}
    plain = slopes(pipe, saved_red, ["a cat"], call, clean, **options)
    assert screened(pipe, saved_red, [(["a cat"], [call])], **options) == pytest.approx(plain, rel=1e-5)
    after = [dict(vars(part)) for model in (pipe.transformer, pipe.vae) for part in model.modules()]
    assert all(a.keys() == b.keys() for a, b in zip(before, after, strict=True))
    assert not any(part.get("gradient_checkpointing") for part in after)
    assert all(p.requires_grad for p in pipe.vae.parameters())


def test_slopes_that_are_not_finite_are_refused():
    pipe: Any = tiny_pipeline()
    pipe.set_progress_bar_config(disable=True)
    with Recorder(pipe, [0.3]) as recorder:
        pipe("a cat", num_inference_steps=2, guidance_scale=1.0, output_type="latent")
    runs = [(["a cat"], recorder.calls)]
    with pytest.raises(ValueError, match="objective: its slopes are not finite for L0H0, L0H1"):
        screened(pipe, steep, runs, scale=1.0, chosen={}, perturbation=Perturbation())


def steep(images: torch.Tensor, prompts: Any) -> torch.Tensor:
    return saved_red(images, prompts) * torch.inf
