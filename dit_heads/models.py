"""The model that a command names: the embedded one, a folder in diffusers' format, or an id of the hub."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, DiffusionPipeline

from dit_heads.embedded import TEXT_TOKENS, WEIGHTS, load_embedded
from dit_heads.errors import InputError
from dit_heads.families import FAMILIES, HeadLayout, family_of, layout_of
from dit_heads.io.quiet import quiet_libraries
from dit_heads.objectives.image_tower import ImageTower

EMBEDDED = {"embedded": "sd3", "embedded/sd3": "sd3", "embedded/flux": "flux"}


def load_pipeline(model: str, dtype: str = "auto", device: str = "auto") -> Any:
    """Load the pipeline of a model.

    Args:
        model: "embedded", "embedded/flux", a folder in diffusers' format, or a model id of the hub.
        dtype: name of a number format; "auto" as in `torch_dtype`.
        device: where it goes; "auto" as in `torch_device`.

    Raises:
        InputError: the model cannot be loaded, or the device cannot be used.
    """
    place = torch_device(device)
    number = torch_dtype(dtype, place)
    with quiet_libraries():
        if model in EMBEDDED:
            return load_embedded(EMBEDDED[model]).to(place, number)
        try:
            pipe = DiffusionPipeline.from_pretrained(model, dtype=number, use_safetensors=True)
        # Whatever a damaged folder makes the libraries below raise, the reason for the user is the same.
        except Exception as error:
            raise InputError(f"model: cannot load '{model}': {_one_line(error)}") from error
        return pipe.to(place)


def load_image_tower(name: str) -> ImageTower:
    """The image tower of a CLIP.

    Args:
        name: "embedded", or a folder or hub id of a CLIP in the format of transformers.

    Raises:
        InputError: for a CLIP that cannot be read, lacks weights, or prepares pictures in another way.
    """
    from dit_heads.embedded.objective import embedded_clip
    from dit_heads.objectives.clip import clip

    return (embedded_clip() if name == "embedded" else clip(name)).image


def text_arguments(model: str) -> dict[str, Any]:
    """The arguments about text of a pipeline's call that a model wants otherwise than by default."""
    return {"max_sequence_length": TEXT_TOKENS} if model in EMBEDDED else {}


def empty_transformer(model: str) -> torch.nn.Module:
    """The model's transformer without its weights: enough to tell its heads, and there at once.

    Raises:
        InputError: if the model cannot be found, or its transformer is of a class that is not supported.
    """
    transformer_class = getattr(diffusers, _transformer_class(model))
    config = _config(transformer_class, model, "transformer")
    try:
        with init_empty_weights():
            return transformer_class.from_config(config)
    except Exception as error:
        raise InputError(_unusable(model, "transformer", error)) from error


def head_layout(model: str) -> HeadLayout:
    """The blocks and heads of a model, from its configs alone. Raises `InputError` as `empty_transformer`."""
    return layout_of(empty_transformer(model))


def check_size(model: str, transformer: torch.nn.Module, **sides: int | None) -> None:
    """Refuse a picture that the model's pipeline would draw in another size, or not at all.

    Args:
        model: the model's name.
        transformer: its transformer, as `empty_transformer` gives it.
        sides: `width` and `height` in pixels; None is the model's own.

    Raises:
        InputError: naming the nearest sizes that there are.
    """
    pipelines = family_of(transformer).pipelines
    if pipelines is None:
        return
    step = _vae_factor(model) * pipelines.patch
    _, most = model_sides(model, transformer)
    for name, side in sides.items():
        if side is not None and side % step:
            below = side - side % step
            near = f"{below} and {below + step}" if below else f"{step}"
            raise InputError(
                f"{name}: expected a multiple of {step} pixels for this model, got {side}; nearest: {near}"
            )
        if side is not None and most is not None and side > most:
            raise InputError(
                f"{name}: expected at most {most} pixels, as far as this model's positions reach, got {side}"
            )


def model_sides(model: str, transformer: Any) -> tuple[int, int | None]:
    """The side of a model's pictures, and the largest one that its positions reach, None for any.

    Args:
        model: the model's name.
        transformer: its transformer, as `empty_transformer` gives it.
    """
    factor, pipelines = _vae_factor(model), family_of(transformer).pipelines
    latents = 16 if model in EMBEDDED else transformer.config.get("sample_size", 128)
    there = SimpleNamespace(transformer=transformer, vae_scale_factor=factor)
    return latents * factor, None if pipelines is None else pipelines.largest_side(there)


def _vae_factor(model: str) -> int:
    """Pixels along a side of one latent."""
    return 2 ** (len(_config(AutoencoderKL, model, "vae")["block_out_channels"]) - 1)


def _config(kind: Any, model: str, part: str) -> Any:
    """The config of a part of a model, without its weights."""
    try:
        return kind.load_config(_location(model, part), subfolder=part)
    except Exception as error:
        raise InputError(_unusable(model, part, error)) from error


def _unusable(model: str, part: str, error: Exception) -> str:
    return f"model: the {part} of '{model}' has no usable config: {_one_line(error)}"


def pipeline_class(model: str) -> str:
    """The name of the model's pipeline class. Raises `InputError` if the model cannot be found."""
    return str(_index(model)[0])


def _transformer_class(model: str) -> str:
    """The class of the model's transformer by its model_index.json, if heads can be guided in it."""
    pipeline, kind = _index(model)
    if kind not in FAMILIES:
        raise InputError(
            f"model: expected a pipeline with one of {', '.join(FAMILIES)}, "
            f"'{model}' is a {pipeline} with {kind or 'no transformer'}"
        )
    return kind


def _index(model: str) -> tuple[Any, Any]:
    """The classes of the model's pipeline and of its transformer, by its model_index.json."""
    where = _location(model)
    try:
        parts: Any = DiffusionPipeline.load_config(where)
        return parts.get("_class_name"), dict(parts).get("transformer", (None, None))[1]
    except Exception as error:
        raise InputError(f"model: cannot read '{model}': {_one_line(error)}") from error


def torch_device(name: str) -> torch.device:
    """`auto` is CUDA if there is any, else MPS, else the CPU. Raises `InputError` if it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name.startswith("meta"):
        raise InputError(f"device: expected one that holds numbers, such as cpu or cuda, got '{name}'")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device: '{name}' cannot be used here: {_one_line(error)}") from error


def torch_dtype(name: str, device: torch.device) -> torch.dtype:
    """A number format by its name. "auto" is float32 on a CPU, where half precision is slow on many machines,
    and bfloat16 elsewhere."""
    if name == "auto":
        name = "float32" if device.type == "cpu" else "bfloat16"
    return getattr(torch, name)


def _location(model: str, part: str = "") -> str:
    """Where diffusers finds the configs of a model, or of a part of it: a folder, or an id of the hub."""
    if model in EMBEDDED:
        own = WEIGHTS / EMBEDDED[model]
        # The embedded FLUX has the autoencoder and the text encoders of the embedded SD3.
        return str(own if (own / part).exists() else WEIGHTS / "sd3")
    path = Path(model).expanduser()
    if path.exists() and not (path / "model_index.json").is_file():
        raise InputError(f"model: '{model}' is not a folder in diffusers' format (no model_index.json in it)")
    if not path.exists() and (model.count("/") != 1 or model.startswith((".", "/", "~"))):
        raise InputError(
            f"model: expected {', '.join(EMBEDDED)}, a folder, or an id such as 'owner/name', got '{model}'"
        )
    return str(path) if path.exists() else model


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
