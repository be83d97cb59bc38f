"""Conversion of published pickles of scoring models into safetensors. `objectives.clip` shows the commands.

Pickles are read with torch's `weights_only`, which builds tensors and runs no code.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dit_heads.errors import InputError
from dit_heads.io.atomic import write_tensors, write_text
from dit_heads.objectives.clip import aesthetic_head

# open_clip's names -> names in transformers. The parts of a block are listed once.
_TOWERS = {
    "visual.transformer.resblocks": "vision_model.encoder.layers",
    "transformer.resblocks": "text_model.encoder.layers",
}
_BLOCK = {
    "ln_1": "layer_norm1",
    "attn.out_proj": "self_attn.out_proj",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_OUTSIDE = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "visual.proj": "visual_projection.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "text_projection": "text_projection.weight",
    "logit_scale": "logit_scale",
}
_TRANSPOSED = ("visual.proj", "text_projection")


def convert_hpsv2(
    pickle_path: str | Path, folder: str | Path, *, text_head: int = 64, vision_head: int = 80
) -> None:
    """Convert HPSv2's checkpoint, a ViT-H-14 of open_clip, into a CLIP folder of transformers.

    Args:
        pickle_path: the published checkpoint.
        folder: the folder to write. It gets no tokenizer.
        text_head: channels per head of the text model, which the weights do not tell.
        vision_head: channels per head of the vision model.

    Raises:
        InputError: for a file that cannot be read, and for weights of another model.
    """
    state = _read(pickle_path).get("state_dict")
    if not isinstance(state, Mapping):
        raise InputError(f"pickle_path: expected open_clip's 'state_dict' in '{pickle_path}', found none")
    tensors = renamed(state)
    config = _config(state, text_head, vision_head)
    _check_shapes(tensors, config)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / "model.safetensors", tensors, {"format": "pt"})
    write_text(folder / "config.json", config.to_json_string())


def convert_aesthetic(pickle_path: str | Path, out: str | Path) -> None:
    """Convert LAION's aesthetic predictor into a safetensors file with the same names.

    Args:
        pickle_path: the published pickle of `layers.0.weight` and so on.
        out: the file to write.

    Raises:
        InputError: for a file that cannot be read, and for weights of another model.
    """
    weights = _read(pickle_path)
    aesthetic_head(weights)
    write_tensors(Path(out), dict(weights), {"format": "pt"})


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of open_clip's weights under the names of transformers' CLIPModel.

    Args:
        state: weights of a CLIP with two ViTs.

    Raises:
        InputError: for missing and unknown weights.
    """
    names = _names({tower: _depth(state, tower) for tower in _TOWERS})
    if names.keys() != state.keys():
        missing, unknown = _some(names.keys() - state.keys()), _some(state.keys() - names.keys())
        raise InputError(f"state_dict: expected open_clip's ViT; missing: {missing}; unknown: {unknown}")
    tensors: dict[str, Tensor] = {}
    for theirs, ours in names.items():
        tensor = state[theirs].T if theirs in _TRANSPOSED else state[theirs]
        parts = tensor.chunk(len(ours)) if len(ours) > 1 else (tensor,)
        tensors |= {name: part.clone() for name, part in zip(ours, parts, strict=True)}
    return tensors


def _names(depths: Mapping[str, int]) -> dict[str, tuple[str, ...]]:
    """New names of each weight: three for the joint projection of queries, keys and values, else one."""
    names = {theirs: (ours,) for theirs, ours in _OUTSIDE.items()}
    for tower, depth in depths.items():
        for n in range(depth):
            old, new = f"{tower}.{n}", f"{_TOWERS[tower]}.{n}"
            for part in ("weight", "bias"):
                joint = tuple(f"{new}.self_attn.{p}_proj.{part}" for p in "qkv")
                names |= {f"{old}.attn.in_proj_{part}": joint}
                names |= {f"{old}.{a}.{part}": (f"{new}.{b}.{part}",) for a, b in _BLOCK.items()}
    return names


def _depth(state: Mapping[str, Tensor], tower: str) -> int:
    numbers = [re.match(rf"{re.escape(tower)}\.(\d+)\.", name) for name in state]
    return 1 + max((int(n[1]) for n in numbers if n), default=0)


def _config(state: Mapping[str, Tensor], text_head: int, vision_head: int) -> Any:
    """A CLIPConfig from the shapes of weights by open_clip's names. open_clip ends texts with its last id."""
    from transformers import CLIPConfig

    vision, text = _tower(state, "visual.", vision_head), _tower(state, "", text_head)
    positions, patch = len(state["visual.positional_embedding"]), state["visual.conv1.weight"].shape[-1]
    vision |= {"image_size": math.isqrt(positions - 1) * patch, "patch_size": patch}
    length, words = len(state["positional_embedding"]), len(state["token_embedding.weight"])
    text |= {"max_position_embeddings": length, "vocab_size": words}
    text |= {"bos_token_id": words - 2, "eos_token_id": words - 1}
    width = state["text_projection"].shape[-1]
    return CLIPConfig(
        text_config=text, vision_config=vision, projection_dim=width, architectures=["CLIPModel"]
    )


def _tower(state: Mapping[str, Tensor], prefix: str, head: int) -> dict[str, Any]:
    tower = f"{prefix}transformer.resblocks"
    inner, width = state[f"{tower}.0.mlp.c_fc.weight"].shape
    if width % head:
        name = "vision_head" if prefix else "text_head"
        raise InputError(f"{name}: expected a divisor of the width {width}, got {head}")
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": _depth(state, tower),
        "num_attention_heads": width // head,
        "projection_dim": state["text_projection"].shape[-1],
        "hidden_act": "gelu",
    }


def _check_shapes(tensors: Mapping[str, Tensor], config: Any) -> None:
    from transformers import CLIPModel

    with torch.device("meta"):
        expected = CLIPModel(config).state_dict()
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            shapes = f"{tuple(expected[name].shape)}, got {tuple(tensor.shape)}"
            raise InputError(f"state_dict: expected {name} to be {shapes}")


def _read(pickle_path: str | Path) -> Mapping[str, Any]:
    try:
        found = torch.load(pickle_path, map_location="cpu", weights_only=True)
    # torch raises different exceptions for foreign, broken and forbidden files.
    except Exception as error:
        why = " ".join(str(error).split())[:300]
        raise InputError(f"pickle_path: cannot read '{pickle_path}' as tensors: {why}") from error
    if not isinstance(found, Mapping):
        raise InputError(f"pickle_path: expected a dictionary in '{pickle_path}', got {type(found).__name__}")
    return found


def _some(names: Iterable[str]) -> str:
    first = sorted(names)
    return ", ".join(first[:8]) + (f" and {len(first) - 8} more" if len(first) > 8 else "") or "none"
