"""CLIP's scores against transformers' own logits, and properties that all objectives share."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from torch.testing import assert_close
from transformers import CLIPModel

from dit_heads.embedded.evaluate import unseen_scenes
from dit_heads.embedded.export import load_clip
from dit_heads.embedded.nets.clip import tokenize
from dit_heads.embedded.nets.vae import to_tensor
from dit_heads.embedded.objective import embedded_clip
from dit_heads.embedded.world.captions import caption
from dit_heads.embedded.world.render import render
from dit_heads.objectives import (
    AestheticScore,
    ClipSimilarity,
    Objective,
    Threshold,
    WeightedSum,
    aesthetic,
    clip,
    load_objective,
    pickscore,
)
from tests.objectives.made import MEAN, PROMPTS, SCALE, STD, TOKENIZER, brightness
from tests.shapes import shapes_unchecked


def pixels(images: Tensor) -> Tensor:
    """The middle of 40 x 32, normalised."""
    return (images[..., 4:36, :] - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def test_similarity_is_the_logit_of_transformers_without_its_temperature(model, folder, images):
    ids = TOKENIZER(PROMPTS, padding=True, return_tensors="pt").input_ids
    logits = model(input_ids=ids, pixel_values=pixels(images)).logits_per_image.diag()
    assert_close(clip(folder)(images, PROMPTS), logits / math.exp(SCALE), atol=1e-5, rtol=0)


def test_pickscore_is_the_logit_with_the_learned_temperature(model, folder, images):
    ids = TOKENIZER(PROMPTS, padding=True, return_tensors="pt").input_ids
    logits = model(input_ids=ids, pixel_values=pixels(images)).logits_per_image.diag()
    score = pickscore(folder, folder)
    assert score.name == "pickscore" and score.factor == pytest.approx(math.exp(SCALE))
    assert_close(score(images, PROMPTS), logits, atol=1e-5, rtol=0)


def test_the_embedded_clip_is_the_cosine_of_its_two_towers():
    text, vision = load_clip()
    images = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        read = text(input_ids=tokenize(TOKENIZER, PROMPTS[:2])).text_embeds
        seen = vision(pixel_values=images * 2 - 1).image_embeds
    found = embedded_clip()(images, PROMPTS[:2])
    assert_close(found, F.cosine_similarity(seen, read), atol=1e-5, rtol=0)


def test_the_embedded_clip_scores_own_captions_above_others():
    scenes = unseen_scenes("test", 12)
    renders = to_tensor(np.stack([render(scene).image for scene in scenes])) / 2 + 0.5
    captions, score = [caption(scene) for scene in scenes], embedded_clip()
    own = score(renders, captions)
    others = torch.stack([score(renders, captions[k:] + captions[:k]) for k in range(1, len(scenes))])
    assert (own > others.amax(0)).sum() >= 11


KINDS = ("clip", "aesthetic", "sum", "threshold", "embedded")


@pytest.fixture(scope="module")
def objectives(folder, head) -> dict[str, Objective]:
    similarity, look = clip(folder), aesthetic(head, folder)
    combined = WeightedSum({similarity: 2.0, look: -0.5})
    gated = Threshold(similarity, brightness, 0.0)
    return dict(zip(KINDS, [similarity, look, combined, gated, embedded_clip()], strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_the_pixels_of_a_picture_from_its_own_score_alone(objectives, images, kind):
    objective, images = objectives[kind], images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(objective(images, PROMPTS)[1], images)
    reached = gradient.flatten(1).abs().amax(1)
    assert reached[1] > 0 and not reached[0] and not reached[2]


@pytest.mark.parametrize("kind", KINDS)
def test_a_score_does_not_depend_on_the_rest_of_the_batch(objectives, images, kind):
    objective = objectives[kind]
    alone = [objective(images[i : i + 1], PROMPTS[i : i + 1]) for i in range(3)]
    assert_close(objective(images, PROMPTS), torch.cat(alone), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_small_step_along_the_gradient_raises_the_score(objectives, images, kind):
    objective, images = objectives[kind], (0.2 + 0.6 * images).requires_grad_()
    before = objective(images, PROMPTS)
    (gradient,) = torch.autograd.grad(before.sum(), images)
    step = gradient / gradient.abs().amax((1, 2, 3), keepdim=True)
    assert (objective(images.detach() + 1e-3 * step, PROMPTS) > before).all()


def test_prompts_beyond_the_positions_are_cut(folder, images):
    long = "a red cube " * 40
    assert_close(clip(folder)(images[:1], [long]), clip(folder)(images[:1], [long + "and more"]))


def test_a_folder_without_a_tokenizer_is_refused(folder, tmp_path):
    CLIPModel.from_pretrained(folder).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"tokenizer: expected one that ends texts with id 1, .* 2 tokens"):
        clip(str(tmp_path))
    assert clip(str(tmp_path), processor=folder).name == f"clip:{tmp_path}"


def test_an_old_config_s_end_of_text_is_the_highest_id(model, folder):
    config = SimpleNamespace(eos_token_id=2, vocab_size=10)
    text: Any = torch.nn.Module()
    text.text_model = SimpleNamespace(config=config)
    image = clip(folder).image
    ClipSimilarity(text, image, SimpleNamespace(eos_token_id=9), name="old")
    with pytest.raises(ValueError, match="ends texts with id 9, old has one of 753 tokens with 1"):
        ClipSimilarity(text, image, TOKENIZER, name="old")


def test_half_a_clip_is_refused(model, tmp_path):
    some = {k: v.clone() for k, v in model.state_dict().items() if not k.startswith("vision_model")}
    model.config.save_pretrained(tmp_path)
    save_file(some, tmp_path / "model.safetensors", {"format": "pt"})
    TOKENIZER.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"expected a whole CLIP, .* has no vision_model"):
        clip(str(tmp_path))


def test_weights_in_a_pickle_are_refused(model, tmp_path):
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    TOKENIZER.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"cannot load 'clip:.*safetensors"):
        load_objective(f"clip:{tmp_path}")


@pytest.mark.parametrize(
    ("shape", "dtype", "prompts", "message"),
    [
        ((3, 32, 32), torch.float32, ["a"], r"images: expected \[B, 3, H, W\] .* got \(3, 32, 32\)"),
        ((1, 4, 32, 32), torch.float32, ["a"], r"images: expected .* got \(1, 4, 32, 32\) of torch.float32"),
        ((1, 3, 32, 32), torch.uint8, ["a"], r"images: expected .* floats .* of torch.uint8"),
        ((2, 3, 32, 32), torch.float32, ["a"], "prompts: expected a list of 2, one a picture, got 1"),
        ((1, 3, 32, 32), torch.float32, "a", "prompts: expected a list of 1, one a picture, got 'a'"),
    ],
)
@pytest.mark.parametrize("kind", ["clip", "aesthetic"])
def test_other_pictures_and_prompts_are_refused(objectives, kind, shape, dtype, prompts, message):
    with shapes_unchecked(), pytest.raises(ValueError, match=message):
        objectives[kind](torch.zeros(shape, dtype=dtype), prompts)


# --- the aesthetic predictor ---


def test_the_aesthetic_score_is_the_head_of_the_unit_vector(model, folder, head, images):
    score = aesthetic(head, folder)
    seen = F.normalize(model.get_image_features(pixel_values=pixels(images)).pooler_output, dim=-1)
    first, last = (layer.state_dict() for layer in score.head)
    expected = (seen @ first["weight"].T + first["bias"]) @ last["weight"].T + last["bias"]
    assert_close(score(images, PROMPTS), expected[:, 0], atol=1e-5, rtol=0)
    assert torch.equal(score(images, PROMPTS), score(images, PROMPTS[::-1]))


def test_a_head_of_another_width_is_refused(folder):
    with pytest.raises(ValueError, match="head: expected vectors of 7, the CLIP gives vectors of 12"):
        AestheticScore(clip(folder).image, torch.nn.Sequential(torch.nn.Linear(7, 1)))
