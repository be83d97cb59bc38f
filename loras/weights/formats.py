"""LoRA files as others write them, by the names of a transformer's modules and at the scale they were trained
at.

Read are files of `dit_heads.loras.weights.files`, of diffusers (old ones too), peft (`adapter_config.json`
beside them), ai-toolkit, SimpleTuner, OneTrainer (`lora_transformer_...`), and for FLUX those named as in its
first release (kohya's sd-scripts, ComfyUI), with alpha from tensors or from the config, in 8 bits too. What
does not fit is an error, and so are text encoders, which nothing here trains, and the kinds of `foreign`.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from dit_heads.errors import InputError
from dit_heads.families import LoraDialect, family_of
from dit_heads.loras.weights.foreign import foreign_kind
from dit_heads.loras.weights.low_rank import (
    PEFT,
    PREFIX,
    Lora,
    LowRank,
    check_fits,
    input_projection,
    linear_modules,
    raise_for,
    require_peft,
)

_TEXT = ("text_encoder", "lora_te", "text_encoders.")
# What ends a key: diffusers, peft (in memory the adapter has a name), kohya, old diffusers.
_PARTS = {
    r"lora_A(\.\w+)?\.weight|lora_down\.weight|lora\.down\.weight": "a",
    r"lora_B(\.\w+)?\.weight|lora_up\.weight|lora\.up\.weight": "b",
    r"lora_magnitude_vector(\.\w+)?(\.weight)?": "magnitude",
    r"alpha": "alpha",
}
_KEYS = {re.compile(rf"(?P<module>.+)\.(?:{ending})"): part for ending, part in _PARTS.items()}


def read_lora(path: str | Path, transformer: nn.Module) -> Lora:
    """Read a LoRA from a file, by the names of a transformer's modules.

    Args:
        path: of a `.safetensors` file.
        transformer: the model that it is for. The `meta` device will do.

    Returns:
        The LoRA, its scale included.

    Raises:
        InputError: for entries that do not fit the transformer (the first ones are named, the others
            counted), for a file without a LoRA or with one of text encoders, and for any other format.
    """
    path = checked_suffix(path)
    tensors, header = _read(path)
    sources, problems = _grouped(tensors)
    if kind := foreign_kind(list(tensors)):
        raise InputError(f"path: '{path}' is {kind.name}; {kind.advice}")
    if not any("b" in parts for parts in sources.values()):
        raise InputError(f"path: expected a LoRA in '{path}', none of its {len(tensors)} keys is of one")
    _refuse_text_encoders(path, sources)
    dora = any("magnitude" in parts for parts in sources.values())
    config, names = _config(path, header, sources, dora), _Names(transformer)
    found: dict[str, LowRank] = {}
    for source, parts in sources.items():
        try:
            change = _scaled(source, parts, config)
            _check_finite(path, source, change)
            changes = names.resolve(source, change)
            if twice := found.keys() & changes.keys():
                raise _Misfit(f"gives {', '.join(sorted(twice))} a second time")
            found |= changes
        except _Misfit as error:
            problems[source] = str(error)
    raise_for(problems, f"path: '{path}'", transformer)
    check_fits(Lora(found), transformer, f"path: '{path}'")
    return Lora(found)


def checked_suffix(path: str | Path) -> Path:
    """A path as one of a safetensors file. Raises `InputError` for another suffix."""
    path = Path(path)
    if path.suffix != ".safetensors":
        raise InputError(f"path: expected a .safetensors file (never a pickle), got '{path}'")
    return path


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, "pt") as file:
            tensors = {key: _wide(file.get_tensor(key)) for key in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise InputError(f"path: cannot read '{path}' as safetensors: {error}") from error


def _wide(tensor: Tensor) -> Tensor:
    """Numbers of 8 bits, which torch does not multiply, as float32."""
    return tensor.float() if tensor.is_floating_point() and tensor.element_size() == 1 else tensor


class _Misfit(InputError):
    """Why a module of a file cannot be read. One error names all such modules."""


def _check_finite(path: Path, source: str, change: LowRank) -> None:
    parts = [change.a, change.b] if change.magnitude is None else [change.a, change.b, change.magnitude]
    if not all(part.isfinite().all() for part in parts):
        raise InputError(f"path: expected finite numbers in '{path}', '{source}' has others")


def _grouped(tensors: Mapping[str, Tensor]) -> tuple[dict[str, dict[str, Tensor]], dict[str, str]]:
    """The parts of each module, by the name that the file gives it; keys that are no part, with a reason."""
    sources: dict[str, dict[str, Tensor]] = {}
    problems = {}
    for key, tensor in tensors.items():
        found = ((match["module"], part) for form, part in _KEYS.items() if (match := form.fullmatch(key)))
        module, part = next(found, ("", ""))
        if not part:
            problems[key] = "not a key of a LoRA of linear modules"
        elif part in sources.setdefault(module, {}):
            problems[key] = "gives a part of its module a second time"
        else:
            sources[module][part] = tensor
    return sources, problems


def _refuse_text_encoders(path: Path, sources: Iterable[str]) -> None:
    if text := [source for source in sources if source.startswith(_TEXT)]:
        raise InputError(
            f"path: expected a LoRA of a transformer alone, '{path}' trains {len(text)} modules of text "
            f"encoders too, such as '{text[0]}'; pipe.load_lora_weights takes both"
        )


def _config(
    path: Path, header: Mapping[str, str], sources: Iterable[str], dora: bool
) -> dict[str, Any] | None:
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
        config["lora_alpha"] = float(config["lora_alpha"])
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise InputError(f"path: expected an adapter config with 'lora_alpha' in {where}") from error
    _check_plain(config, where, dora)
    return config


def _check_plain(config: Mapping[str, Any], where: str, dora: bool) -> None:
    """Refuse a config by which the tensors mean something else than a LoRA's."""
    kind = str(config.get("peft_type") or "LORA").removeprefix("PeftType.")
    if kind != "LORA":
        raise InputError(f"path: expected a LoRA, {where} says peft_type {kind}")
    if config.get("use_dora") and not dora:
        raise InputError(f"path: {where} says use_dora, expected lora_magnitude_vector in the file, got none")
    if config.get("fan_in_fan_out"):
        raise InputError(f"path: {where} says fan_in_fan_out, of transposed weights, expected linear modules")


def _scaled(source: str, parts: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> LowRank:
    if not {"a", "b"} <= parts.keys():
        raise _Misfit("only one of A and B")
    a, b, kernel = parts["a"], parts["b"], None
    if a.ndim == b.ndim == 4 and b.shape[2:] == (1, 1):
        kernel, a, b = tuple(a.shape[1:]), a.flatten(1), b.flatten(1)
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
        raise _Misfit(f"expected B [O, R] and A [R, I], got {tuple(b.shape)} and {tuple(a.shape)}")
    if "alpha" in parts and parts["alpha"].numel() != 1:
        raise _Misfit(f"expected one number as alpha, got {tuple(parts['alpha'].shape)}")
    alpha = parts["alpha"].item() if "alpha" in parts else None
    scale = alpha / len(a) if alpha is not None else _config_scale(source, len(a), config)
    return LowRank(a, b * scale, parts.get("magnitude"), kernel)


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
        linear = dict.fromkeys(linear_modules(transformer))
        if projection := input_projection(transformer):
            linear[projection.path] = None
        self.known = {name: name for name in linear}
        for prefix in ("lora_transformer_", "lora_unet_"):
            self.known |= {prefix + flat: name for flat, name in _flat(linear).items()}
        self.dialects = family_of(transformer).lora_dialects

    def resolve(self, source: str, change: LowRank) -> dict[str, LowRank]:
        """The changes of the transformer's modules that one module of a file stands for."""
        name = _bare(source).rstrip("_")
        if name in self.known:
            return {self.known[name]: change}
        for dialect in self.dialects:
            if name.startswith(dialect.prefixes):
                return _split(name, change, dialect)
            if name.startswith(dialect.roots):
                return _split(dialect.root_prefix + name, change, dialect)
        raise _Misfit("no such linear module")


def _flat(names: Iterable[str]) -> dict[str, str]:
    """Names by what they are with underscores for dots, unless two become one."""
    flat = Counter(name.replace(".", "_") for name in names)
    return {name.replace(".", "_"): name for name in names if flat[name.replace(".", "_")] == 1}


def _bare(source: str) -> str:
    """Without the prefixes of trainers, in any order."""
    while (shorter := source.removeprefix(PEFT).removeprefix(PREFIX)) != source:
        source = shorter
    return source


def _split(source: str, change: LowRank, dialect: LoraDialect) -> dict[str, LowRank]:
    """A module of another naming by diffusers' names; a joint projection is three or four of them."""
    if change.magnitude is not None:
        raise _Misfit("DoRA of a joint projection cannot be split")
    given = {f"{source}.lora_down.weight": change.a, f"{source}.lora_up.weight": change.b}
    try:
        converted = dialect.convert(given)
    # diffusers asserts shapes, and splits before it looks at them.
    except (ValueError, AssertionError, RuntimeError) as error:
        raise _Misfit("diffusers knows no such module of this model, or not of this shape") from error
    parts, _ = _grouped(converted)
    if not parts:
        raise _Misfit("diffusers drops it")
    return {_bare(name): LowRank(part["a"], part["b"]) for name, part in parts.items()}
