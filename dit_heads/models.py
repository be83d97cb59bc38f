"""The model that a command names: the embedded one, a folder in diffusers' format, or an id of the hub."""

from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from accelerate import init_empty_weights
from diffusers import DiffusionPipeline

import dit_heads.embedded
from dit_heads.embedded import load_embedded
from dit_heads.errors import InputError
from dit_heads.families import FAMILIES, HeadLayout, layout_of

EMBEDDED = {"embedded": "sd3", "embedded/sd3": "sd3", "embedded/flux": "flux"}


def load_pipeline(model: str, dtype: str = "auto", device: str = "auto") -> Any:
    """The pipeline of a model, on its device. Raises ValueError if it cannot be had."""
    quiet_loading()
    place = torch_device(device)
    number = torch_dtype(dtype, place)
    if model in EMBEDDED:
        return load_embedded(EMBEDDED[model]).to(place, number)
    try:
        pipe = DiffusionPipeline.from_pretrained(model, dtype=number, use_safetensors=True)
    # Whatever a damaged folder makes the libraries below raise, the reason for the user is the same.
    except Exception as error:
        raise InputError(f"model: cannot load '{model}': {_one_line(error)}") from error
    return pipe.to(place)


def empty_transformer(model: str) -> torch.nn.Module:
    """The model's transformer without its weights: enough to tell its heads, and there at once.

    Raises ValueError if the model cannot be found or its transformer is of a class that is not supported.
    """
    where = _location(model)
    transformer_class = getattr(diffusers, _transformer_class(model, where))
    try:
        config = transformer_class.load_config(where, subfolder="transformer")
        with init_empty_weights():
            return transformer_class.from_config(config)
    except Exception as error:
        message = f"model: the transformer of '{model}' has no usable config: {_one_line(error)}"
        raise InputError(message) from error


def head_layout(model: str) -> HeadLayout:
    """The blocks and heads of a model, from its configs alone. Raises ValueError as `empty_transformer`."""
    return layout_of(empty_transformer(model))


def _transformer_class(model: str, where: str) -> str:
    """The class of the model's transformer by its model_index.json, if heads can be guided in it."""
    try:
        parts: Any = DiffusionPipeline.load_config(where)
        kind = dict(parts).get("transformer", (None, None))[1]
    except Exception as error:
        raise InputError(f"model: cannot read '{model}': {_one_line(error)}") from error
    if kind not in FAMILIES:
        raise InputError(
            f"model: expected a pipeline with one of {', '.join(FAMILIES)}, "
            f"'{model}' is a {parts.get('_class_name')} with {kind or 'no transformer'}"
        )
    return kind


def torch_device(name: str) -> torch.device:
    """`auto` is CUDA if there is any, else MPS, else the CPU. Raises ValueError if it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device: '{name}' cannot be used here: {_one_line(error)}") from error


def torch_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is float32 on a CPU, where half precision is slow on many machines, and bfloat16 elsewhere."""
    if name == "auto":
        name = "float32" if device.type == "cpu" else "bfloat16"
    return getattr(torch, name)


def _location(model: str) -> str:
    """Where diffusers finds the model's configs: a folder, or an id of the hub."""
    if model in EMBEDDED:
        return str(Path(dit_heads.embedded.__file__).parent / "weights" / EMBEDDED[model])
    path = Path(model).expanduser()
    if path.exists() and not (path / "model_index.json").is_file():
        raise InputError(f"model: '{model}' is not a folder in diffusers' format (no model_index.json in it)")
    if not path.exists() and (model.count("/") != 1 or model.startswith((".", "/", "~"))):
        raise InputError(
            f"model: expected {', '.join(EMBEDDED)}, a folder, or an id such as 'owner/name', got '{model}'"
        )
    return str(path) if path.exists() else model


def quiet_loading() -> None:
    """One progress bar is for the pictures; the ones of loading say nothing that a user waits for."""
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity_error()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
