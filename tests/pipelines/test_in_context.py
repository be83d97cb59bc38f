"""Sets of panels, generated and filled, against the wrapped pipelines called by hand and explicit loops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import FluxFillPipeline, FluxPipeline, StableDiffusion3Pipeline
from diffusers.callbacks import PipelineCallback
from peft import LoraConfig
from PIL import Image
from torch import Tensor
from torch.testing import assert_close
from transformers import CLIPTextModel

from dit_heads import HeadGuidance, load_embedded
from dit_heads.loras.sets.captions import JointCaption
from dit_heads.loras.sets.grid import Grid
from dit_heads.loras.sets.panels import fit_panel
from dit_heads.pipelines.in_context import InContextPipeline
from dit_heads.tasks.markers import markers
from tests import tiny
from tests.pipelines.test_pipelines import flux as flux_without_text
from tests.pipelines.test_pipelines import sd3 as sd3_without_text
from tests.saved import tiny_pipeline

PAIR = Grid.row(2, height=16, width=16)
TRIO = Grid.row(3, height=16, width=16)
GRID = Grid((16, 32), (32, 16))
CAPTION = "a cat [LEFT] by day [MIDDLE] by dusk [RIGHT] by night"
OTHER = "a dog [LEFT] on sand [MIDDLE] on snow [RIGHT] on grass"
STEPS: dict[str, Any] = {"num_inference_steps": 3}


def sd3() -> StableDiffusion3Pipeline:
    """Composites of up to 64 x 64; pixels are twice the latents."""
    pipe = tiny_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def flux(kind: Any = FluxPipeline, channels: int = 16) -> Any:
    parts = tiny_pipeline().components
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=channels,
        out_channels=16,
        num_layers=1,
        num_single_layers=1,
        num_attention_heads=2,
        attention_head_dim=8,
        joint_attention_dim=32,
        pooled_projection_dim=16,
        guidance_embeds=True,
        axes_dims_rope=(2, 2, 4),
    )
    pipe = kind(
        transformer=transformer.eval(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=parts["vae"],
        text_encoder=CLIPTextModel(parts["text_encoder"].config).eval(),
        tokenizer=parts["tokenizer"],
        text_encoder_2=parts["text_encoder_3"],
        tokenizer_2=parts["tokenizer_3"],
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def flux_fill() -> Any:
    """Its transformer reads noisy latents, the kept picture's and the mask: 3 x 16 channels."""
    return flux(FluxFillPipeline, 48)


BASES: Any = {"sd3": sd3, "flux": flux}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def photo(seed: int, height: int = 16, width: int = 16) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def as_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image)


# --- generation ---


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("output_type", ["pil", "np", "pt", "latent"])
def test_generating_is_the_wrapped_pipeline_at_the_composites_size(base, output_type):
    pipe = BASES[base]()
    call = STEPS | {"output_type": output_type, "num_images_per_prompt": 2, "negative_prompt": "a bird"}
    prompts = [CAPTION, OTHER]
    got = InContextPipeline(pipe)(prompts, grid=TRIO, generator=seeded(), **call)
    expected = pipe(prompts, height=16, width=48, generator=seeded(), **call).images
    if output_type == "pil":
        assert got.images == expected
        assert got.panels[3][1] == expected[3].crop((16, 0, 32, 16))
    elif output_type == "np":
        assert np.array_equal(got.images, expected)
        assert np.array_equal(got.panels[3][1], expected[3, :, 16:32])
    else:
        assert torch.equal(got.images, expected)
        if output_type == "pt":
            assert torch.equal(got.panels[3][1], expected[3, :, :, 16:32])
    assert [len(panels) for panels in got.panels] == [3] * 4


@pytest.mark.parametrize("base", BASES)
def test_panels_as_latents_are_those_that_pictures_are_decoded_from(base):
    """Unpacked where the model packs them; one latent covers two pixels here."""
    pipe = BASES[base]()
    got = InContextPipeline(pipe)(CAPTION, grid=TRIO, output_type="latent", **STEPS)
    latents = got.images if base == "sd3" else pipe._unpack_latents(got.images, 16, 48, 2)
    assert torch.equal(torch.cat(got.panels[0], dim=-1), latents[0])
    assert [panel.shape for panel in got.panels[0]] == [(4, 8, 8)] * 3


def test_a_summary_and_panel_prompts_are_the_caption_that_they_make():
    sets = InContextPipeline(sd3())
    options = STEPS | {"grid": TRIO, "output_type": "np"}
    parts = ["by day", "by dusk", "by night"]
    images = [
        sets(CAPTION, generator=seeded(), **options).images,
        sets(JointCaption.parse(CAPTION), generator=seeded(), **options).images,
        sets("a cat", panel_prompts=parts, generator=seeded(), **options).images,
        sets(["a cat"], panel_prompts=[tuple(parts)], generator=seeded(), **options).images,
    ]
    assert all(np.array_equal(image, images[0]) for image in images)
    assert not np.array_equal(sets(OTHER, generator=seeded(), **options).images, images[0])


def test_panel_prompts_stand_behind_the_markers_that_were_asked_for():
    sets, said = InContextPipeline(sd3()), ["a", "b", "c", "d", "e", "f"]
    six = Grid.equal(2, 3, height=16, width=16)
    options = STEPS | {"grid": six, "output_type": "np"}
    got = sets("", panel_prompts=said, marker_style="scenes", generator=seeded(), **options)
    caption = str(JointCaption("", tuple(said), markers(2, 3, "scenes")))
    assert np.array_equal(got.images, sets(caption, generator=seeded(), **options).images)


def test_without_return_dict_images_and_panels_are_a_tuple():
    images, panels = InContextPipeline(sd3())(CAPTION, grid=TRIO, return_dict=False, **STEPS)
    assert images[0].size == (48, 16) and [panel.size for panel in panels[0]] == [(16, 16)] * 3


def test_words_that_no_text_encoder_reads_are_warned_of():
    sets = InContextPipeline(sd3())
    with pytest.warns(UserWarning, match="these words are lost: .*night"):
        sets(CAPTION, grid=TRIO, max_sequence_length=32, **STEPS)
    sets(CAPTION, grid=TRIO, max_sequence_length=32, prompt_3="a cat", **STEPS)  # the caller's own choice


# --- filling ---


def latents_of(pipe: Any, image: Image.Image) -> Tensor:
    z = pipe.vae.encode(as_tensor(image)[None].to(pipe.dtype) * 2 - 1).latent_dist.mode()
    return (z - pipe.vae.config.shift_factor) * pipe.vae.config.scaling_factor


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


def given_first(pipe: Any, *images: Image.Image) -> tuple[Tensor, Tensor]:
    """Known latents and mask of composites whose first of three panels is given."""
    known = torch.cat([latents_of(pipe, image) for image in images])
    mask = torch.zeros(len(images), 4, 8, 24, dtype=torch.bool)
    mask[..., :8] = True
    return torch.cat([known, torch.zeros(len(images), 4, 8, 16)], -1).to(known), mask


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


# --- callbacks, offloading, adapters: what users of the wrapped pipeline expect ---


@pytest.mark.parametrize("base", BASES)
def test_the_users_callback_sees_the_restored_latents_and_may_change_them(base):
    pipe, seen = BASES[base](), []

    def zero_at_the_end(pipe: Any, step: int, time: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append((step, sorted(tensors)))
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 2 else tensors

    got = InContextPipeline(pipe)(
        CAPTION,
        grid=TRIO,
        given={0: photo(0)},
        output_type="latent",
        callback_on_step_end=zero_at_the_end,
        callback_on_step_end_tensor_inputs=["prompt_embeds", "latents"],
        **STEPS,
    )
    assert seen == [(step, ["latents", "prompt_embeds"]) for step in range(3)]
    assert not got.images.any()


def test_a_callback_object_of_diffusers_gets_the_tensors_that_it_names():
    class Watch(PipelineCallback):
        tensor_inputs = ["pooled_prompt_embeds"]  # noqa: RUF012  # pyright: ignore
        seen: list[list[str]] = []  # noqa: RUF012

        def callback_fn(self, pipeline: Any, step_index: int, timesteps: Any, callback_kwargs: Any) -> Any:
            self.seen.append(list(callback_kwargs))
            return callback_kwargs

    for given in (None, {0: photo(0)}):
        InContextPipeline(sd3())(CAPTION, grid=TRIO, given=given, callback_on_step_end=Watch(), **STEPS)
    assert Watch.seen == [["pooled_prompt_embeds"]] * 6


def test_filling_twice_under_model_offloading_is_filling_without_it():
    call = {"grid": TRIO, "given": {0: photo(0)}, "output_type": "np"} | STEPS
    expected = InContextPipeline(sd3())(CAPTION, generator=seeded(), **call).images
    pipe = sd3()
    pipe.enable_model_cpu_offload(device="cpu")
    for _ in range(2):
        assert np.array_equal(InContextPipeline(pipe)(CAPTION, generator=seeded(), **call).images, expected)


def test_a_lora_of_the_wrapped_pipeline_acts_and_nothing_of_a_fill_stays_in_it():
    pipe: Any = sd3()
    sets, call = InContextPipeline(pipe), {"grid": TRIO, "output_type": "np"} | STEPS

    def filled() -> np.ndarray:
        return sets(CAPTION, given={0: photo(0)}, generator=seeded(), **call).images

    def generated() -> np.ndarray:
        return pipe(CAPTION, height=16, width=48, generator=seeded(), output_type="np", **STEPS).images

    before, without, attributes = generated(), filled(), set(vars(pipe))
    pipe.transformer.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_v"], init_lora_weights=False))
    assert np.abs(filled() - without).max() > 1e-4
    pipe.transformer.delete_adapters("default")
    assert np.array_equal(filled(), without) and np.array_equal(generated(), before)
    assert set(vars(pipe)) == attributes


# --- what is refused ---

TWO = "a cat [LEFT] by day [RIGHT] by night"
ERRORS: dict[str, tuple[dict[str, Any], str]] = {
    "no prompt": ({"prompt": None}, "prompt: expected a joint caption .* got none"),
    "no prompts": ({"prompt": []}, "prompt: expected a joint caption .* got none"),
    "no text": ({"prompt": 5}, "prompt: expected a joint caption, .* got 5"),
    "no markers": ({"prompt": "a cat"}, "markers: expected each once"),
    "too few panels": ({"prompt": TWO}, r"prompt: expected a caption for each of the 3 panels, .* got 2"),
    "another grid": (
        {"prompt": "[TOP] a [MIDDLE] b [BOTTOM] c"},
        r"behind .*\[LEFT\] \[MIDDLE\] \[RIGHT\]; got 3, behind \[TOP\] \[MIDDLE\] \[BOTTOM\]",
    ),
    "too few panel prompts": ({"panel_prompts": ["a", "b"]}, "panel_prompts: expected 3, one a panel, got 2"),
    "one panel prompt": ({"panel_prompts": "abc"}, "panel_prompts: expected a list of texts"),
    "panel prompts alone": (
        {"prompt": None, "panel_prompts": ["a", "b", "c"]},
        "prompt: expected a summary as text beside panel_prompts, got None",
    ),
    "markers twice": ({"panel_prompts": ["a", "b", "c"]}, r"expected no marker inside a part, got \[LEFT\]"),
    "panel prompts of one summary": (
        {"prompt": ["a", "b"], "panel_prompts": [["a", "b", "c"]]},
        "panel_prompts: expected 2 lists of them, one a prompt, got 1",
    ),
    "no grid": ({"grid": (16, 48)}, "grid: expected one such as Grid.row"),
    "too wide": (
        {"grid": Grid.row(3, height=16, width=32)},
        "grid: expected at most 64 x 64 pixels, .* position table .* got height 16 and width 96",
    ),
    "a size": ({"height": 16}, "height: expected `grid` to say it, got 16"),
    "an image": ({"mask_image": photo(0)}, "mask_image: expected `given` to say it"),
    "a form": ({"output_type": "jpg"}, "output_type: expected pil, np, pt, latent, got 'jpg'"),
    "nothing given": ({"given": [None] * 3}, "given: expected at least one panel, got none"),
    "an empty mapping": ({"given": {}}, "given: expected at least one panel, got none"),
    "all given": (
        {"given": [photo(k) for k in range(3)]},
        "given: expected a panel to be missing, got all 3",
    ),
    "a short list": ({"given": [photo(0), None]}, "given: expected 3 entries, .* got 2"),
    "no such panel": ({"given": {3: photo(0)}}, "given: expected panel numbers from 0 to 2, got 3"),
    "sets without prompts": (
        {"given": [{0: photo(0)}, {1: photo(0)}]},
        "given: expected one set of panels or 1, one a prompt, got 2",
    ),
    "one image": ({"given": photo(0)}, "given: expected a mapping of numbers to images or a list with None"),
    "an array": (
        {"given": {0: pixels(photo(0))}},
        "given: expected PIL images, tensors or paths, got ndarray",
    ),
    "bytes": (
        {"given": {0: torch.zeros(3, 16, 16, dtype=torch.uint8)}},
        "floating tensors .* got torch.uint8",
    ),
    "a batch": (
        {"given": {0: torch.zeros(1, 3, 16, 16)}},
        r"floating tensors \[3, h, w\], got .*\(1, 3, 16, 16\)",
    ),
    "a wide range": ({"given": {0: torch.full((3, 16, 16), -1.0)}}, r"given: expected tensors in \[0, 1\]"),
    "a missing file": ({"given": {0: Path("none.png")}}, "image: there is no file 'none.png'"),
    "a fit": ({"given": {0: photo(0)}, "fit": "stretch"}, "fit: expected crop or pad, got 'stretch'"),
    "noise of another size": (
        {"given": {0: photo(0)}, "latents": torch.zeros(1, 4, 8, 8)},
        r"latents: expected the shape \(1, 4, 8, 24\), got \(1, 4, 8, 8\)",
    ),
}


@pytest.fixture(scope="module")
def base() -> StableDiffusion3Pipeline:
    return sd3()


@pytest.mark.parametrize("case", ERRORS)
def test_what_cannot_be_honoured_is_refused(base, case):
    wrong, message = ERRORS[case]
    with pytest.raises(ValueError, match=message):
        InContextPipeline(base)(**({"prompt": CAPTION, "grid": TRIO} | STEPS | wrong))


def test_a_panels_side_is_a_multiple_of_16():
    with pytest.raises(ValueError, match="widths: expected multiples of 16"):
        Grid.row(3, height=16, width=24)


def test_only_text_to_image_pipelines_and_flux_fill_are_wrapped(base):
    for pipe in (diffusers.StableDiffusion3Img2ImgPipeline(**base.components), base.transformer, None):
        with pytest.raises(ValueError, match=r"pipe: expected one of StableDiffusion3Pipeline, .*, got "):
            InContextPipeline(pipe)


def test_flux_fill_does_not_generate_whole_sets():
    with pytest.raises(ValueError, match="given: FluxFillPipeline only fills"):
        InContextPipeline(flux_fill())(CAPTION, grid=TRIO)


def test_filling_needs_a_flow_matching_scheduler():
    pipe = sd3()
    pipe.scheduler = diffusers.DDIMScheduler()
    with pytest.raises(ValueError, match=r"expected a flow-matching scheduler .* got DDIMScheduler"):
        InContextPipeline(pipe)(CAPTION, grid=TRIO, given={0: photo(0)})


# --- the embedded model ---


@pytest.mark.slow
def test_the_embedded_model_fills_three_panels():
    from dit_heads.embedded.evaluate import unseen_scenes
    from dit_heads.embedded.world.captions import caption
    from dit_heads.embedded.world.render import render

    pipe = load_embedded("sd3")
    pipe.set_progress_bar_config(disable=True)
    scenes = unseen_scenes("test", 3, solids=1)
    got = InContextPipeline(pipe)(
        "three pictures",
        panel_prompts=[caption(scene) for scene in scenes],
        grid=Grid.row(3, height=128, width=128),
        given={0: Image.fromarray(render(scenes[0]).image)},
        generator=seeded(),
        num_inference_steps=28,
        guidance_scale=4.0,
        max_sequence_length=128,
    )
    first, *others = got.panels[0]
    assert got.images[0].size == (384, 128) and len(others) == 2
    assert np.array_equal(pixels(first), render(scenes[0]).image)
    assert all(pixels(panel).std() > 10 for panel in others)
