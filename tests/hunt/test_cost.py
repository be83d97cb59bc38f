"""What the screen is said to take, against what it takes: counted evaluations and bytes of tensors."""

from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel

from dit_heads.families import layout_of
from dit_heads.guidance.perturb import Perturbation
from dit_heads.hunt.cost import micro_batch_of, screen_cost
from dit_heads.hunt.screen import Recorder, screened
from tests.peak import PeakBytes
from tests.saved import red, tiny_flux_pipeline, tiny_pipeline, tiny_vae

CALL = {"guidance_scale": 1.0, "max_sequence_length": 16}
PROMPTS = ["a cat", "two dogs"]
WIDE = {"sd3": {"attention_head_dim": 64, "caption_projection_dim": 256},
        "flux": {"attention_head_dim": 64, "axes_dims_rope": (16, 24, 24)}}  # fmt: skip


def pipeline(kind: str, dtype: torch.dtype, *, wide: bool = False) -> Any:
    """A tiny pipeline whose decoder takes most of the memory, or, `wide`, its transformer."""
    pipe: Any = tiny_pipeline() if kind == "sd3" else tiny_flux_pipeline()
    if wide:
        model: Any = SD3Transformer2DModel if kind == "sd3" else FluxTransformer2DModel
        config = dict(pipe.transformer.config) | WIDE[kind]
        pipe.register_modules(transformer=model.from_config(config).eval())
    else:
        pipe.register_modules(vae=tiny_vae(32, 64))
    pipe.set_progress_bar_config(disable=True)
    for part in (pipe.transformer, pipe.vae, pipe.text_encoder, pipe.text_encoder_2):
        part.to(dtype)
    if kind == "sd3":
        pipe.text_encoder_3.to(dtype)
    return pipe


def recorded(pipe: Any) -> Any:
    with Recorder(pipe, [0.5]) as recorder:
        pipe(PROMPTS, num_inference_steps=2, output_type="latent", **CALL)
    return [(PROMPTS, recorder.calls)]


@pytest.mark.parametrize("wide", [False, True], ids=["decoder", "transformer"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["sd3", "flux"])
def test_memory_is_what_is_said_or_up_to_half_of_it_less(kind, dtype, wide):
    pipe = pipeline(kind, dtype, wide=wide)
    runs = recorded(pipe)
    said = screen_cost(pipe, CALL, "a cat", 2, 2, levels=1)
    with PeakBytes() as counted:
        screened(pipe, red, runs, scale=1.0, chosen={}, perturbation=Perturbation(), micro_batch=2)
    assert said.activations / 2 < counted.peak < said.activations


def test_memory_grows_with_the_micro_batch_and_not_with_the_batch():
    pipe = pipeline("sd3", torch.float32)
    runs, peaks = recorded(pipe), {}
    for size in (1, 2):
        with PeakBytes() as counted:
            screened(pipe, red, runs, scale=1.0, chosen={}, perturbation=Perturbation(), micro_batch=size)
        peaks[size] = counted.peak
    assert 1.8 < peaks[2] / peaks[1] < 2.1


@pytest.mark.parametrize("kind", ["sd3", "flux"])
def test_block_evaluations_are_those_that_are_counted(kind):
    pipe = pipeline(kind, torch.float32)
    runs, evaluations = recorded(pipe), 0

    def count(*_: Any) -> None:
        nonlocal evaluations
        evaluations += 1

    for block in layout_of(pipe.transformer).blocks:
        pipe.transformer.get_submodule(block).register_forward_pre_hook(count)
    screened(pipe, red, runs, scale=1.0, chosen={}, perturbation=Perturbation(), micro_batch=1)
    assert evaluations == screen_cost(pipe, CALL, "a cat", 2, 1, levels=1).evaluations


def test_the_cost_is_told_without_an_evaluation_of_the_transformer():
    pipe = pipeline("flux", torch.float32)
    pipe.transformer.transformer_blocks[0].register_forward_pre_hook(lambda *_: pytest.fail("evaluated"))
    text = str(screen_cost(pipe, CALL, "a cat", 20, None))
    assert "20 x 3 gradients (pictures x noise levels), 540 block evaluations; 20 side by side" in text
    assert len(pipe.transformer._forward_pre_hooks) == 0


def test_pictures_of_two_million_pixels_are_differentiated_side_by_side():
    assert [micro_batch_of((s, s)) for s in (128, 512, 1024, 2048)] == [128, 8, 2, 1]
