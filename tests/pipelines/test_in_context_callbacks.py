"""Callbacks, offloading and adapters of the wrapped pipeline work as usual."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers.callbacks import PipelineCallback
from peft import LoraConfig
from torch import Tensor

from dit_heads.pipelines.in_context import InContextPipeline
from tests.pipelines.made import BASES, CAPTION, STEPS, TRIO, photo, sd3, seeded


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
