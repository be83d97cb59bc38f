"""InstructPipeline against loops written out in float64, and against diffusers' own pipelines."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from dit_heads import HeadGuidance
from dit_heads.families.latents import encoded
from dit_heads.families.velocity import velocity_of
from dit_heads.guidance.perturb import Perturbation
from dit_heads.pipelines.instruct import InstructPipeline
from tests.pipelines.edits import (
    IMAGE_SCALE,
    KINDS,
    SIDE,
    STEPS,
    TEXT_SCALE,
    call,
    counted,
    noise,
    pack,
    pipeline,
    prompts,
    scales,
    sources,
    unpack,
)
from tests.tiny import MapProcessor, weights


@torch.no_grad()
def written_out(
    pipe: Any,
    family: str,
    way: str,
    *,
    text: float = TEXT_SCALE,
    image: float = IMAGE_SCALE,
    heads: Any = None,
) -> Tensor:
    """Euler steps of e00 + s_I (e0I - e00) + s_T (eTI - e0I), with head guidance on the conditional one."""
    given, x = prompts(), noise(family)
    source = encoded(pipe.vae, 2 * torch.stack(sources()).double() - 1)
    x = unpack(x) if family == "flux" else x
    own = given["prompt_embeds"], given["pooled_prompt_embeds"]
    null = given["negative_prompt_embeds"], given["negative_pooled_prompt_embeds"]
    seen = {"channels": "source", "tokens": "reference"}[way]

    def predicted(words: Any, latents: Tensor, sigma: Tensor) -> Tensor:
        shown: Any = {seen: latents}
        return velocity_of(pipe.transformer, *words, **shown, guidance=2.5)(x, sigma)

    for now, then in zip(pipe.scheduler.sigmas[:-1], pipe.scheduler.sigmas[1:], strict=True):
        sigma = now.double().expand(len(x))
        e_ti, e_0i = predicted(own, source, sigma), predicted(null, source, sigma)
        e_00 = predicted(null, torch.zeros_like(source), sigma)
        e = e_00 + image * (e_0i - e_00) + text * (e_ti - e_0i)
        if heads is not None:
            with heads():
                e = e + 2.0 * (e_ti - predicted(own, source, sigma))
        x = x + (then - now).double() * e
    return pack(x) if family == "flux" else x


@pytest.mark.parametrize(("family", "way"), KINDS)
def test_three_predictions_are_mixed_as_the_paper_writes_it(family: str, way: str):
    pipe = pipeline(family, way)
    drawn = call(InstructPipeline(pipe, way), family)
    assert_close(drawn, written_out(pipe, family, way), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("family", "way"), KINDS)
@pytest.mark.parametrize(("image", "text"), [(1.0, 1.0), (1.0, 3.0), (2.0, 1.0), (0.0, 3.0)])
def test_any_scales_mix_so(family: str, way: str, image: float, text: float):
    pipe = pipeline(family, way)
    drawn = call(InstructPipeline(pipe, way), family, image_guidance_scale=image, **scales(family, text))
    assert_close(drawn, written_out(pipe, family, way, text=text, image=image), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "image", "text", "passes"),
    [
        ("sd3", 1.0, 1.0, {2: 1}),
        ("sd3", 1.0, 3.0, {4: 1}),
        ("sd3", 2.0, 3.0, {4: 1, 2: 1}),
        ("sd3", 2.0, 1.0, {2: 3}),
        ("flux", 1.0, 1.0, {2: 1}),
        ("flux", 1.0, 3.0, {2: 2}),
        ("flux", 2.0, 3.0, {2: 3}),
        ("flux", 2.0, 1.0, {2: 3}),
    ],
)
def test_no_pass_is_made_that_cancels(family: str, image: float, text: float, passes: dict[int, int]):
    """Rows of a pass -> passes a step, for two pictures."""
    pipe = pipeline(family, "channels")
    with counted(pipe.transformer) as found:
        call(InstructPipeline(pipe), family, image_guidance_scale=image, **scales(family, text))
    assert found == {rows: STEPS * count for rows, count in passes.items()}


@pytest.mark.parametrize(("family", "way"), KINDS)
@pytest.mark.parametrize("trunk", ["shared", "two_pass"])
def test_head_guidance_adds_to_it(family: str, way: str, trunk: str):
    pipe = pipeline(family, way)
    edit = InstructPipeline(pipe, way)
    with HeadGuidance(edit.pipe, "L1H0, L3H2", scale=2.0, softness=0.7, trunk=trunk) as guidance:
        drawn = call(edit, family)
    assert guidance.report.guided == list(range(STEPS))

    @contextmanager
    def heads() -> Iterator[None]:
        """Attention of the two heads written out."""
        model, chosen = pipe.transformer, weights(2, (1, 0, 0.7), (3, 2, 0.7))
        stock = model.attn_processors
        for b, attn in enumerate(attentions(model)):
            attn.processor = MapProcessor(family == "flux", chosen.get((b, "attn")), Perturbation())
        try:
            yield
        finally:
            model.set_attn_processor(stock)

    assert_close(drawn, written_out(pipe, family, way, heads=heads), rtol=1e-4, atol=1e-4)


def attentions(model: Any) -> list[Any]:
    return [b.attn for b in [*model.transformer_blocks, *getattr(model, "single_transformer_blocks", [])]]


# --- against diffusers' own pipelines ---


def stock(kind: Any, pipe: Any) -> Any:
    """The parts of a FLUX pipeline in another class of diffusers."""
    names = inspect.signature(kind.__init__).parameters
    other = kind(**{name: part for name, part in pipe.components.items() if name in names})
    other.set_progress_bar_config(disable=True)
    return other


def shared_arguments() -> dict[str, Any]:
    given = {name: t for name, t in prompts().items() if not name.startswith("negative")}
    return given | {"num_inference_steps": STEPS, "guidance_scale": 2.5, "output_type": "pt"}


def test_a_control_checkpoint_draws_what_diffusers_draws():
    pipe = pipeline("flux", "channels")
    assert pipe.transformer.config.in_channels == 2 * pipe.transformer.out_channels
    source = pack(encoded(pipe.vae, 2 * torch.stack(sources()).double() - 1))
    control = stock(diffusers.FluxControlPipeline, pipe)  # it would draw from the posterior of pixels
    given = {"latents": noise("flux"), "height": SIDE, "width": SIDE}
    theirs = control(control_image=source, **given, **shared_arguments()).images
    ours = InstructPipeline(pipe)(sources(), latents=noise("flux"), **shared_arguments()).images
    assert_close(ours, theirs)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_a_kontext_checkpoint_draws_what_diffusers_draws(scale: float):
    pipe = pipeline("flux", "tokens")
    kontext = stock(diffusers.FluxKontextPipeline, pipe)
    given = {**prompts(), **shared_arguments(), "latents": noise("flux"), "true_cfg_scale": scale}
    size = {"height": SIDE, "width": SIDE, "max_area": SIDE * SIDE}
    image = 2 * torch.stack(sources()).double() - 1
    theirs = kontext(image=encoded(pipe.vae, image), **size, **given).images
    ours = InstructPipeline(pipe, "tokens")(sources(), **given).images
    assert_close(ours, theirs)
