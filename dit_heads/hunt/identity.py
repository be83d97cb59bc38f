"""All that a score depends on beside the picture's own settings, as JSON. The log of a search begins with it.

Versions of libraries and folders of models are left out, so that a search may resume on another machine.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from dit_heads.errors import InputError
from dit_heads.io.fingerprints import content_hash, fingerprint, tensor_hash
from dit_heads.objectives import Objective, name_of, parts_of

# Written into configs by libraries, about themselves.
_FOREIGN = ("architectures", "transformers_version", "dtype", "torch_dtype", "name_or_path")


def pipeline_identity(pipe: Any) -> dict[str, Any]:
    """Describe a pipeline.

    Returns:
        Its class, and the identity of each component; see `part_identity`.
    """
    parts = {name: part_identity(part) for name, part in sorted(pipe.components.items())}
    return {"pipeline": type(pipe).__name__, "components": parts}


def objective_identity(objective: Objective) -> dict[str, Any]:
    """Describe an objective.

    Returns:
        Its name, and the identity of each part that its scores depend on.
    """
    parts = {name: part_identity(part) for name, part in sorted(parts_of(objective).items())}
    return {"objective": name_of(objective), "objective_parts": parts}


def part_identity(part: Any) -> Any:
    """Describe all that the results of a component depend on.

    Returns:
        As JSON: weights, config and adapters of a model, content of a tokenizer, config of a scheduler or
        image processor.

    Raises:
        InputError: for a component of another kind.
    """
    if isinstance(part, nn.Module):
        return _module(part)
    if callable(getattr(part, "get_vocab", None)):
        return _tokenizer(part)
    if hasattr(part, "config") or hasattr(part, "to_dict"):
        return {"class": type(part).__name__, "config": _config(part)}
    return plain(part, "component")


def plain(value: Any, name: str) -> Any:
    """A value as JSON; tensors, arrays and pictures by a hash of their content.

    Args:
        value: of an argument of a call, or of an option.
        name: of the value, for the error.

    Raises:
        InputError: for anything that cannot be told apart by content.
    """
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, Tensor):
        return {"tensor": tensor_hash(value, name)}
    if isinstance(value, np.ndarray):
        return {"array": tensor_hash(torch.from_numpy(value), name)}
    if isinstance(value, Image.Image):
        return {"picture": content_hash(value.mode, str(value.size), value.tobytes())}
    if isinstance(value, torch.dtype | torch.device):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, Sequence | set | frozenset):
        return [plain(item, name) for item in (value if isinstance(value, Sequence) else sorted(value))]
    raise InputError(f"{name}: expected numbers, text, tensors or pictures, got {type(value).__name__}")


def _module(module: nn.Module) -> dict[str, Any]:
    dtypes = sorted({str(t.dtype).removeprefix("torch.") for t in module.parameters()})
    found: dict[str, Any] = {"class": type(module).__name__, "dtype": " ".join(dtypes)}
    found["weights"] = fingerprint(module)
    if config := _config(module):
        found["config"] = config
    if adapters := list(_adapters(module)):
        found["adapters"] = sorted({name for _, active, *_ in adapters for name in active})
        found["adapter_scales"] = content_hash(json.dumps(adapters))
    return found


def _adapters(module: nn.Module) -> Iterator[tuple[str, Any, Any, bool]]:
    """(path, active adapters, scales, switched off) of every layer under peft or under an IP-Adapter."""
    for path, layer in module.named_modules():
        scaling = getattr(layer, "scaling", None)
        if isinstance(scaling, Mapping):
            active, off = (
                plain(getattr(layer, "active_adapters", []), path),
                getattr(layer, "disable_adapters", False),
            )
            yield path, active, plain(scaling, path), bool(off)
        scale = getattr(getattr(layer, "processor", None), "scale", None)
        if isinstance(scale, float | int | list):
            yield path, ["ip_adapter"], plain(scale, path), False


def _tokenizer(tokenizer: Any) -> dict[str, Any]:
    """Every rule of a tokenizer. Padding and truncation are left out: calls change them."""
    rules: dict[str, Any] = {"vocabulary": tokenizer.get_vocab(), "length": tokenizer.model_max_length}
    rules["special"] = {key: str(token) for key, token in tokenizer.special_tokens_map.items()}
    if (backend := getattr(tokenizer, "backend_tokenizer", None)) is not None:
        rules |= json.loads(backend.to_str()) | {"padding": None, "truncation": None}
    return {"class": type(tokenizer).__name__, "content": content_hash(json.dumps(rules, sort_keys=True))}


def _config(part: Any) -> dict[str, Any]:
    config = getattr(part, "config", part)
    found = config.to_dict() if hasattr(config, "to_dict") else config
    return _own(found) if isinstance(found, Mapping) else {}


def _own(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config as files store it, without values that are no JSON and entries that libraries add."""
    kept = {
        str(key): _own(value) if isinstance(value, Mapping) else value
        for key, value in config.items()
        if not str(key).startswith("_") and key not in _FOREIGN and _is_json(value)
    }
    return json.loads(json.dumps(kept))


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return isinstance(value, Mapping)
    return True
