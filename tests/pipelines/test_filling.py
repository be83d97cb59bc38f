"""Missing panels, filled in: against explicit loops and the inpainting pipelines of diffusers."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from dit_heads import HeadGuidance
from dit_heads.loras.sets.grid import Grid
from dit_heads.loras.sets.panels import fit_panel
from dit_heads.pipelines.in_context import InContextPipeline
from tests import tiny
from tests.pipelines.made import (
    BASES,
    CAPTION,
    GRID,
    OTHER,
    PAIR,
    STEPS,
    TRIO,
    as_tensor,
    flux_fill,
    given_first,
    latents_of,
    photo,
    pixels,
    sd3,
    seeded,
)
from tests.pipelines.test_pipelines import flux as flux_without_text
from tests.pipelines.test_pipelines import sd3 as sd3_without_text


@torch.no_grad()
def filled_by_hand(
    pipe: Any,
    prompts: list[str],
    known: Tensor,
    mask: Tensor,
    noise: Tensor,
    steps: int,
    cfg: float = 7.0,
    heads: Any = None,
    head_scale: float = 0.0,
) -> Tensor:
    """SD3's latents by Euler's method, CFG and guidance by heads, all written out."""
    text = pipe.encode_prompt(prompts, None, None, negative_prompt="a bird")
    embeds, pooled = torch.cat([text[1], text[0]]), torch.cat([text[3], text[2]])
    pipe.scheduler.set_timesteps(steps)
    times, sigmas = pipe.scheduler.timesteps, pipe.scheduler.sigmas.to(noise.dtype)
    latents, rows = noise, len(noise)
    for time, sigma, following in zip(times, sigmas[:-1], sigmas[1:], strict=True):
        inputs = {
            "hidden_states": torch.cat([latents, latents]),
            "timestep": time.expand(2 * rows),
            "encoder_hidden_states": embeds,
            "pooled_projections": pooled,
        }
        unconditional, conditional = tiny.explicit(pipe.transformer, {}, **inputs).chunk(2)
        velocity = unconditional + cfg * (conditional - unconditional)
        if heads:
            perturbed = tiny.explicit(pipe.transformer, tiny.weights(2 * rows, *heads), **inputs)[rows:]
            velocity = velocity + head_scale * (conditional - perturbed)
        latents = latents + (following - sigma) * velocity
        latents = torch.where(mask, (1 - following) * known + following * noise, latents)
    return latents


def test_filling_equals_a_loop_written_out():
    """Two prompts, each with a panel of its own, two pictures of each, a generator for every picture."""
    pipe = sd3().to(torch.float64)
    photos = [photo(0), photo(1)]
    got = InContextPipeline(pipe)(
        [CAPTION, OTHER],
        grid=TRIO,
        given=[{0: photos[0]}, [photos[1], None, None]],
        negative_prompt=["a bird", "a bird"],
        num_images_per_prompt=2,
        generator=[seeded(k) for k in range(4)],
        guidance_scale=5.0,
        output_type="latent",
        num_inference_steps=4,
    )
    noise = torch.cat([torch.randn(1, 4, 8, 24, generator=seeded(k), dtype=torch.float64) for k in range(4)])
    known, mask = given_first(pipe, photos[0], photos[0], photos[1], photos[1])
    expected = filled_by_hand(pipe, [CAPTION, CAPTION, OTHER, OTHER], known, mask, noise, 4, cfg=5.0)
    assert_close(got.images, expected, atol=1e-6, rtol=1e-6)
    assert_close(torch.stack([panels[0] for panels in got.panels]), known[..., :8])


@pytest.mark.parametrize("trunk", ["shared", "two_pass"])
def test_filling_under_head_guidance_equals_a_loop_written_out(trunk):
    pipe = sd3().to(torch.float64)
    call = STEPS | {"grid": TRIO, "given": {0: photo(0)}, "output_type": "latent"}
    call |= {"negative_prompt": "a bird"}
    sets = InContextPipeline(pipe)
    with HeadGuidance(sets.pipe, "L0H1, L2H3", scale=2.0, softness=0.7, trunk=trunk) as guidance:
        got = sets(CAPTION, generator=seeded(), **call).images
    noise = torch.randn(1, 4, 8, 24, generator=seeded(), dtype=torch.float64)
    known, mask = given_first(pipe, photo(0))
    heads = ((0, 1, 0.7), (2, 3, 0.7))
    expected = filled_by_hand(pipe, [CAPTION], known, mask, noise, 3, heads=heads, head_scale=2.0)
    assert_close(got, expected, atol=1e-6, rtol=1e-6)
    assert guidance.report.guided == [0, 1, 2]
    assert not torch.allclose(got, sets(CAPTION, generator=seeded(), **call).images, atol=1e-3)


@pytest.mark.parametrize("base", ["sd3", "flux"])
def test_filling_equals_the_inpainting_pipeline_of_diffusers(base):
    """At full strength, from the same noise, with the same known latents (which it takes as they are)."""
    if base == "sd3":
        pipe: Any = sd3_without_text("StableDiffusion3Pipeline")
        inpaint: Any = diffusers.StableDiffusion3InpaintPipeline(**pipe.components)
        channels, own = 16, {"guidance_scale": 3.5}
    else:
        pipe = flux_without_text("FluxPipeline")
        inpaint = diffusers.FluxInpaintPipeline(**pipe.components)
        channels, own = 4, {"true_cfg_scale": 3.5, "guidance_scale": 2.0}
    inpaint.set_progress_bar_config(disable=True)
    text = {name: part for name, part in tiny.prompts(2).items() if name != "latents"}
    noise = torch.randn(2, channels, 8, 16, generator=seeded(), dtype=torch.float64)
    start = noise if base == "sd3" else pipe._pack_latents(noise, 2, channels, 8, 16)
    call = text | own | {"num_inference_steps": 4, "output_type": "latent"}
    sets: Any = InContextPipeline(pipe)
    got = sets(grid=PAIR, given=[None, photo(0)], latents=start, **call).images

    with torch.no_grad():
        known = torch.zeros(2, channels, 8, 16, dtype=torch.float64)
        known[..., 8:] = latents_of(pipe, photo(0))
    mask = torch.ones(1, 1, 16, 32)
    mask[..., 16:] = 0
    expected = inpaint(
        image=known,
        mask_image=mask,
        masked_image_latents=torch.zeros(2, 3, 16, 32),
        strength=1.0,
        latents=noise,
        height=16,
        width=32,
        **call,
    ).images
    close = 1e-6 if base == "sd3" else 1e-4  # FLUX turns by its rotary positions in fp32
    assert_close(got, expected, atol=close, rtol=close)


def test_flux_fill_is_given_its_own_image_and_mask():
    pipe = flux_fill()
    got = InContextPipeline(pipe)(
        [CAPTION, OTHER],
        grid=TRIO,
        given=[{1: photo(0)}, {0: photo(1), 2: photo(2)}],
        num_images_per_prompt=2,
        generator=seeded(),
        output_type="pt",
        **STEPS,
    )
    image, mask = torch.zeros(2, 3, 16, 48), torch.ones(2, 1, 16, 48)
    for row, column, seed in ((0, 1, 0), (1, 0, 1), (1, 2, 2)):
        place = slice(16 * column, 16 * column + 16)
        image[row, :, :, place], mask[row, :, :, place] = as_tensor(photo(seed)), 0
    image, mask = (part[[0, 0, 1, 1]] for part in (image, mask))
    expected = pipe(
        [CAPTION, OTHER],
        image=image,
        mask_image=mask,
        height=16,
        width=48,
        num_images_per_prompt=2,
        generator=seeded(),
        output_type="pt",
        **STEPS,
    ).images
    assert torch.equal(got.images, torch.where(mask == 1, expected, image))


@pytest.mark.parametrize("base", ["sd3", "flux", "flux_fill"])
def test_given_pixels_are_restored_exactly(base, tmp_path):
    """Whatever form they come in, go out in, or the model computes in."""
    pipe = (BASES | {"flux_fill": flux_fill})[base]().to(torch.bfloat16)
    photo(0).save(tmp_path / "first.png")
    given = {0: tmp_path / "first.png", 1: as_tensor(photo(1)), 3: photo(3)}
    square, caption = Grid.equal(2, 2, height=16, width=16), "[IMAGE1] a [IMAGE2] b [IMAGE3] c [IMAGE4] d"
    for output_type in ("pil", "np", "pt"):
        got = InContextPipeline(pipe)(caption, grid=square, given=given, output_type=output_type, **STEPS)
        for number in given:
            panel, expected = got.panels[0][number], pixels(photo(number))
            if output_type == "pil":
                assert np.array_equal(pixels(panel), expected)
            elif output_type == "np":
                assert np.array_equal(panel, expected.astype(np.float32) / 255)
            else:
                assert torch.equal(panel, as_tensor(photo(number)))


@pytest.mark.filterwarnings("ignore:given:UserWarning")  # they lose half of themselves
@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_given_panels_of_other_sizes_are_cropped_or_padded_to_their_cells(fit):
    """A grid of unequal cells, the two on its diagonal given."""
    sets, images = InContextPipeline(sd3()), {0: photo(0, 60, 40), 3: photo(3, 20, 50)}
    caption = "[TOP-LEFT] a [TOP-RIGHT] b [BOTTOM-LEFT] c [BOTTOM-RIGHT] d"
    got = sets(caption, grid=GRID, given=images, fit=fit, **STEPS)
    assert [panel.size for panel in got.panels[0]] == [(32, 16), (16, 16), (32, 32), (16, 32)]
    assert got.panels[0][0] == fit_panel(images[0], 16, 32, fit)
    assert got.panels[0][3] == fit_panel(images[3], 32, 16, fit)


@pytest.mark.parametrize("base", ["sd3", "flux", "flux_fill"])
def test_generated_panels_depend_on_the_given_ones(base):
    sets = InContextPipeline((BASES | {"flux_fill": flux_fill})[base]())

    def third(seed: int) -> np.ndarray:
        call = STEPS | {"given": {0: photo(seed)}, "generator": seeded(), "output_type": "np"}
        return sets(CAPTION, grid=TRIO, **call).panels[0][2]

    assert np.array_equal(third(0), third(0))
    assert np.abs(third(0) - third(1)).max() > 1e-4


def test_a_batch_of_sets_is_what_each_set_gives_alone():
    sets, call = InContextPipeline(sd3()), {"grid": TRIO, "output_type": "pt"} | STEPS
    prompts, given = [CAPTION, OTHER], [{0: photo(0)}, {1: photo(1), 2: photo(2)}]
    together = sets(prompts, given=given, generator=[seeded(0), seeded(1)], **call).images
    for k in range(2):
        alone = sets(prompts[k], given=given[k], generator=seeded(k), **call).images[0]
        assert_close(together[k], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # by diffusers' own DPM
@pytest.mark.parametrize("scheduler", ["FlowMatchHeunDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_other_flow_matching_schedulers_end_on_the_known_latents(scheduler):
    pipe = sd3()
    flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"} if "DPM" in scheduler else {}
    pipe.scheduler = getattr(diffusers, scheduler)(**flow)
    levels = []

    def watch(pipe: Any, step: int, time: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        levels.append(((tensors["latents"] - known)[mask] / (noise - known)[mask]).median().item())
        return tensors

    known, mask = given_first(pipe, photo(0))
    noise = torch.randn(1, 4, 8, 24, generator=seeded())
    call = {"grid": TRIO, "given": {0: photo(0)}, "latents": noise, "output_type": "latent"} | STEPS
    got = InContextPipeline(pipe)(CAPTION, callback_on_step_end=watch, **call)
    assert_close(got.panels[0][0], known[0, :, :, :8])
    assert levels[-1] == 0 and levels == sorted(levels, reverse=True) and levels[0] > 0.4
