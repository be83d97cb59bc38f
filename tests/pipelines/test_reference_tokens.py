"""References as tokens of FLUX's sequence, against diffusers' own pipeline of FLUX.1 Kontext."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.testing import assert_close

from dit_heads.errors import InputError
from dit_heads.guidance import HeadGuidance
from dit_heads.pipelines.instruct import InstructPipeline
from dit_heads.pipelines.multimodal import MultimodalInstructPipeline
from dit_heads.training.widen import widened
from tests.saved import tiny_flux_pipeline, tiny_pipeline

SIDE = 32
CALL: dict[str, Any] = {"num_inference_steps": 2, "output_type": "np", "max_sequence_length": 16}
SIZE = {"height": SIDE, "width": SIDE}


def seed(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def picture(number: int, size: tuple[int, int] = (SIDE, SIDE)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8))


@pytest.fixture(scope="module")
def paint() -> MultimodalInstructPipeline:
    pipe: Any = tiny_flux_pipeline()
    pipe.set_progress_bar_config(disable=True)
    torch.nn.init.normal_(pipe.transformer.x_embedder.weight, std=0.2)
    return MultimodalInstructPipeline(pipe, references="tokens")


@pytest.fixture(scope="module")
def kontext(paint: MultimodalInstructPipeline) -> Any:
    """The same parts in diffusers' pipeline."""
    names = inspect.signature(diffusers.FluxKontextPipeline.__init__).parameters
    parts: Any = {name: part for name, part in paint.pipe.components.items() if name in names}
    pipe = diffusers.FluxKontextPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@contextmanager
def read(pipe: Any) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """The image tokens and their ids in each call of the transformer, as its modules read them."""
    found: list[tuple[Tensor, Tensor]] = []
    tokens: list[Tensor] = []
    text = 16
    hooks = [
        pipe.transformer.x_embedder.register_forward_pre_hook(lambda _, args: tokens.append(args[0].clone())),
        pipe.transformer.pos_embed.register_forward_pre_hook(
            lambda _, args: found.append((tokens.pop(), args[0][text:].clone()))
        ),
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("place", ["source", "reference"])
def test_one_picture_lies_where_diffusers_kontext_puts_it(
    paint: MultimodalInstructPipeline, kontext: Any, place: str
):
    """The source of an edit, and one reference of another size on a blank canvas."""
    one = picture(0) if place == "source" else picture(0, (20, 24))
    with read(paint.pipe) as ours:
        if place == "source":
            found = paint("make it", image=one, generator=seed(), **CALL).images
        else:
            found = paint("make <it>", {"it": one}, generator=seed(), **SIZE, **CALL).images
    with read(paint.pipe) as theirs:
        how: Any = {"max_area": SIDE * SIDE, "_auto_resize": False, **SIZE, **CALL}
        wanted = kontext(image=one, prompt="make it", generator=seed(), **how).images
    assert len(ours) == len(theirs) == 2
    for (own, at), (other, there) in zip(ours, theirs, strict=True):
        assert own.shape == other.shape and torch.equal(at, there)
        assert_close(own, other)
    assert_close(found, wanted)


def test_further_pictures_have_the_next_ids_and_count(paint: MultimodalInstructPipeline):
    references = {"a": picture(1, (16, 24)), "b": picture(2)}
    with read(paint.pipe) as calls:
        found = paint("<a> by <b> by <a>", references, picture(0), generator=seed(), **CALL).images
    for _, ids in calls:
        frames, counts = ids[:, 0].unique_consecutive(return_counts=True)
        assert frames.tolist() == [0, 1, 2, 3] and counts.tolist() == [64, 64, 24, 64]
        assert (ids[128:152, 1:].amax(0) == torch.tensor([3, 5])).all()
    one = paint("<a> by b by <a>", {"a": references["a"]}, picture(0), generator=seed(), **CALL).images
    other = paint(
        "<a> by <b> by <a>", {**references, "b": picture(3)}, picture(0), generator=seed(), **CALL
    ).images
    assert not np.allclose(found, one) and not np.allclose(found, other)


def test_placeholders_are_read_as_words(paint: MultimodalInstructPipeline):
    one, call = picture(1), {**CALL, "max_sequence_length": 32}
    found = paint("<imagehere>", [one], generator=seed(), **call).images
    assert_close(paint("the <picture> 1", {"picture": one}, generator=seed(), **call).images, found)
    other = paint("the <photo> 1", {"photo": one}, generator=seed(), **call).images
    assert not np.array_equal(other, found)


def test_without_pictures_it_is_the_pipelines_own_call(paint: MultimodalInstructPipeline):
    found = paint("a b", generator=seed(), **SIZE, **CALL).images
    assert_close(found, paint.pipe("a b", generator=seed(), **SIZE, **CALL).images)


def test_several_instructions_are_as_if_alone(paint: MultimodalInstructPipeline):
    prompts, references = ["a <x>", "b <y>"], [{"x": picture(1)}, {"y": picture(2)}]
    sources = [picture(3), picture(4)]
    call = {**CALL, "num_images_per_prompt": 2}
    each = [seed(k) for k in range(4)]
    together = paint(prompts, references, sources, generator=each, **call).images
    for k in range(4):
        at = k // 2
        alone = paint(prompts[at], references[at], sources[at], generator=seed(k), **CALL).images[0]
        assert_close(together[k], alone, atol=1e-4, rtol=1e-4)


def test_instructions_with_other_numbers_or_sizes_of_pictures_are_refused(paint: MultimodalInstructPipeline):
    with pytest.raises(InputError, match=r"references: expected as many .* got 1 and 0; call once for each"):
        paint(["a <x>", "b"], [{"x": picture(1)}, []], **CALL)
    other = [{"x": picture(1)}, {"x": picture(1, (16, 16))}]
    with pytest.raises(InputError, match="references: picture 1 of each instruction: expected pictures of"):
        paint(["a <x>", "b <x>"], other, **CALL)
    with pytest.raises(InputError, match="references: expected one picture for a placeholder, got 2"):
        paint("a <x>", {"x": [picture(1), picture(2)]}, **CALL)


def test_outside_of_a_mask_nothing_changes(paint: MultimodalInstructPipeline):
    source, seen = picture(0, (30, 27)), []

    def watch(_: Any, step: int, __: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append((step, tensors["latents"].shape[1]))
        return {}

    mask = np.zeros((30, 27), bool)
    mask[:, 13:] = True
    call = {**CALL, "mask": mask, "mask_feather": 0, "callback_on_step_end": watch}
    edited = paint("like <x>", {"x": picture(1)}, source, generator=seed(), **call).images[0]
    levels = np.asarray(source) / np.float32(255)
    assert np.array_equal(edited[:, :13], levels[:, :13])
    assert (np.abs(edited - levels)[:, 13:].max((0, 2)) > 0.01).all()
    assert seen == [(0, 56), (1, 56)]  # tokens of the result alone


def test_a_mask_is_found(paint: MultimodalInstructPipeline):
    options: Any = {"max_sequence_length": 16, "samples": 1, "threshold": 0.7}
    found = [
        np.asarray(paint.find_mask("like <x>", {"x": one}, picture(0), generator=seed(), **options)[0])
        for one in (picture(1), picture(2))
    ]
    assert all(0 < (mask > 0).mean() < 1 for mask in found)
    assert not np.array_equal(found[0], found[1])


def test_image_guidance_is_that_towards_references_too(paint: MultimodalInstructPipeline):
    """With the instruction as its own negative prompt, the scale 0 leaves what empty pictures give."""
    call = {**CALL, "negative_prompt": "it", "image_guidance_scale": 0.0}
    found = paint("<it>", {"it": picture(1)}, generator=seed(), **SIZE, **call).images
    plain = InstructPipeline(paint.pipe, "tokens")
    blind = {**CALL, "prompt": "it", "generator": seed()}
    wanted = plain._painted([torch.zeros(1, 4, 16, 16)], (SIDE, SIDE), 1.0, blind)
    assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_head_guidance_works_on_it(paint: MultimodalInstructPipeline):
    def drawn() -> Any:
        return paint("a <x>", {"x": picture(1)}, picture(0), generator=seed(), **CALL).images

    plain = drawn()
    with HeadGuidance(paint.pipe, "L1H0", scale=2.0) as guidance:
        guided = drawn()
    assert guidance.report.guided == [0, 1]
    assert not np.allclose(plain, guided)
    assert_close(drawn(), plain)


def test_parts_that_do_not_fit_are_named(paint: MultimodalInstructPipeline):
    def made(pipe: Any, *parts: Any, **how: Any) -> MultimodalInstructPipeline:
        return MultimodalInstructPipeline(pipe, *parts, **how)

    pipe: Any = paint.pipe
    with pytest.raises(InputError, match="references: expected encoder or tokens, got 'words'"):
        made(pipe, references="words")
    with pytest.raises(InputError, match="references: expected a FLUX pipeline for 'tokens', got one of sd3"):
        made(tiny_pipeline(), references="tokens")
    with pytest.raises(InputError, match="encoder, tower: expected both, or references='tokens', got none"):
        made(pipe)
    with pytest.raises(InputError, match="encoder: expected none for references='tokens', got one"):
        made(pipe, torch.nn.Identity(), references="tokens")
    with pytest.raises(InputError, match="references: expected a pipeline with an encoder of them"):
        paint.embedding(picture(0))
    with widened(pipe.transformer, 4), pytest.raises(InputError, match="load one that is not widened"):
        made(pipe, references="tokens")
