"""LoRA files as others write them, by the names of a transformer's modules and at the scale they were trained
at.

Read are files of `dit_heads.loras.weights.files`, of diffusers, peft (`adapter_config.json` beside them) and
ai-toolkit, of OneTrainer (`lora_transformer_...`), and for FLUX those named as in its first release (kohya's
sd-scripts, ComfyUI), with alpha from tensors or from the config. What does not fit is an error, and so are
text encoders, which nothing here trains.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from dit_heads.errors import InputError
from dit_heads.families import family_of
from dit_heads.families._family import LoraDialect
from dit_heads.loras.weights.low_rank import (
    PEFT,
    PREFIX,
    Lora,
    LowRank,
    check_fits,
    linear_modules,
    raise_for,
    require_peft,
)

_TEXT = ("text_encoder", "lora_te", "text_encoders.")
_PARTS = {
    "lora_A.weight": "a",
    "lora_down.weight": "a",
    "lora_B.weight": "b",
    "lora_up.weight": "b",
    "lora_magnitude_vector": "magnitude",
    "alpha": "alpha",
}


def read_lora(path: str | Path, transformer: nn.Module) -> Lora:
    """The LoRA in a `.safetensors` file, by the names of the transformer's modules.

    Raises ValueError naming the first entries of a file that do not fit the transformer and counting the
    rest, for a file without a LoRA or with one of text encoders, and for any other format."""
    path = checked_suffix(path)
    tensors, header = _read(path)
    sources, problems = _grouped(tensors)
    if not any("b" in parts for parts in sources.values()):
        raise InputError(f"path: expected a LoRA in '{path}', none of its {len(tensors)} keys is of one")
    _refuse_text_encoders(path, sources)
    config, names = _config(path, header, sources), _Names(transformer)
    found: dict[str, LowRank] = {}
    for source, parts in sources.items():
        try:
            changes = names.resolve(source, _scaled(source, parts, config))
            if twice := found.keys() & changes.keys():
                raise InputError(f"gives {', '.join(sorted(twice))} a second time")
            found |= changes
        except ValueError as error:
            problems[source] = str(error)
    raise_for(problems, f"path: '{path}'", transformer)
    check_fits(Lora(found), transformer, f"path: '{path}'")
    return Lora(found)


def checked_suffix(path: str | Path) -> Path:
    """The path. Raises ValueError for another suffix than that of safetensors."""
    path = Path(path)
    if path.suffix != ".safetensors":
        raise InputError(f"path: expected a .safetensors file (never a pickle), got '{path}'")
    return path


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise InputError(f"path: cannot read '{path}' as safetensors: {error}") from error


def _grouped(tensors: Mapping[str, Tensor]) -> tuple[dict[str, dict[str, Tensor]], dict[str, str]]:
    """The parts of each module, by the name that the file gives it; keys that are no part, with a reason."""
    sources: dict[str, dict[str, Tensor]] = {}
    problems = {}
    for key, tensor in tensors.items():
        suffix = next((suffix for suffix in _PARTS if key.endswith(f".{suffix}")), None)
        if suffix is None:
            problems[key] = "not a key of a LoRA of linear modules"
        else:
            sources.setdefault(key.removesuffix(f".{suffix}"), {})[_PARTS[suffix]] = tensor
    return sources, problems


def _refuse_text_encoders(path: Path, sources: Iterable[str]) -> None:
    if text := [source for source in sources if source.startswith(_TEXT)]:
        raise InputError(
            f"path: expected a LoRA of a transformer alone, '{path}' trains {len(text)} modules of text "
            f"encoders too, such as '{text[0]}'; pipe.load_lora_weights takes both"
        )


def _config(path: Path, header: Mapping[str, str], sources: Iterable[str]) -> dict[str, Any] | None:
    """The adapter config of a file, if it has one."""
    text, where = header.get(LORA_ADAPTER_METADATA_KEY), f"'{LORA_ADAPTER_METADATA_KEY}' of '{path}'"
    if text is None and any(source.startswith(PEFT) for source in sources):
        beside = path.with_name("adapter_config.json")
        if not beside.is_file():
            raise InputError(f"path: the scale of '{path}' is in peft's '{beside.name}', expected it beside")
        text, where = beside.read_text(), f"'{beside}'"
    if text is None:
        return None
    try:
        config = {key.removeprefix(PREFIX): value for key, value in json.loads(text).items()}
        return {**config, "lora_alpha": float(config["lora_alpha"])}
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise InputError(f"path: expected an adapter config with 'lora_alpha' in {where}") from error


def _scaled(source: str, parts: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> LowRank:
    if not {"a", "b"} <= parts.keys():
        raise InputError("only one of A and B")
    a, b = parts["a"], parts["b"]
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
        raise InputError(f"expected B [O, R] and A [R, I], got {tuple(b.shape)} and {tuple(a.shape)}")
    if "alpha" in parts and parts["alpha"].numel() != 1:
        raise InputError(f"expected one number as alpha, got {tuple(parts['alpha'].shape)}")
    alpha = parts["alpha"].item() if "alpha" in parts else None
    scale = alpha / len(a) if alpha is not None else _config_scale(source, len(a), config)
    return LowRank(a, b * scale, parts.get("magnitude"))


def _config_scale(source: str, rank: int, config: Mapping[str, Any] | None) -> float:
    """As peft computes it; without a config alpha is the rank, as in diffusers."""
    if config is None:
        return 1.0
    pattern = config.get("alpha_pattern") or {}
    key = require_peft().utils.other.get_pattern_key(pattern, _bare(source))
    alpha = pattern.get(key, config["lora_alpha"])
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


class _Names:
    """From the names that files give modules to those of a transformer."""

    def __init__(self, transformer: nn.Module) -> None:
        linear = linear_modules(transformer)
        self.known = {name: name for name in linear}
        self.known |= {f"lora_transformer_{name.replace('.', '_')}": name for name in linear}
        self.dialects = family_of(transformer).lora_dialects

    def resolve(self, source: str, change: LowRank) -> dict[str, LowRank]:
        """The changes of the transformer's modules that one module of a file stands for."""
        if (name := _bare(source)) in self.known:
            return {self.known[name]: change}
        for dialect in self.dialects:
            if source.startswith(dialect.prefixes):
                return _split(source, change, dialect)
        raise InputError("no such linear module")


def _bare(source: str) -> str:
    return source.removeprefix(PEFT).removeprefix(PREFIX)


def _split(source: str, change: LowRank, dialect: LoraDialect) -> dict[str, LowRank]:
    """A module of another naming by diffusers' names; a joint projection is three or four of them."""
    if change.magnitude is not None:
        raise InputError("DoRA of a joint projection cannot be split")
    given = {f"{source}.lora_down.weight": change.a, f"{source}.lora_up.weight": change.b}
    try:
        converted = dialect.convert(given)
    # diffusers asserts shapes, and splits before it looks at them.
    except (ValueError, AssertionError, RuntimeError) as error:
        raise InputError("diffusers knows no such module of this model, or not of this shape") from error
    parts, _ = _grouped(converted)
    if not parts:
        raise InputError("diffusers drops it")
    return {_bare(name): LowRank(part["a"], part["b"]) for name, part in parts.items()}
