"""CLIP and scores built on it: PickScore, HPSv2, LAION's aesthetic predictor.

All are differentiable with respect to the pictures, which the fast search needs. Weights are read from
safetensors only. HPSv2 and LAION's aesthetic predictor are published as pickles; convert them once with
`dit_heads.objectives.convert`:

    python -c "from dit_heads.objectives.convert import convert_hpsv2; \
        convert_hpsv2('HPS_v2_compressed.pt', 'hpsv2')"
    python -c "from dit_heads.objectives.convert import convert_aesthetic; \
        convert_aesthetic('sac+logos+ava1-l14-linearMSE.pth', 'aesthetic.safetensors')"
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn

from dit_heads.errors import InputError
from dit_heads.objectives.image_tower import OPENAI_MEAN, OPENAI_STD, ImageTower, image_tower, letterbox

LAION_H = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"  # PickScore and HPSv2 are this CLIP, trained on


class ClipSimilarity:
    """Cosine similarity of picture and prompt in a CLIP (arXiv 2103.00020), times a factor.

    PickScore (arXiv 2305.01569) and HPSv2 (arXiv 2306.09341) are the same score with other weights.

    Args:
        text: a model with `text_model` and `text_projection`.
        image: the image tower.
        tokenizer: the text model's tokenizer.
        name: name of the score.
        factor: factor of the cosine.

    Raises:
        InputError: for a tokenizer whose end-of-text id is not the model's.
    """

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
        """The score of each picture.

        Args:
            images: pictures in [0, 1].
            prompts: one prompt per picture.

        Raises:
            InputError: for pictures of another shape or type, and for another number of prompts.
        """
        _check(images, prompts)
        return self.factor * (self.image(images) * self.embed_texts(prompts, images.device)).sum(-1)

    @property
    def parts(self) -> dict[str, Any]:
        """Everything that the scores depend on."""
        prepared = {"image": self.image.model, "preparation": self.image.settings}
        return {"text": self.text, "tokenizer": self.tokenizer, "factor": self.factor, **prepared}

    def embed_texts(self, prompts: Sequence[str], device: torch.device) -> Float[Tensor, "b d"]:
        """Embeddings of prompts, as unit vectors.

        Args:
            prompts: texts. Those that are longer than the model's context are truncated.
            device: device to compute on.
        """
        length = self.text.text_model.config.max_position_embeddings
        options = {"padding": "max_length", "max_length": length, "truncation": True, "return_tensors": "pt"}
        ids = self.tokenizer(list(prompts), **options).input_ids.to(device)
        hidden = self.text.to(device).text_model(input_ids=ids).pooler_output
        return F.normalize(self.text.text_projection(hidden).float(), dim=-1)


class AestheticScore:
    """LAION's improved aesthetic predictor, which gives about 1 to 10 and ignores the prompts.

    It applies linear layers, without activations, to the unit vector of CLIP ViT-L/14
    (github.com/christophschuhmann/improved-aesthetic-predictor).

    Args:
        image: the image tower of that CLIP.
        head: the linear layers.
        name: name of the score.

    Raises:
        InputError: for a head that reads vectors of another width than the CLIP's.
    """

    def __init__(self, image: ImageTower, head: nn.Sequential, *, name: str = "aesthetic") -> None:
        self.image, self.head, self.name = image, head.eval().requires_grad_(False), name
        given, wanted = image.model.visual_projection.out_features, head[0].in_features
        if given != wanted:
            raise InputError(f"head: expected vectors of {wanted}, the CLIP gives vectors of {given}")

    def __call__(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[str]) -> Float[Tensor, " b"]:
        """The score of each picture.

        Args:
            images: pictures in [0, 1].
            prompts: one prompt per picture; only their number matters.

        Raises:
            InputError: for pictures of another shape or type, and for another number of prompts.
        """
        _check(images, prompts)
        return self.head.to(images.device)(self.image(images)).squeeze(-1)

    @property
    def parts(self) -> dict[str, Any]:
        """Everything that the scores depend on."""
        return {"image": self.image.model, "preparation": self.image.settings, "head": self.head}


def _check(images: Tensor, prompts: Sequence[str]) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        came = f"{tuple(images.shape)} of {images.dtype}"
        raise InputError(f"images: expected [B, 3, H, W] of floats in [0, 1], got {came}")
    if isinstance(prompts, str) or len(prompts) != len(images):
        came = repr(prompts) if isinstance(prompts, str) else len(prompts)
        raise InputError(f"prompts: expected a list of {len(images)}, one a picture, got {came}")


# --- loading ---


def clip(model: str, *, processor: str | None = None) -> ClipSimilarity:
    """Cosine similarity in any CLIP in the format of transformers.

    Args:
        model: folder or hub id of the CLIP.
        processor: folder or hub id of its tokenizer and image processor. Default: `model`.

    Raises:
        InputError: as `ClipSimilarity` and `image_tower`, and for a CLIP that lacks weights.
    """
    found, source = _clip_model(model), processor or model
    return ClipSimilarity(found, image_tower(found, source), _tokenizer(source), name=f"clip:{model}")


def pickscore(model: str = "yuvalkirstain/PickScore_v1", processor: str = LAION_H) -> ClipSimilarity:
    """PickScore (arXiv 2305.01569), which gives about 15 to 25: the cosine times the inverse temperature.

    Args:
        model: folder or hub id of its CLIP.
        processor: folder or hub id of the tokenizer and image processor.
    """
    found = _clip_model(model)
    image, factor = image_tower(found, processor), found.logit_scale.exp().item()
    return ClipSimilarity(found, image, _tokenizer(processor), name="pickscore", factor=factor)


def hpsv2(folder: str, tokenizer: str = LAION_H) -> ClipSimilarity:
    """HPSv2 (arXiv 2306.09341), which gives about 0.2 to 0.3: the plain cosine.

    Args:
        folder: folder of its CLIP, made by `convert_hpsv2`.
        tokenizer: folder or hub id of the tokenizer.
    """
    found = _clip_model(folder)
    fit = partial(letterbox, size=found.vision_model.config.image_size)
    image = ImageTower(found, OPENAI_MEAN, OPENAI_STD, fit)
    return ClipSimilarity(found, image, _tokenizer(tokenizer), name=f"hpsv2:{folder}")


def aesthetic(head: str, model: str = "openai/clip-vit-large-patch14") -> AestheticScore:
    """LAION's aesthetic predictor.

    Args:
        head: safetensors file of its layers, made by `convert_aesthetic`.
        model: folder or hub id of the CLIP.
    """
    layers = aesthetic_head(load_file(head))
    return AestheticScore(image_tower(_clip_model(model), model), layers, name=f"aesthetic:{head}")


def aesthetic_head(weights: Mapping[str, Tensor]) -> nn.Sequential:
    """The linear layers of the aesthetic predictor.

    Args:
        weights: `layers.N.weight` [out, in] and `layers.N.bias` [out]. Numbers may have gaps, where the
            original has dropout.

    Raises:
        InputError: for other names, and for layers that do not fit together or do not end in one number.
    """
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
