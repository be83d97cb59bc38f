"""A picture of any form and size comes back on its own grid."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from torch import Tensor
from torch.testing import assert_close

from dit_heads import load_embedded
from dit_heads.embedded.world.render import render
from dit_heads.embedded.world.scenes import sample_scene
from dit_heads.errors import InputError
from dit_heads.families.latents import denormalised
from dit_heads.pipelines.instruct import InstructPipeline
from dit_heads.pipelines.sources import Frame, pictures_of
from dit_heads.training.widen import widen

SIZES = [(128, 128), (128, 96), (101, 123), (64, 128), (113, 128), (17, 31), (1, 1), (5, 128)]


def offset(moved: Tensor, still: Tensor) -> Tensor:
    """How far, down and to the right in pixels, one picture lies from another of other brightness and
    contrast: least squares on gradients."""
    moved, still = moved.double().mean(0), still.double().mean(0)
    slopes = torch.stack(torch.gradient(still))[:, 2:-2, 2:-2].flatten(1)
    inside, change = (part[2:-2, 2:-2].flatten() for part in (still, moved - still))
    causes = torch.stack([*slopes, inside, torch.ones_like(inside)], 1)
    return -torch.linalg.lstsq(causes, change[:, None]).solution[:2, 0]


def scene(size: tuple[int, int], seed: int = 3) -> Tensor:
    """A part of a rendered scene, without its styles."""
    whole = render(replace(sample_scene(seed), style="photo"), 128).image
    return torch.from_numpy(whole[: size[0], : size[1]].copy()).permute(2, 0, 1).float() / 255


def test_an_offset_is_found_to_a_hundredth_of_a_pixel():
    """Of a smooth picture that was moved by a third of a pixel in its spectrum."""
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    wave = lambda dy, dx: ((y - dy) / 9).sin() + ((x - dx) / 7).cos()  # noqa: E731
    found = offset(wave(0.3, -0.2)[None], wave(0, 0)[None])
    assert_close(found, torch.tensor([0.3, -0.2]).double(), atol=0.01, rtol=0)


@pytest.fixture(scope="module")
def embedded() -> Any:
    pipe = load_embedded()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("size", [size for size in SIZES if min(size) >= 64])
def test_a_picture_lies_where_its_source_lies(embedded: Any, size: tuple[int, int]):
    """Through the autoencoder alone, with all that is done to a picture before and after."""
    edit, source = InstructPipeline(embedded, "tokens"), scene(size)
    frame = edit.frame([source], 0)
    with torch.no_grad():
        latents = denormalised(embedded.vae, edit.latents([frame.framed(source)]))
        drawn = frame.restored(embedded.vae.decode(latents).sample[0] / 2 + 0.5)
    assert drawn.shape == source.shape
    assert offset(drawn, source).abs().max() < 0.1


@pytest.mark.parametrize("size", SIZES)
def test_results_have_the_size_of_their_source(embedded: Any, size: tuple[int, int]):
    edit = InstructPipeline(embedded, "tokens")
    given: Any = {"num_inference_steps": 1, "guidance_scale": 1.0, "image_guidance_scale": 1.0}
    given |= {"max_sequence_length": 16}
    picture = Image.fromarray((scene(size) * 255).byte().permute(1, 2, 0).numpy())
    assert edit(picture, "depth", **given).images[0].size == picture.size
    assert edit(picture, "depth", output_type="pt", **given).images.shape[2:] == size


@pytest.mark.parametrize("longest", [64, 100])
def test_a_smaller_working_size_shifts_nothing(longest: int):
    source = scene((128, 120))
    frame = Frame.of((128, 120), 16, longest)
    assert max(frame.scaled) == longest and all(side % 16 == 0 for side in frame.padded)
    assert offset(frame.restored(frame.framed(source)), source).abs().max() < 0.1
    labels = frame.restored(frame.framed(source), nearest=True)
    assert labels.shape == source.shape and offset(labels, source).abs().max() < 0.1


def test_a_picture_is_never_enlarged_and_needs_no_frame_of_its_own_size():
    assert Frame.of((32, 48), 16, 1024) == Frame((32, 48), (32, 48), (32, 48))
    source = scene((32, 48))
    assert torch.equal(Frame.of((32, 48), 16).framed(source), source)


@pytest.mark.slow
def test_a_picture_of_64_megapixels_is_scaled_or_refused(embedded: Any):
    widest = Image.new("RGB", (8000, 8000), "teal")
    edit = InstructPipeline(embedded, "tokens")
    sources = pictures_of(widest)
    with pytest.raises(InputError, match=r"got 8000 x 8000, .*; give processing_resolution"):
        edit.frame(sources, 0)
    frame = edit.frame(sources, 128)
    assert frame.framed(sources[0]).shape == (3, 128, 128)


@pytest.mark.parametrize("form", ["pil", "array", "float array", "tensor", "path", "turned", "alpha", "16"])
def test_a_picture_is_read_alike_in_every_form(form: str, tmp_path: Path):
    pixels = (scene((40, 56)) * 255).round().byte().permute(1, 2, 0).numpy()
    expected = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
    given: Any = Image.fromarray(pixels)
    if form == "array":
        given = pixels
    elif form == "float array":
        given = pixels.astype(np.float32) / 255
    elif form == "tensor":
        given = expected.clone()
    elif form == "path":
        given.save(tmp_path / "it.png")
        given = tmp_path / "it.png"
    elif form == "turned":
        exif = given.getexif()
        exif[ExifTags.Base.Orientation] = 6
        given.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "it.png", exif=exif)
        given = Image.open(tmp_path / "it.png")
    elif form == "alpha":
        given = given.convert("RGBA")
    elif form == "16":
        grey = np.asarray(given.convert("L"))
        expected = torch.from_numpy(grey.copy()).expand(3, -1, -1).float() / 255
        given = Image.fromarray(grey.astype(np.uint16) * 257)
    (found,) = pictures_of(given)
    assert_close(found, expected, atol=1e-6, rtol=0)


def test_several_pictures_may_come_as_one_array():
    pictures = torch.stack([scene((16, 16), seed) for seed in (1, 2)])
    for given in (pictures, pictures.permute(0, 2, 3, 1).numpy()):
        assert_close(torch.stack(pictures_of(given)), pictures, atol=1e-6, rtol=0)


def test_what_lies_outside_a_picture_repeats_its_edge():
    framed = Frame.of((5, 7), 16).framed(scene((5, 7)))
    assert torch.equal(framed[:, 5:, :7], framed[:, 4:5, :7].expand(-1, 11, -1))
    assert torch.equal(framed[:, :, 7:], framed[:, :, 6:7].expand(-1, -1, 9))


def test_a_widened_model_reads_any_size_too(embedded: Any):
    pipe = copy.copy(embedded)
    pipe.transformer = copy.deepcopy(embedded.transformer)
    widen(pipe.transformer, embedded.vae.config.latent_channels)
    given: Any = {"num_inference_steps": 1, "max_sequence_length": 16}
    assert InstructPipeline(pipe)(scene((21, 33)), "depth", **given).images[0].size == (33, 21)
