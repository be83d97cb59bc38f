"""What a search maximises: an objective scores pictures for their prompts, higher is better.

Any function of pictures and prompts will do. Those here are differentiable in the pictures, so that the fast
search can take their gradient. Weights are safetensors only; HPSv2 and LAION's aesthetic predictor are
published as pickles, which `dit_heads.objectives.convert` turns into safetensors once:

    python -c "from dit_heads.objectives.convert import convert_hpsv2; \
        convert_hpsv2('HPS_v2_compressed.pt', 'hpsv2')"
    python -c "from dit_heads.objectives.convert import convert_aesthetic; \
        convert_aesthetic('sac+logos+ava1-l14-linearMSE.pth', 'aesthetic.safetensors')"
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn

from dit_heads.errors import InputError
from dit_heads.objectives.image_tower import OPENAI_MEAN, OPENAI_STD, ImageTower, image_tower, letterbox

LAION_H = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"  # PickScore and HPSv2 are this CLIP, trained on
CHOICES = "clip, clip:MODEL, pickscore, hpsv2:FOLDER, aesthetic:FILE.safetensors or MODULE:FUNCTION"


class Objective(Protocol):
    """A score for each picture."""

    def __call__(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[str], /) -> Float[Tensor, " b"]:
        """`images` in [0, 1], as pipelines give them with `output_type="pt"`; one prompt each."""
        ...


def name_of(objective: Objective) -> str:
    """What logs are keyed by: an objective's `name`, or MODULE:FUNCTION. Raises ValueError for a lambda, a
    nested function or an object without a name: they could not be told apart."""
    name = getattr(objective, "name", None)
    if isinstance(name, str) and name:
        return name
    function = getattr(objective, "__qualname__", "<")
    if "<" in function or "." in function:
        raise InputError(
            f"objective: expected a `name` attribute or a function of a module, got {objective!r}"
        )
    return f"{objective.__module__}:{function}"


def checked_scores(objective: Objective, images: Tensor, prompts: Sequence[str]) -> Float[Tensor, " b"]:
    """The objective's scores, fp32, where the pictures are. Raises ValueError if they are not one finite
    number a picture."""
    scores = objective(images, prompts)
    called = getattr(objective, "name", getattr(objective, "__qualname__", type(objective).__name__))
    if not isinstance(scores, Tensor) or scores.shape != (len(prompts),):
        came = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise InputError(f"objective: {called} gave {came}, expected a tensor ({len(prompts)},)")
    if not scores.isfinite().all():
        odd = prompts[int((~scores.isfinite()).nonzero()[0])]
        raise InputError(f"objective: {called} gave a score that is not finite for '{odd}'")
    return scores.to(images.device, torch.float32)


# --- CLIP and what is built on it ---


class ClipSimilarity:
    """Cosine of picture and prompt in a CLIP (arXiv 2103.00020), times `factor`.

    PickScore (arXiv 2305.01569) and HPSv2 (arXiv 2306.09341) are this on weights of their own. `text` holds
    `text_model` and `text_projection`. Raises ValueError for a tokenizer of other ids than the model's."""

    def __init__(
        self, text: Any, image: ImageTower, tokenizer: Any, *, name: str, factor: float = 1.0
    ) -> None:
        self.text, self.image, self.tokenizer = text.eval().requires_grad_(False), image, tokenizer
        self.name, self.factor = name, factor
        config, end = text.text_model.config, tokenizer.eos_token_id
        # Old configs say 2 and mean the highest id. A folder without a tokenizer gives one of two words.
        expected = config.vocab_size - 1 if config.eos_token_id == 2 else config.eos_token_id
        if end != expected:
            came = f"{name} has one of {len(tokenizer)} tokens with {end}"
            raise InputError(f"tokenizer: expected one that ends texts with id {expected}, {came}")

    def __call__(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[str]) -> Float[Tensor, " b"]:
        _check(images, prompts)
        return self.factor * (self.image(images) * self.embed_texts(prompts, images.device)).sum(-1)

    def embed_texts(self, prompts: Sequence[str], device: torch.device) -> Float[Tensor, "b d"]:
        """Unit vectors; what exceeds the model's positions is cut off."""
        length = self.text.text_model.config.max_position_embeddings
        options = {"padding": "max_length", "max_length": length, "truncation": True, "return_tensors": "pt"}
        ids = self.tokenizer(list(prompts), **options).input_ids.to(device)
        said = self.text.to(device).text_model(input_ids=ids).pooler_output
        return F.normalize(self.text.text_projection(said).float(), dim=-1)


class AestheticScore:
    """LAION's improved aesthetic predictor, about 1 to 10: linear layers, nothing between them, on the unit
    vector of CLIP ViT-L/14 (github.com/christophschuhmann/improved-aesthetic-predictor). Prompts do not
    matter. Raises ValueError for a head of vectors of another width."""

    def __init__(self, image: ImageTower, head: nn.Sequential, *, name: str = "aesthetic") -> None:
        self.image, self.head, self.name = image, head.eval().requires_grad_(False), name
        given, wanted = image.model.visual_projection.out_features, head[0].in_features
        if given != wanted:
            raise InputError(f"head: expected vectors of {wanted}, the CLIP gives vectors of {given}")

    def __call__(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[str]) -> Float[Tensor, " b"]:
        _check(images, prompts)
        return self.head.to(images.device)(self.image(images)).squeeze(-1)


def _check(images: Tensor, prompts: Sequence[str]) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        came = f"{tuple(images.shape)} of {images.dtype}"
        raise InputError(f"images: expected [B, 3, H, W] of floats in [0, 1], got {came}")
    if isinstance(prompts, str) or len(prompts) != len(images):
        came = repr(prompts) if isinstance(prompts, str) else len(prompts)
        raise InputError(f"prompts: expected a list of {len(images)}, one a picture, got {came}")


# --- combinations ---


class WeightedSum:
    """The sum of objectives, each times its weight. Raises ValueError for no objective or a weight that is
    not finite."""

    def __init__(self, weights: Mapping[Objective, float]) -> None:
        if not weights or not all(math.isfinite(w) for w in weights.values()):
            came = list(weights.values())
            raise InputError(f"weights: expected a finite number for each objective, got {came}")
        self.weights = dict(weights)
        self.name = " + ".join(f"{w:.12g} {_part(o)}" for o, w in weights.items())

    def __call__(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[str]) -> Float[Tensor, " b"]:
        return torch.stack([w * checked_scores(o, images, prompts) for o, w in self.weights.items()]).sum(0)


class Threshold:
    """`objective` where `gate` scores at least `at_least`, and `otherwise` where it does not."""

    def __init__(
        self, objective: Objective, gate: Objective, at_least: float, otherwise: float = 0.0
    ) -> None:
        if not (math.isfinite(at_least) and math.isfinite(otherwise)):
            raise InputError(f"at_least, otherwise: expected finite numbers, got {at_least}, {otherwise}")
        self.objective, self.gate, self.at_least, self.otherwise = objective, gate, at_least, otherwise
        self.name = f"{_part(objective)} if {_part(gate)} >= {at_least:.12g} else {otherwise:.12g}"

    def __call__(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[str]) -> Float[Tensor, " b"]:
        scores = checked_scores(self.objective, images, prompts)
        passed = checked_scores(self.gate, images, prompts) >= self.at_least
        return torch.where(passed, scores, self.otherwise)


def _part(objective: Objective) -> str:
    name = name_of(objective)
    return f"({name})" if " " in name else name


# --- by name ---


def load_objective(spec: str) -> Objective:
    """An objective by its name, which `name_of` gives again. CHOICES lists them; FUNCTION is any callable
    that can be imported. Raises ValueError for other names and for what cannot be loaded."""
    kind, _, rest = spec.partition(":")
    try:
        if spec in _NAMED:
            return _NAMED[spec]()
        if rest:
            return _LOADED[kind](rest) if kind in _LOADED else _imported(kind, rest)
    # Whatever a damaged file or a foreign module raises, the reason for the user is the same.
    except Exception as error:
        why = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(f"objective: cannot load '{spec}': {why}; expected {CHOICES}") from error
    raise InputError(f"objective: expected {CHOICES}, got '{spec}'")


def embedded_clip() -> ClipSimilarity:
    """The CLIP that ships, trained on the blocks world."""
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionModelWithProjection

    # Stock folders, read as such: the core does not import the embedded models.
    weights = Path(__file__).parents[1] / "embedded" / "weights"
    options: dict[str, Any] = {"use_safetensors": True, "local_files_only": True, "dtype": torch.float32}
    text = CLIPTextModelWithProjection.from_pretrained(weights / "sd3" / "text_encoder", **options)
    vision = CLIPVisionModelWithProjection.from_pretrained(weights / "clip", **options)
    tokenizer = CLIPTokenizer.from_pretrained(weights / "sd3" / "tokenizer", local_files_only=True)
    return ClipSimilarity(text, ImageTower(vision, (0.5,) * 3, (0.5,) * 3), tokenizer, name="clip")


def clip(model: str, *, processor: str | None = None) -> ClipSimilarity:
    """Any CLIP in the format of transformers, by folder or hub id; `processor` is where its tokenizer and its
    mean, deviation and size are, if not there too."""
    found, source = _clip_model(model), processor or model
    return ClipSimilarity(found, image_tower(found, source), _tokenizer(source), name=f"clip:{model}")


def pickscore(model: str = "yuvalkirstain/PickScore_v1", processor: str = LAION_H) -> ClipSimilarity:
    """PickScore (arXiv 2305.01569), about 15 to 25: the cosine times the learned inverse temperature."""
    found = _clip_model(model)
    image, factor = image_tower(found, processor), found.logit_scale.exp().item()
    return ClipSimilarity(found, image, _tokenizer(processor), name="pickscore", factor=factor)


def hpsv2(folder: str, tokenizer: str = LAION_H) -> ClipSimilarity:
    """HPSv2 (arXiv 2306.09341), about 0.2 to 0.3: the plain cosine. `convert_hpsv2` makes the folder."""
    found = _clip_model(folder)
    fit = partial(letterbox, size=found.vision_model.config.image_size)
    image = ImageTower(found, OPENAI_MEAN, OPENAI_STD, fit)
    return ClipSimilarity(found, image, _tokenizer(tokenizer), name=f"hpsv2:{folder}")


def aesthetic(head: str, model: str = "openai/clip-vit-large-patch14") -> AestheticScore:
    """LAION's predictor from a safetensors file of its layers, which `convert_aesthetic` makes."""
    layers = aesthetic_head(load_file(head))
    return AestheticScore(image_tower(_clip_model(model), model), layers, name=f"aesthetic:{head}")


def aesthetic_head(weights: Mapping[str, Tensor]) -> nn.Sequential:
    """The linear layers, `layers.0.weight` ...; numbers are skipped where the original has dropout. Raises
    ValueError for other names and for widths that do not lead to one number."""
    numbers = sorted({int(n) for k in weights for n in re.findall(r"^layers\.(\d+)\.", k)})
    names = {f"layers.{n}.{part}" for n in numbers for part in ("weight", "bias")}
    if not numbers or names != set(weights):
        raise InputError(
            f"weights: expected layers.N.weight and layers.N.bias, got {', '.join(sorted(weights))}"
        )
    widths = [tuple(weights[f"layers.{n}.weight"].shape) for n in numbers]
    matrices = all(len(w) == 2 for w in widths)
    if not matrices or widths[-1][0] != 1 or any(a[0] != b[1] for a, b in pairwise(widths)):
        raise InputError(f"weights: expected layers that lead to one number, got shapes {widths}")
    head = nn.Sequential(*(nn.Linear(inner, outer) for outer, inner in widths))
    for layer, n in zip(head, numbers, strict=True):
        layer.load_state_dict({part: weights[f"layers.{n}.{part}"] for part in ("weight", "bias")})
    return head


def _clip_model(model: str) -> Any:
    from transformers import CLIPModel

    options: dict[str, Any] = {"use_safetensors": True, "dtype": torch.float32, "output_loading_info": True}
    loaded: Any = CLIPModel.from_pretrained(model, **options)
    found, report = loaded
    if lacking := sorted(report["missing_keys"]):
        raise InputError(f"model: expected a whole CLIP, '{model}' has no {', '.join(lacking[:5])}")
    return found


def _tokenizer(source: str) -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(source)


def _imported(module: str, function: str) -> Objective:
    found = getattr(import_module(module), function, None)
    if not callable(found) or isinstance(found, type):
        raise InputError(f"{module} has no function '{function}'")
    objective = cast(Objective, found)
    name_of(objective)
    return objective


_NAMED: dict[str, Callable[[], Objective]] = {"clip": embedded_clip, "pickscore": pickscore}
_LOADED: dict[str, Callable[[str], Objective]] = {"clip": clip, "hpsv2": hpsv2, "aesthetic": aesthetic}
