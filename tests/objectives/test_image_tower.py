import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModelWithProjection

from dit_heads.objectives.image_tower import (
    OPENAI_MEAN,
    OPENAI_STD,
    ImageTower,
    image_tower,
    letterbox,
    middle,
)

SIZE = 32
MODEL: Any = SimpleNamespace(config=SimpleNamespace(image_size=SIZE))


class Named(nn.Module):
    """All of a CLIP that its preparation depends on."""

    vision_model = MODEL


def processor(**options: Any) -> CLIPImageProcessorPil:
    """transformers' own preparation to SIZE."""
    sizes: dict[str, Any] = {"size": {"shortest_edge": SIZE}, "crop_size": {"height": SIZE, "width": SIZE}}
    return CLIPImageProcessorPil(**sizes | options)


def prepared(images: torch.Tensor, **options: Any) -> torch.Tensor:
    arrays = list(images.permute(0, 2, 3, 1).numpy())
    batch = processor(**options)(arrays, input_data_format="channels_last", return_tensors="pt")
    return batch.pixel_values.float()


def drawn(shape: tuple[int, int], count: int = 1) -> torch.Tensor:
    """uint8 pictures [B, 3, H, W] of hard edges and noise."""
    g = torch.Generator().manual_seed(0)
    coarse = torch.randint(256, (count, 3, 5, 5), generator=g).float()
    edges = nn.functional.interpolate(coarse, shape)
    return (edges + torch.randint(-9, 10, edges.shape, generator=g)).clamp(0, 255).byte()


@pytest.mark.parametrize("shape", [(32, 32), (128, 128), (40, 64), (101, 37), (24, 50), (33, 32)], ids=str)
def test_preparation_equals_that_of_transformers(shape):
    images = drawn(shape, 3)
    wanted = prepared(images, do_normalize=False)
    found = middle(images.float() / 255, SIZE, SIZE)
    # Pillow rounds to bytes after either direction.
    assert_close(found, wanted, atol=2 / 255, rtol=0)
    assert (found - wanted).abs().mean() < 0.5 / 255


def test_what_is_square_and_of_size_is_not_touched():
    images = drawn((SIZE, SIZE)).float() / 255
    assert torch.equal(middle(images, SIZE, SIZE), images)
    assert torch.equal(letterbox(images, SIZE), images)


def test_the_shorter_side_can_be_larger_than_the_crop():
    images = torch.linspace(0, 1, 3 * 40 * 60).view(1, 3, 40, 60)
    assert torch.equal(middle(images, edge=40, crop=20), images[..., 10:30, 20:40])


@pytest.mark.parametrize(("shape", "white"), [((64, 32), (0, 32, 8, 24)), ((31, 62), (8, 24, 0, 32))])
def test_a_letterbox_holds_the_whole_picture_in_black(shape, white):
    expected = torch.zeros(1, 3, SIZE, SIZE)
    expected[..., white[0] : white[1], white[2] : white[3]] = 1
    assert_close(letterbox(torch.ones(1, 3, *shape), SIZE), expected)


@pytest.fixture(scope="module")
def tower() -> ImageTower:
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        projection_dim=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIZE,
        patch_size=8,
    )
    return ImageTower(CLIPVisionModelWithProjection(config), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


def test_vectors_are_those_of_transformers_of_length_one(tower):
    images = drawn((48, 70), 2)
    pixels = prepared(images, image_mean=(0.5, 0.4, 0.3), image_std=(0.2, 0.3, 0.4))
    wanted = tower.model(pixel_values=pixels).image_embeds
    found = tower(images.float() / 255)
    assert_close(found.norm(dim=-1), torch.ones(2))
    assert_close(found, wanted / wanted.norm(dim=-1, keepdim=True), atol=5e-3, rtol=0)


def test_gradients_reach_every_pixel_of_the_middle_and_no_weight(tower):
    images = torch.rand(2, 3, 40, 60, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (gradient,) = torch.autograd.grad(tower(images)[..., 0].sum(), images)
    assert (gradient[..., 12:-12] != 0).all() and not gradient[..., :8].any()
    assert not any(weight.requires_grad for weight in tower.model.parameters())


def test_half_precision_pictures_serve(tower):
    images = drawn((40, 40)).float() / 255
    assert_close(tower(images.bfloat16()), tower(images), atol=0.02, rtol=0)


# --- the config of a processor ---


def written(folder: Path, file: str, config: dict[str, Any]) -> ImageTower:
    (folder / file).write_text(json.dumps(config))
    return image_tower(Named(), str(folder))


def values(tower: ImageTower) -> list[list[float]]:
    return [np.round(v.flatten().tolist(), 6).tolist() for v in (tower.mean, tower.std)]


OWN = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}


def test_without_a_config_it_is_openai_s(tmp_path):
    tower = image_tower(Named(), str(tmp_path))
    assert values(tower) == [np.round(v, 6).tolist() for v in (OPENAI_MEAN, OPENAI_STD)]
    assert tower.fit(torch.ones(1, 3, 50, 90)).shape == (1, 3, SIZE, SIZE)


@pytest.mark.parametrize("size", [{"size": SIZE, "crop_size": SIZE}, {"size": {"shortest_edge": SIZE}}, {}])
def test_mean_and_deviation_are_the_config_s_old_or_new(tmp_path, size):
    tower = written(tmp_path, "preprocessor_config.json", OWN | size)
    assert values(tower) == list(OWN.values())


def test_a_config_saved_by_transformers_is_read(tmp_path):
    processor(**OWN).save_pretrained(tmp_path)
    assert values(image_tower(Named(), str(tmp_path))) == list(OWN.values())


def test_a_processor_s_config_comes_first_if_it_says_anything_of_pictures(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(OWN))
    assert values(written(tmp_path, "processor_config.json", {"a": 1})) == list(OWN.values())
    nested = {"image_processor": {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}}
    assert values(written(tmp_path, "processor_config.json", nested)) == [[0.5] * 3] * 2


def test_the_shorter_side_is_the_config_s(tmp_path):
    tower = written(tmp_path, "preprocessor_config.json", {"size": {"shortest_edge": 40}, "crop_size": SIZE})
    images = torch.rand(1, 3, 40, 40)
    assert torch.equal(tower.fit(images), images[..., 4:36, 4:36])


@pytest.mark.parametrize(
    "odd",
    [
        {"do_center_crop": False},
        {"do_normalize": False},
        {"resample": 2},
        {"size": {"height": SIZE, "width": SIZE}},
        {"size": {"shortest_edge": SIZE - 1}},
        {"crop_size": {"height": SIZE + 1, "width": SIZE + 1}},
    ],
    ids=str,
)
def test_another_preparation_is_refused(tmp_path, odd):
    with pytest.raises(ValueError, match=f"processor: expected bicubic resize .* crop to {SIZE}"):
        written(tmp_path, "preprocessor_config.json", OWN | odd)
