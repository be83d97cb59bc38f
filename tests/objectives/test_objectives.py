import functools
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from torch.testing import assert_close
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

from dit_heads.embedded.evaluate import unseen_scenes
from dit_heads.embedded.export import load_clip
from dit_heads.embedded.nets.clip import tokenize
from dit_heads.embedded.nets.vae import to_tensor
from dit_heads.embedded.objective import embedded_clip
from dit_heads.embedded.world.captions import caption
from dit_heads.embedded.world.render import render
from dit_heads.embedded.world.text import make_clip_tokenizer
from dit_heads.objectives import (
    AestheticScore,
    ClipSimilarity,
    Objective,
    Threshold,
    WeightedSum,
    aesthetic,
    checked_scores,
    clip,
    load_objective,
    name_of,
    pickscore,
)
from tests.shapes import shapes_unchecked

SIZE, LENGTH, SCALE = 32, 20, 1.7
TOKENIZER = make_clip_tokenizer()
PROMPTS = ["a large red cube on grass", "a small blue sphere", "two cones at night"]
MEAN, STD = [0.5, 0.4, 0.3], [0.3, 0.3, 0.4]


def tiny_clip() -> CLIPModel:
    """A random CLIP with a learned temperature that its config does not tell."""
    tower = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": len(TOKENIZER), "max_position_embeddings": LENGTH, "bos_token_id": 0}
    config = CLIPConfig(
        text_config=tower | text | {"eos_token_id": 1},
        vision_config=tower | {"image_size": SIZE, "patch_size": 8},
        projection_dim=12,
    )
    torch.manual_seed(0)
    model = CLIPModel(config).eval()
    torch.nn.init.constant_(model.logit_scale, SCALE)
    # Random biases, or all pictures' vectors would be nearly alike.
    for weight in model.parameters():
        if weight.ndim:
            torch.nn.init.normal_(weight, std=0.3)
    return model


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_clip()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("clip")
    tiny_clip().save_pretrained(path)
    TOKENIZER.save_pretrained(path)
    sizes: dict[str, Any] = {"size": {"shortest_edge": SIZE}, "crop_size": {"height": SIZE, "width": SIZE}}
    CLIPImageProcessorPil(**sizes, image_mean=MEAN, image_std=STD).save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def head(tmp_path_factory) -> str:
    g = torch.Generator().manual_seed(3)
    weights = {"layers.0.weight": torch.randn(5, 12, generator=g), "layers.0.bias": torch.ones(5)}
    weights |= {"layers.2.weight": torch.randn(1, 5, generator=g), "layers.2.bias": torch.ones(1)}
    path = tmp_path_factory.mktemp("head") / "head.safetensors"
    save_file(weights, path)
    return str(path)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(3, 3, 40, 32, generator=torch.Generator().manual_seed(1))


def pixels(images: Tensor) -> Tensor:
    """The middle of 40 x 32, normalised."""
    return (images[..., 4:36, :] - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


# Objectives of a module, as users write them.


def brightness(images: Tensor, prompts) -> Tensor:
    return images.mean((1, 2, 3))


def redness(images: Tensor, prompts) -> Tensor:
    return images[:, 0].mean((1, 2))


class Constant:
    def __init__(self, value: float, name: str | None = None) -> None:
        self.value = value
        if name is not None:
            self.name = name

    def __call__(self, images: Tensor, prompts) -> Tensor:
        return torch.full((len(images),), self.value)


NAMED = Constant(2.0, "two")
NAMELESS = Constant(2.0)
NUMBER = 3


# --- CLIP ---


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
        said = text(input_ids=tokenize(TOKENIZER, PROMPTS[:2])).text_embeds
        seen = vision(pixel_values=images * 2 - 1).image_embeds
    found = embedded_clip()(images, PROMPTS[:2])
    assert_close(found, F.cosine_similarity(seen, said), atol=1e-5, rtol=0)


def test_the_embedded_clip_scores_own_captions_above_others():
    scenes = unseen_scenes("test", 12)
    renders = to_tensor(np.stack([render(scene).image for scene in scenes])) / 2 + 0.5
    captions, score = [caption(scene) for scene in scenes], embedded_clip()
    own = score(renders, captions)
    others = torch.stack([score(renders, captions[k:] + captions[:k]) for k in range(1, len(scenes))])
    assert (own > others.amax(0)).sum() >= 11


def kinds(folder: str, head: str) -> list[Objective]:
    similarity, look = clip(folder), aesthetic(head, folder)
    combined = WeightedSum({similarity: 2.0, look: -0.5})
    return [similarity, look, combined, Threshold(similarity, brightness, 0.0), embedded_clip()]


KINDS = pytest.mark.parametrize("which", range(5), ids=["clip", "aesthetic", "sum", "threshold", "embedded"])


@KINDS
def test_gradients_reach_the_pixels_of_a_picture_from_its_own_score_alone(folder, head, images, which):
    objective, images = kinds(folder, head)[which], images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(objective(images, PROMPTS)[1], images)
    reached = gradient.flatten(1).abs().amax(1)
    assert reached[1] > 0 and not reached[0] and not reached[2]


@KINDS
def test_a_score_does_not_depend_on_the_rest_of_the_batch(folder, head, images, which):
    objective = kinds(folder, head)[which]
    alone = [objective(images[i : i + 1], PROMPTS[i : i + 1]) for i in range(3)]
    assert_close(objective(images, PROMPTS), torch.cat(alone), atol=1e-6, rtol=1e-5)


@KINDS
def test_a_small_step_along_the_gradient_raises_the_score(folder, head, images, which):
    objective, images = kinds(folder, head)[which], (0.2 + 0.6 * images).requires_grad_()
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
@pytest.mark.parametrize("which", [0, 1], ids=["clip", "aesthetic"])
def test_other_pictures_and_prompts_are_refused(folder, head, which, shape, dtype, prompts, message):
    with shapes_unchecked(), pytest.raises(ValueError, match=message):
        kinds(folder, head)[which](torch.zeros(shape, dtype=dtype), prompts)


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


# --- combinations ---


def test_a_weighted_sum_is_that_and_says_so(images):
    total = WeightedSum({brightness: 2.0, redness: -0.25, NAMED: 1e-3})
    assert_close(total(images, PROMPTS), 2 * images.mean((1, 2, 3)) - images[:, 0].mean((1, 2)) / 4 + 0.002)
    assert total.name == f"2 {__name__}:brightness + -0.25 {__name__}:redness + 0.001 two"
    assert WeightedSum({total: 3}).name == f"3 ({total.name})"


def test_a_weighted_sum_keeps_weights_of_its_own(images):
    weights: dict[Objective, float] = {brightness: 2.0}
    total = WeightedSum(weights)
    weights[redness] = 5.0
    assert_close(total(images, PROMPTS), 2 * images.mean((1, 2, 3)))


@pytest.mark.parametrize("weights", [{}, {brightness: math.nan}, {brightness: 1.0, redness: math.inf}])
def test_a_sum_of_nothing_or_of_odd_weights_is_refused(weights):
    with pytest.raises(ValueError, match=r"weights: .*expected (a finite number|an objective or more), got"):
        WeightedSum(weights)


def test_a_threshold_takes_what_passes_the_gate():
    images = torch.tensor([0.25, 0.5, 0.75])[:, None, None, None].expand(3, 3, 4, 4)
    gated = Threshold(NAMED, brightness, 0.5, otherwise=-1)
    assert gated(images, PROMPTS).tolist() == [-1, 2, 2]
    assert gated.name == f"two if {__name__}:brightness >= 0.5 else -1"


@pytest.mark.parametrize("bounds", [(math.nan, 0.0), (0.0, math.inf)])
def test_a_threshold_that_is_not_finite_is_refused(bounds):
    with pytest.raises(ValueError, match=r"(at_least|otherwise): expected a finite number, got"):
        Threshold(NAMED, brightness, *bounds)


@pytest.mark.parametrize("combine", [lambda o: WeightedSum({o: 0.0}), lambda o: Threshold(NAMED, o, 0.0)])
def test_parts_that_are_not_finite_are_not_hidden(images, combine):
    with pytest.raises(ValueError, match="objective: bad gave a score that is not finite"):
        combine(Constant(math.nan, "bad"))(images, PROMPTS)


# --- what an objective gives, and its name ---


def test_scores_are_checked_and_given_in_fp32(images):
    scores = checked_scores(lambda i, p: torch.tensor([1, 2, 3]), images, PROMPTS)
    assert scores.dtype == torch.float32 and scores.tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.zeros(3, 1), r"gave \(3, 1\), expected a tensor \(3,\)"),
        (torch.zeros(()), r"gave \(\), expected a tensor \(3,\)"),
        ([1.0, 2.0, 3.0], r"gave list, expected a tensor \(3,\)"),
        (torch.tensor([0, math.inf, math.nan]), "is not finite for 'a small blue sphere'"),
    ],
)
def test_anything_but_a_finite_number_a_picture_is_refused(images, given, message):
    with pytest.raises(ValueError, match=message):
        checked_scores(lambda i, p: given, images, PROMPTS)


def test_names_are_stable():
    assert name_of(brightness) == f"{__name__}:brightness"
    assert name_of(NAMED) == "two"


def nested():
    def inner(images, prompts):
        return brightness(images, prompts)

    return inner


@pytest.mark.parametrize(
    "nameless",
    [
        lambda i, p: brightness(i, p),
        nested(),
        NAMELESS,
        NAMELESS.__call__,
        Constant(1.0, ""),
        functools.partial(brightness),
    ],
)
def test_what_has_no_stable_name_is_refused(nameless):
    with pytest.raises(ValueError, match="expected a `name` attribute or a function of a module, got"):
        name_of(nameless)


# --- by name ---

load = functools.partial(load_objective, more={"clip": embedded_clip})


def test_a_loaded_objective_has_the_name_it_was_loaded_by(folder):
    for spec in ("clip", f"clip:{folder}", f"{__name__}:brightness"):
        assert name_of(load(spec)) == spec


def test_the_aesthetic_predictor_is_named_by_its_file(folder, head):
    assert aesthetic(head, folder).name == f"aesthetic:{head}"


def test_a_callable_is_loaded_by_import_path():
    assert load_objective(f"{__name__}:brightness") is brightness
    assert load_objective(f"{__name__}:NAMED") is NAMED


EXPECTED = "expected clip, clip:MODEL, pickscore, hpsv2:FOLDER, aesthetic:FILE.safetensors or MODULE:FUNCTION"


@pytest.mark.parametrize("spec", ["", "nothing", "clip:", "hpsv2", "hpsv2:", "aesthetic", "os:", ":", "CLIP"])
def test_other_names_are_refused_with_the_choices(spec):
    with pytest.raises(ValueError, match=f"^objective: {EXPECTED}, got '{spec}'$"):
        load(spec)


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("no_such_module:score", "No module named 'no_such_module'"),
        (":score", "Empty module name"),
        ("{module}:missing", "test_objectives has no function 'missing'"),
        ("{module}:NUMBER", "has no function 'NUMBER'"),
        ("{module}:Constant", "has no function 'Constant'"),
        ("{module}:NAMELESS", "expected a `name` attribute or a function of a module"),
        ("pickscore:x", "No module named 'pickscore'"),
        ("aesthetic:{tmp}/absent.safetensors", "No such file"),
        ("aesthetic:{tmp}/text.safetensors", "header"),
        ("aesthetic:{tmp}/other.safetensors", r"weights: expected layers.N.weight"),
        ("clip:{tmp}", "safetensors|config"),
        ("hpsv2:{tmp}", "safetensors|config"),
    ],
)
def test_what_cannot_be_loaded_is_refused_with_the_reason_and_the_choices(spec, why, tmp_path: Path):
    (tmp_path / "text.safetensors").write_text("not tensors")
    save_file({"other": torch.ones(1)}, tmp_path / "other.safetensors")
    spec = spec.format(module=__name__, tmp=tmp_path)
    with pytest.raises(ValueError, match=f"^objective: cannot load '{spec}': .*({why}).*; {EXPECTED}$"):
        load(spec)
