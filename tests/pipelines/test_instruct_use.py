"""The pipeline under `InstructPipeline` stays the user's own, and what cannot be honoured is refused."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.testing import assert_close

from dit_heads.errors import InputError
from dit_heads.pipelines.instruct import InstructPipeline
from dit_heads.training.widen import widen
from tests import tiny
from tests.pipelines.edits import KINDS, STEPS, call, counted, pipeline, prompts, scales, sources
from tests.saved import tiny_flux_pipeline, tiny_pipeline

# --- the pipeline is the user's own ---


@pytest.mark.parametrize(("family", "way"), KINDS)
def test_afterwards_the_pipeline_is_as_it_was(family: str, way: str):
    pipe = pipeline(family, way)
    config, hooks = dict(pipe.transformer.config), dict(pipe.transformer._forward_hooks)
    edit = InstructPipeline(pipe, way)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    for changed in ({}, {"callback_on_step_end": stop}):
        try:
            call(edit, family, **changed)
        except KeyboardInterrupt:
            assert changed
        assert dict(pipe.transformer.config) == config
        assert pipe.transformer._forward_hooks == hooks and not pipe.transformer._forward_pre_hooks
        assert "step" not in vars(pipe.scheduler)


def test_callbacks_see_and_change_the_latents():
    pipe = pipeline("sd3", "channels")
    seen: list[int] = []

    def callback(_: Any, step: int, __: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append(step)
        return {"latents": torch.zeros_like(tensors["latents"])}

    assert not call(InstructPipeline(pipe), "sd3", callback_on_step_end=callback).any()
    assert seen == list(range(STEPS))


def test_a_pipeline_that_drops_cfg_midway_keeps_its_null_text():
    """As diffusers' SDCFGCutoffCallback does it, which leaves the conditional half alone from a step on."""
    pipe = pipeline("sd3", "channels")

    def callback(pipe: Any, step: int, time: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if step == 1:
            pipe._guidance_scale = 0.0
            return {name: t[len(t) // 2 :] for name, t in tensors.items()}
        return {}

    names = ["prompt_embeds", "pooled_prompt_embeds"]
    with counted(pipe.transformer) as found:
        call(
            InstructPipeline(pipe),
            "sd3",
            callback_on_step_end=callback,
            callback_on_step_end_tensor_inputs=names,
        )
    assert found == {4: 2, 2: 2 + 3}


def test_skipped_layers_are_guided_like_the_rest():
    """SD3.5's skip-layer guidance subtracts a third call of a step, so what is added to all falls out."""
    pipe = pipeline("sd3", "channels")
    edit = InstructPipeline(pipe)
    skip = {"skip_guidance_layers": [1], "skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 0.5}
    with counted(pipe.transformer) as found:
        guided = call(edit, "sd3", num_inference_steps=3, skip_layer_guidance_scale=2.0, **skip)
    assert found == {4: 3, 2: 3 + 1}
    none = call(edit, "sd3", num_inference_steps=3, skip_layer_guidance_scale=0.0, **skip)
    assert_close(none, call(edit, "sd3"), rtol=1e-6, atol=1e-6)
    assert not torch.allclose(none, guided, atol=1e-3)


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_offloading_and_a_generator_a_picture_change_nothing(family: str):
    pipe: Any = tiny_pipeline() if family == "sd3" else tiny_flux_pipeline()
    pipe.set_progress_bar_config(disable=True)
    widen(pipe.transformer, 4)
    edit, given = InstructPipeline(pipe), {"num_inference_steps": 2, "output_type": "np"}
    given |= {"image_guidance_scale": 2.0, **scales(family)}

    def drawn(numbers: list[int]) -> np.ndarray:
        pictures = [sources(3)[n] for n in numbers]
        generators = [torch.Generator().manual_seed(n) for n in numbers]
        return edit(pictures, "go", negative_prompt="no", generator=generators, **given).images

    together = drawn([0, 1, 2])
    for number in range(3):
        assert_close(drawn([number])[0], together[number], rtol=1e-4, atol=1e-4)
    pipe.enable_model_cpu_offload(device="cpu")
    assert_close(drawn([0, 1, 2]), together, rtol=1e-5, atol=1e-5)
    assert_close(drawn([0, 1, 2]), together, rtol=1e-5, atol=1e-5)


def test_one_picture_serves_all_instructions_and_each_gets_as_many_results():
    pipe: Any = tiny_pipeline()
    pipe.set_progress_bar_config(disable=True)
    edit = InstructPipeline(pipe, "tokens")
    given: Any = {"num_inference_steps": 1, "num_images_per_prompt": 2}
    images = edit(Image.new("RGB", (12, 7), "red"), ["a", "b"], **given).images
    assert [image.size for image in images] == [(12, 7)] * 4
    (images,) = edit([Image.new("L", (16, 16))] * 3, "a", return_dict=False, output_type="np", **given)
    assert images.shape == (6, 16, 16, 3)


def test_a_second_call_during_a_call_is_refused():
    pipe = pipeline("sd3", "channels")
    edit = InstructPipeline(pipe)
    with pytest.raises(InputError, match="is answering another call of InstructPipeline"):
        call(edit, "sd3", callback_on_step_end=lambda *_: call(edit, "sd3"))

    def elsewhere(*_: Any) -> None:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(pipe.transformer, **tiny.inputs(2)).result()

    with pytest.raises(InputError, match="called in another thread while InstructPipeline shows it"):
        call(edit, "sd3", callback_on_step_end=elsewhere)
    assert not pipe.transformer._forward_pre_hooks


# --- what cannot be honoured ---


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"image": None}, "image: expected PIL images, arrays, tensors or paths, got None"),
        ({"image": []}, "image: expected a picture or several, got an empty list"),
        ({"image": torch.ones(3, 4, 4, dtype=torch.uint8)}, "image: expected floating tensors"),
        ({"image": 2 * torch.ones(3, 4, 4)}, r"image: expected tensors in \[0, 1\]"),
        ({"image": np.zeros((4, 4, 3), np.uint16)}, "image: expected uint8 or floating"),
        ({"image": Image.new("F", (4, 4))}, "image: is a picture of floating-point numbers"),
        ({"image": [torch.ones(3, 4, 4), torch.ones(3, 4, 5)]}, "pictures of one size, got 4 x 4 and 4 x 5"),
        ({"image": "nowhere.png"}, "image: there is no file 'nowhere.png'"),
        ({"image": torch.ones(3, 66, 8)}, "image: expected at most 64 pixels a side for this model"),
        ({"image": torch.ones(3, 4, 4), "prompt": ["a", 3]}, "prompt: expected an instruction or a list"),
        (
            {"image": [torch.ones(3, 4, 4)] * 2, "prompt": ["a"] * 3},
            "prompt: expected 2, one a picture, got 3",
        ),
        ({"prompt": None}, "prompt: expected an instruction, or prompt_embeds in its place, got neither"),
        ({"height": 16}, "height: expected none, since the picture has the size of the result, got int"),
        ({"promt": "a"}, "promt: InstructPipeline and its .* take no such argument; did you mean prompt"),
        (
            {"image_guidance_scale": -1},
            "image_guidance_scale: expected a finite number of at least 0, got -1",
        ),
        (
            {"image_guidance_scale": True},
            "image_guidance_scale: expected a finite number of at least 0, got True",
        ),
        ({"num_inference_steps": 0}, "num_inference_steps: expected a whole number of at least 1, got 0"),
        ({"output_type": "gif"}, "output_type: expected pil, np, pt, latent, got 'gif'"),
    ],
)
def test_what_cannot_be_honoured_is_named(changed: dict[str, Any], message: str):
    pipe: Any = tiny_pipeline()
    widen(pipe.transformer, 4)
    given = {"image": torch.ones(3, 8, 8), "prompt": "a", **changed}
    with pytest.raises(InputError, match=message):
        InstructPipeline(pipe)(**given)


def test_a_pipeline_that_cannot_see_a_source_so_is_refused():
    pipe: Any = tiny_pipeline()
    with pytest.raises(InputError, match=r"reads 4 channels of a source .* got one that reads 0; load"):
        InstructPipeline(pipe)
    with pytest.raises(InputError, match="conditioning: expected channels or tokens, got 'both'"):
        InstructPipeline(pipe, "both")
    widen(pipe.transformer, 4)
    with pytest.raises(InputError, match=r"reads 0 channels .* reads 4; load one .* or choose 'channels'"):
        InstructPipeline(pipe, "tokens")
    with pytest.raises(InputError, match="pipe: expected one of StableDiffusion3Pipeline, FluxPipeline, got"):
        InstructPipeline(nn.Linear(1, 1))


def test_without_text_encoders_the_null_text_has_to_be_given():
    pipe = pipeline("flux", "channels")
    given: Any = {name: t for name, t in prompts().items() if not name.startswith("negative")}
    with pytest.raises(
        InputError, match="negative_prompt_embeds, negative_pooled_prompt_embeds: expected them"
    ):
        InstructPipeline(pipe)(sources(), image_guidance_scale=2.0, **given)


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_half_precision_draws_about_the_same(family: str):
    """Each part of the guidance is computed in float32 and put into the pipeline's own format."""
    drawn = []
    for dtype in (torch.float32, torch.bfloat16):
        pipe: Any = tiny_pipeline() if family == "sd3" else tiny_flux_pipeline()
        pipe.set_progress_bar_config(disable=True)
        widen(pipe.transformer, 4)
        pipe.to(dtype)
        given: dict[str, Any] = {"num_inference_steps": 2, "image_guidance_scale": 2.0, **scales(family)}
        generator = torch.Generator().manual_seed(0)
        edit = InstructPipeline(pipe)
        images = edit(sources()[0], "a", negative_prompt="b", generator=generator, output_type="np", **given)
        depth = edit.depth(sources()[0], num_inference_steps=1, max_sequence_length=8)
        assert depth.annotations[0].metres.shape == (16, 16)
        drawn.append(images.images.astype(float))
    assert np.abs(drawn[0] - drawn[1]).mean() < 0.1
