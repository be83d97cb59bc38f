"""Instructions with pictures in them: equal to the plain pipelines where there are no pictures, to embeddings
spliced by hand where there are, and blind outside of a mask."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from dit_heads.errors import InputError
from dit_heads.families.velocity import velocity_of
from dit_heads.fusion.encoder import FusionConfig, ReferenceEncoder
from dit_heads.fusion.splice import spliced
from dit_heads.guidance import HeadGuidance
from dit_heads.objectives.image_tower import ImageTower
from dit_heads.pipelines.instruct import InstructPipeline
from dit_heads.pipelines.multimodal import MultimodalInstructPipeline
from dit_heads.pipelines.sources import pictures_of
from dit_heads.tasks.multimodal import MultimodalInstruction
from dit_heads.training.widen import widen
from tests.loras.sets.made import PHOTOS
from tests.saved import PIPELINES

SIDE = 32
CALL: dict[str, Any] = {
    "num_inference_steps": 2,
    "guidance_scale": 3.0,
    "output_type": "np",
    "max_sequence_length": 16,
}


def seed(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def picture(number: int, size: tuple[int, int] = (SIDE, SIDE)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8))


def tower() -> ImageTower:
    config = CLIPVisionConfig(
        hidden_size=8, intermediate_size=8, projection_dim=4, num_hidden_layers=1, num_attention_heads=2,
        image_size=SIDE, patch_size=8,
    )  # fmt: skip
    return ImageTower(CLIPVisionModelWithProjection(config), (0.5,) * 3, (0.5,) * 3)


def multimodal(kind: str) -> MultimodalInstructPipeline:
    """A pipeline whose weights of the source and of the patches are not zero, so that both count."""
    pipe: Any = PIPELINES[kind]()
    pipe.set_progress_bar_config(disable=True)
    widen(pipe.transformer, 4)
    inner = pipe.transformer.inner_dim
    torch.manual_seed(1)
    for name in ("pos_embed.proj", "x_embedder"):
        if name in dict(pipe.transformer.named_modules()):
            torch.nn.init.normal_(pipe.transformer.get_submodule(name).weight, std=0.2)
    encoder = ReferenceEncoder(FusionConfig(vision=8, patches=inner, text=32, tokens=3, width=8, heads=2))
    torch.nn.init.normal_(encoder.look.out_proj.weight)
    return MultimodalInstructPipeline(pipe, encoder, tower())


@pytest.fixture(scope="module", params=["sd3", "flux"])
def paint(request: pytest.FixtureRequest) -> MultimodalInstructPipeline:
    return multimodal(request.param)


def test_text_and_a_source_are_an_instruct_pipelines_call(paint: MultimodalInstructPipeline):
    plain = InstructPipeline(paint.pipe)
    found = paint("a b", image=picture(0), generator=seed(), **CALL).images
    wanted = plain(picture(0), "a b", generator=seed(), image_guidance_scale=1.0, **CALL).images
    assert_close(found, wanted)
    found = paint("a b", image=picture(0), generator=seed(), image_guidance_scale=2.0, **CALL).images
    wanted = plain(picture(0), "a b", generator=seed(), image_guidance_scale=2.0, **CALL).images
    assert_close(found, wanted)


def test_a_blank_canvas_is_a_source_of_zeros(paint: MultimodalInstructPipeline):
    plain = InstructPipeline(paint.pipe)
    found = paint("a b", generator=seed(), **CALL).images
    call = {**CALL, "prompt": "a b", "generator": seed()}
    wanted = plain._painted([torch.zeros(1, 4, 16, 16)], (SIDE, SIDE), 1.0, call)
    assert found.shape == (1, SIDE, SIDE, 3)
    assert_close(found, wanted)
    assert paint("a", height=48, width=16, **CALL).images.shape == (1, 48, 16, 3)


def test_references_are_spliced_into_the_text(paint: MultimodalInstructPipeline):
    found = paint("put <it> on c", {"it": picture(1)}, picture(0), generator=seed(), **CALL).images
    instruction = MultimodalInstruction.of("put <it> on c", {"it": picture(1)})
    with torch.no_grad():
        text, pooled = spliced(paint.pipe, [instruction], [[paint.embedding(picture(1))]], 16)
    embeds = {"prompt_embeds": text, "pooled_prompt_embeds": pooled}
    plain = InstructPipeline(paint.pipe)
    wanted = plain(picture(0), generator=seed(), image_guidance_scale=1.0, **embeds, **CALL).images
    assert_close(found, wanted)
    other = paint("put <it> on c", {"it": picture(2)}, picture(0), generator=seed(), **CALL).images
    assert not np.allclose(found, other)


def test_several_instructions_are_as_if_alone(paint: MultimodalInstructPipeline):
    prompts, references = ["a <x>", "b"], [{"x": picture(1)}, []]
    sources = [picture(2), picture(3)]
    together = paint(prompts, references, sources, generator=[seed(0), seed(1)], **CALL).images
    for k in range(2):
        alone = paint(prompts[k], references[k], sources[k], generator=seed(k), **CALL).images[0]
        assert_close(together[k], alone, atol=1e-4, rtol=1e-4)
    twice = paint("a", image=picture(2), num_images_per_prompt=2, generator=[seed(0), seed(1)], **CALL).images
    assert_close(
        twice[1], paint("a", image=picture(2), generator=seed(1), **CALL).images[0], atol=1e-4, rtol=1e-4
    )


def half(size: tuple[int, int] = (SIDE, SIDE)) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[:, size[1] // 2 :] = True
    return mask


@pytest.mark.parametrize("size", [(SIDE, SIDE), (30, 27)])
@pytest.mark.parametrize("feather", [0, 4])
def test_outside_of_a_mask_nothing_changes(
    paint: MultimodalInstructPipeline, size: tuple[int, int], feather: int
):
    source, mask = picture(0, size), half(size)
    edited = paint("a", image=source, mask=mask, mask_feather=feather, generator=seed(), **CALL).images[0]
    levels = np.asarray(source) / np.float32(255)
    first = size[1] // 2
    assert np.array_equal(edited[:, : first - feather], levels[:, : first - feather])
    assert (np.abs(edited - levels)[:, first:].max((0, 2)) > 0.01).all()


def test_a_white_mask_is_none(paint: MultimodalInstructPipeline):
    whole = np.ones((SIDE, SIDE), np.float32)
    found = paint("a", image=picture(0), mask=whole, generator=seed(), **CALL).images
    assert_close(found, paint("a", image=picture(0), generator=seed(), **CALL).images)


def test_a_mask_is_found_where_the_instruction_moves_the_prediction(paint: MultimodalInstructPipeline):
    source, instruction = picture(0), MultimodalInstruction.of("a b c")
    options: dict[str, Any] = {"max_sequence_length": 16, "noise_level": 0.5, "samples": 2}
    (found,) = paint.find_mask("a b c", (), source, threshold=0.7, generator=seed(), **options)
    latents = paint.latents(pictures_of(source))
    generator, moved = seed(), torch.zeros(1, 16, 16)
    with torch.no_grad():
        texts = [spliced(paint.pipe, [one], [[]], 16) for one in (instruction, MultimodalInstruction.of(""))]
        for _ in range(2):
            x = (latents + torch.randn(latents.shape, generator=generator)) / 2
            one, other = (
                velocity_of(paint.pipe.transformer, *text, source=latents)(x, torch.tensor([0.5]))
                for text in texts
            )
            moved += (one - other).abs().mean(1)
    wide = torch.nn.functional.interpolate(moved[None], (SIDE, SIDE), mode="bilinear")[0, 0] / moved.max()
    assert np.array_equal(np.asarray(found) > 0, (wide >= 0.7).numpy())
    assert 0 < (np.asarray(found) > 0).mean() < 1
    paint("a b c", image=source, mask=found, generator=seed(), **CALL)


def test_a_mask_needs_a_picture_and_numbers_in_range(paint: MultimodalInstructPipeline):
    with pytest.raises(InputError, match="image: expected a picture to edit, got none"):
        paint.find_mask("a")
    with pytest.raises(InputError, match="threshold: expected 0 < threshold < 1, got 1"):
        paint.find_mask("a", (), picture(0), threshold=1)
    with pytest.raises(InputError, match="samples: expected"):
        paint.find_mask("a", (), picture(0), samples=0)


def test_callbacks_see_the_latents_that_are_kept(paint: MultimodalInstructPipeline):
    seen = []

    def watch(pipe: Any, step: int, time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append(tensors["latents"].clone())
        return {}

    call = {**CALL, "output_type": "latent", "callback_on_step_end": watch}
    last = paint("a", image=picture(0), mask=half(), mask_feather=0, generator=seed(), **call).images
    assert len(seen) == 2
    assert torch.equal(seen[-1], last)


def test_head_guidance_works_on_it(paint: MultimodalInstructPipeline):
    plain = paint("a <x>", {"x": picture(1)}, picture(0), generator=seed(), **CALL).images
    with HeadGuidance(paint.pipe, "L1H0", scale=2.0) as guidance:
        guided = paint("a <x>", {"x": picture(1)}, picture(0), generator=seed(), **CALL).images
    assert guidance.report.guided == [0, 1]
    assert not np.allclose(plain, guided)
    assert_close(paint("a <x>", {"x": picture(1)}, picture(0), generator=seed(), **CALL).images, plain)


def test_long_text_is_cut_with_a_warning_and_pictures_are_not(paint: MultimodalInstructPipeline):
    with pytest.warns(UserWarning, match="lost"):
        paint("word " * 20 + "<x>", {"x": picture(1)}, **CALL)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a <x>", {}), "references: expected a picture for <x>, got none"),
        (("a <x>", {"x": "nowhere.png"}), "nowhere.png"),
        (("a <x>", {"x": None}), "references: expected PIL images"),
        (("a <x>", {"x": [picture(0), picture(1)]}), "references: expected one picture for a placeholder"),
        ((["a", "b"], [{}]), "references: expected 2 lists or mappings of pictures"),
        (([],), "prompt: expected an instruction or a list of them"),
        (("a", (), [picture(0), picture(1)]), "image: expected one, or one an instruction, got 2"),
    ],
)
def test_instructions_that_do_not_fit_are_named(
    paint: MultimodalInstructPipeline, arguments: tuple[Any, ...], message: str
):
    with pytest.raises(InputError, match=message):
        paint(*arguments, **CALL)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": np.zeros((SIDE, SIDE), bool)}, "mask: expected white where .* all black"),
        ({"mask": half((16, 16))}, "mask: expected the size of the picture, 32 x 32, got 16 x 16"),
        ({"mask": half(), "mask_feather": -1}, "mask_feather: expected"),
        ({"mask": [half() * 1.0, half() * 1.0]}, "mask: expected one, got 2"),
        ({"height": 32}, "height, width: expected none, since the picture"),
        ({"strength": 0.5}, "strength: .* take no such argument"),
    ],
)
def test_options_that_do_not_fit_are_named(
    paint: MultimodalInstructPipeline, options: dict[str, Any], message: str
):
    with pytest.raises(InputError, match=message):
        paint("a", image=picture(0), **options, **CALL)


def test_a_canvas_that_does_not_fit_is_named(paint: MultimodalInstructPipeline):
    with pytest.raises(InputError, match="mask: expected none without a picture to edit"):
        paint("a", mask=half(), **CALL)
    with pytest.raises(InputError, match="height: expected a multiple of 4, got 30"):
        paint("a", height=30, **CALL)


@pytest.mark.skipif(not (PHOTOS / "subjects").is_dir(), reason="no photographs beside the checkout")
def test_photographs_of_subjects_serve_as_references_and_sources(paint: MultimodalInstructPipeline):
    """That all runs with real files of any number, to the end and to numbers; nothing is said of quality."""
    subjects = [sorted(folder.glob("*.jpg")) for folder in sorted((PHOTOS / "subjects").iterdir())]
    embedded = [paint.embedding(photos[0]) for photos in subjects]
    assert {tuple(one.shape) for one in embedded} == {(3, 32)}
    assert len({one.sum().item() for one in embedded}) == len(subjects)
    some = [photos[0] for photos in subjects[:4]]
    new = paint(" by ".join(["<imagehere>"] * 4), some, **CALL).images
    named = paint("<dog> here", {"dog": some[0]}, some[1], processing_resolution=SIDE, **CALL).images
    assert new.shape == (1, SIDE, SIDE, 3) and named.shape == (1, 384, 384, 3)
    assert np.isfinite(new).all() and np.isfinite(named).all()
