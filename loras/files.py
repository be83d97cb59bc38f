"""LoRA files of SD3 and FLUX transformers, in and out, at the scale that they were trained at.

A file written here has diffusers' keys (`transformer.<module>.lora_A.weight`), the scale alpha / rank
multiplied into B, and an adapter config that says alpha = rank. diffusers reads the config, ComfyUI takes a
file without alpha for scale 1, so both load the same change. A DoRA is for diffusers alone: ComfyUI does not
read its magnitudes.

Read are these files, files of diffusers, peft (`adapter_config.json` beside them) and ai-toolkit, of
OneTrainer (`lora_transformer_...`), and for FLUX those named as in its first release (kohya's sd-scripts,
ComfyUI), with alpha from tensors or from the config. What does not fit is an error, and so are text
encoders, which nothing here trains. peft is needed: `pip install 'dit-heads[train]'`.
"""

from __future__ import annotations

import json
import math
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline, FluxPipeline
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from dit_heads.layouts import layout_of
from dit_heads.training import save_tensors

NEEDS = "peft is missing, which LoRAs need: pip install 'dit-heads[train]'"
_PREFIX, _PEFT = "transformer.", "base_model.model."
_RELEASE = ("lora_unet_", "diffusion_model.")  # before FLUX's names of its first release
_TEXT = ("text_encoder", "lora_te", "text_encoders.")
_PARTS = {
    "lora_A.weight": "a",
    "lora_down.weight": "a",
    "lora_B.weight": "b",
    "lora_up.weight": "b",
    "lora_magnitude_vector": "magnitude",
    "alpha": "alpha",
}
_SHOWN = 5  # entries of a file that an error lists


@dataclass(frozen=True)
class LowRank:
    """The change `b @ a` of one linear weight [O, I], scale included.

    With a `magnitude`, the new weight is that of DoRA (arXiv 2402.09353, eq. 5): magnitude times the
    rows of weight + b @ a, each divided by its norm."""

    a: Float[Tensor, "rank inputs"]
    b: Float[Tensor, "outputs rank"]
    magnitude: Float[Tensor, " outputs"] | None = None

    @property
    def rank(self) -> int:
        return len(self.a)


@dataclass(frozen=True)
class Lora:
    """What a LoRA changes in a transformer: the change of each linear module, by the module's name."""

    modules: Mapping[str, LowRank]

    @property
    def dora(self) -> bool:
        return any(change.magnitude is not None for change in self.modules.values())

    def tensors(self) -> dict[str, Tensor]:
        """By diffusers' keys."""
        found = {}
        for name, change in self.modules.items():
            found[f"{_PREFIX}{name}.lora_A.weight"] = change.a
            found[f"{_PREFIX}{name}.lora_B.weight"] = change.b
            if change.magnitude is not None:
                found[f"{_PREFIX}{name}.lora_magnitude_vector"] = change.magnitude
        return found

    def config(self) -> dict[str, Any]:
        """Arguments of peft's LoraConfig by diffusers' keys: alpha = rank, and names that match whole."""
        rank = Counter(change.rank for change in self.modules.values()).most_common(1)[0][0]
        others = {f"^{re.escape(n)}": c.rank for n, c in self.modules.items() if c.rank != rank}
        config = {
            "r": rank,
            "lora_alpha": rank,
            "rank_pattern": others,
            "alpha_pattern": others,
            "target_modules": "|".join(map(re.escape, sorted(self.modules))),
            "use_dora": self.dora,
        }
        return {_PREFIX + key: value for key, value in config.items()}


# --- out ---


def save_lora(
    transformer: nn.Module,
    path: str | Path,
    adapter: str = "default",
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write an adapter of a transformer as `write_lora` does. Raises ValueError as it and `lora_of` do."""
    write_lora(path, lora_of(transformer, adapter), metadata)


def write_lora(path: str | Path, lora: Lora, metadata: Mapping[str, str] | None = None) -> None:
    """Write a `.safetensors` file, complete or not at all; `metadata` are entries to add to its header.

    Raises ValueError for another suffix and for an entry that is not text or has a name of its own use."""
    path = _checked_suffix(path)
    entries = dict(metadata or {})
    for key, value in entries.items():
        if not isinstance(value, str) or key in ("format", LORA_ADAPTER_METADATA_KEY):
            raise ValueError(
                f"metadata: expected text, and names other than 'format' and '{LORA_ADAPTER_METADATA_KEY}', "
                f"got {key!r}: {value!r}"
            )
    entries |= {
        "format": "pt",
        LORA_ADAPTER_METADATA_KEY: json.dumps(lora.config(), indent=2, sort_keys=True),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    # Parts of one tensor, as of a split projection, are copied: a file takes no shared memory.
    copied = {key: tensor.detach().cpu().clone() for key, tensor in lora.tensors().items()}
    save_tensors(path, copied, entries)


def lora_of(transformer: nn.Module, adapter: str = "default") -> Lora:
    """A peft adapter of a transformer, copied to the CPU with alpha / rank in B. Weights that `set_adapters`
    gave it are no part of it.

    Raises ValueError for an adapter that is not there or trains more than A, B and magnitudes of linear
    modules."""
    layers = require_peft().tuners.lora.LoraLayer
    config = _config_of(transformer, adapter)
    if config.modules_to_save or config.bias != "none" or config.lora_bias:
        raise ValueError(f"adapter: '{adapter}' trains biases or whole modules, expected linear weights only")
    found = {
        name.removeprefix(_PEFT): _change(name, module, adapter)
        for name, module in _instances(transformer, layers)
        if adapter in module.lora_A
    }
    return Lora(found)


def _config_of(transformer: nn.Module, adapter: str) -> Any:
    configs = getattr(transformer, "peft_config", None) or {}
    if adapter not in configs:
        there = ", ".join(configs) or "none"
        raise ValueError(f"adapter: the transformer has no adapter '{adapter}', it has: {there}")
    config = configs[adapter]
    if config.peft_type != "LORA":
        raise ValueError(f"adapter: expected a LoRA, '{adapter}' is of type {config.peft_type}")
    return config


def _change(name: str, layer: Any, adapter: str) -> LowRank:
    a, b = (part[adapter].weight.detach().to("cpu", copy=True) for part in (layer.lora_A, layer.lora_B))
    dora = adapter in layer.lora_magnitude_vector
    if a.ndim != 2 or (adapter in layer.lora_variant and not dora):
        raise ValueError(f"adapter: expected plain LoRA or DoRA of linear modules, '{name}' has another kind")
    magnitude = layer.lora_magnitude_vector[adapter].weight.detach().to("cpu", copy=True) if dora else None
    rank = layer.r[adapter]
    scale = layer.lora_alpha[adapter] / (math.sqrt(rank) if layer.use_rslora[adapter] else rank)
    return LowRank(a, b * scale, magnitude)


# --- in ---


def load_lora(pipe: DiffusionPipeline, path: str | Path, name: str) -> None:
    """Read a file into a pipeline as its adapter `name`, active alone as after `pipe.load_lora_weights`.

    Raises ValueError as `read_lora` and `add_lora` do, with the pipeline as it was."""
    add_lora(pipe, read_lora(path, _transformer_of(pipe)), name)


def add_lora(pipe: DiffusionPipeline, lora: Lora, name: str) -> None:
    """Give a pipeline's transformer the adapter `name`, which all of diffusers' methods for adapters know.

    Raises ValueError if the name is taken or the LoRA does not fit, with the pipeline as it was."""
    transformer: Any = _transformer_of(pipe)
    if not name or "." in name or name in (getattr(transformer, "peft_config", None) or {}):
        raise ValueError(f"name: expected a new name without dots, got {name!r}")
    check_fits(lora, transformer)
    with _undone_on_error(transformer, name), warnings.catch_warnings():
        # peft warns of a second adapter, which a second name asks for, and of what diffusers undoes.
        warnings.filterwarnings("ignore", "Already found a `peft_config` attribute|Adapter .* now deleted")
        transformer.load_lora_adapter(
            lora.tensors(), adapter_name=name, metadata=lora.config(), _pipeline=pipe
        )


@contextmanager
def _undone_on_error(transformer: Any, name: str) -> Iterator[None]:
    """diffusers deletes an adapter that fails halfway; the layers that were put in for it leave here, and
    those that were active before are again."""
    kind = require_peft().tuners.tuners_utils.BaseTunerLayer
    active = {at: layer.active_adapters for at, layer in _instances(transformer, kind)}
    try:
        yield
    except Exception:
        for at, layer in _instances(transformer, kind):
            if at in active:
                layer.set_adapter(active[at])
                layer.delete_adapter(name)
            else:
                parent, _, child = at.rpartition(".")
                setattr(transformer.get_submodule(parent), child, layer.base_layer)
        if not active:
            transformer.unload_lora()
        raise


def _instances(transformer: nn.Module, kind: type) -> list[tuple[str, Any]]:
    return [(name, module) for name, module in transformer.named_modules() if isinstance(module, kind)]


def read_lora(path: str | Path, transformer: nn.Module) -> Lora:
    """The LoRA in a `.safetensors` file, by the names of the transformer's modules.

    Raises ValueError naming the first entries of a file that do not fit the transformer and counting the
    rest, for a file without a LoRA or with one of text encoders, and for any other format."""
    path = _checked_suffix(path)
    tensors, header = _read(path)
    sources, problems = _grouped(tensors)
    if not any("b" in parts for parts in sources.values()):
        raise ValueError(f"path: expected a LoRA in '{path}', none of its {len(tensors)} keys is of one")
    _refuse_text_encoders(path, sources)
    config, names = _config(path, header, sources), _Names(transformer)
    found: dict[str, LowRank] = {}
    for source, parts in sources.items():
        try:
            changes = names.resolve(source, _scaled(source, parts, config))
            if twice := found.keys() & changes.keys():
                raise ValueError(f"gives {', '.join(sorted(twice))} a second time")
            found |= changes
        except ValueError as error:
            problems[source] = str(error)
    _raise_for(problems, f"path: '{path}'", transformer)
    check_fits(Lora(found), transformer, f"path: '{path}'")
    return Lora(found)


def check_fits(lora: Lora, transformer: nn.Module, label: str = "lora: it") -> None:
    """Raise ValueError unless each module of the LoRA is a linear one of the transformer, of its shape, and
    all have magnitudes or none; the message begins with `label`."""
    linear = linear_modules(transformer)
    problems = {}
    for name, change in lora.modules.items():
        if name not in linear:
            problems[name] = "no such linear module"
        elif (change.b.shape[0], change.a.shape[1]) != linear[name]:
            got = f"{tuple(change.b.shape)} and {tuple(change.a.shape)}"
            problems[name] = f"expected B and A of a {linear[name]} weight, got {got}"
        elif (change.magnitude is not None) != lora.dora:
            problems[name] = "no magnitudes, which others have"
        elif change.magnitude is not None and change.magnitude.shape != linear[name][:1]:
            problems[name] = f"expected {linear[name][0]} magnitudes, got {tuple(change.magnitude.shape)}"
    _raise_for(problems, label, transformer)


def linear_modules(transformer: nn.Module) -> dict[str, tuple[int, int]]:
    """Shape [O, I] of the weight of each linear module, by the name that it has without adapters."""
    return {
        name.removeprefix(_PEFT).removesuffix(".base_layer"): (module.out_features, module.in_features)
        for name, module in transformer.named_modules()
        if isinstance(module, nn.Linear) and ".lora_" not in name
    }


def require_peft() -> Any:
    """The peft library. Raises ImportError that says how to get it."""
    try:
        import peft
    except ImportError as error:
        raise ImportError(NEEDS) from error
    return peft


def _transformer_of(pipe: DiffusionPipeline) -> nn.Module:
    transformer = getattr(pipe, "transformer", None)
    if not isinstance(transformer, nn.Module):
        raise ValueError(f"pipe: expected a pipeline with a transformer, got {type(pipe).__name__}")
    return transformer


def _checked_suffix(path: str | Path) -> Path:
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"path: expected a .safetensors file (never a pickle), got '{path}'")
    return path


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise ValueError(f"path: cannot read '{path}' as safetensors: {error}") from error


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
        raise ValueError(
            f"path: expected a LoRA of a transformer alone, '{path}' trains {len(text)} modules of text "
            f"encoders too, such as '{text[0]}'; pipe.load_lora_weights takes both"
        )


def _config(path: Path, header: Mapping[str, str], sources: Iterable[str]) -> dict[str, Any] | None:
    """The adapter config of a file, if it has one."""
    text, where = header.get(LORA_ADAPTER_METADATA_KEY), f"'{LORA_ADAPTER_METADATA_KEY}' of '{path}'"
    if text is None and any(source.startswith(_PEFT) for source in sources):
        beside = path.with_name("adapter_config.json")
        if not beside.is_file():
            raise ValueError(f"path: the scale of '{path}' is in peft's '{beside.name}', expected it beside")
        text, where = beside.read_text(), f"'{beside}'"
    if text is None:
        return None
    try:
        config = {key.removeprefix(_PREFIX): value for key, value in json.loads(text).items()}
        return {**config, "lora_alpha": float(config["lora_alpha"])}
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"path: expected an adapter config with 'lora_alpha' in {where}") from error


def _scaled(source: str, parts: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> LowRank:
    if not {"a", "b"} <= parts.keys():
        raise ValueError("only one of A and B")
    a, b = parts["a"], parts["b"]
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
        raise ValueError(f"expected B [O, R] and A [R, I], got {tuple(b.shape)} and {tuple(a.shape)}")
    if "alpha" in parts and parts["alpha"].numel() != 1:
        raise ValueError(f"expected one number as alpha, got {tuple(parts['alpha'].shape)}")
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
        self.flux = layout_of(transformer).family == "flux"

    def resolve(self, source: str, change: LowRank) -> dict[str, LowRank]:
        """The changes of the transformer's modules that one module of a file stands for."""
        if (name := _bare(source)) in self.known:
            return {self.known[name]: change}
        if self.flux and source.startswith(_RELEASE):
            return _split(source, change)
        raise ValueError("no such linear module")


def _bare(source: str) -> str:
    return source.removeprefix(_PEFT).removeprefix(_PREFIX)


def _split(source: str, change: LowRank) -> dict[str, LowRank]:
    """A module of FLUX's first release by diffusers' names; a joint projection is three or four of them."""
    if change.magnitude is not None:
        raise ValueError("DoRA of a joint projection cannot be split")
    given = {f"{source}.lora_down.weight": change.a, f"{source}.lora_up.weight": change.b}
    try:
        converted: Any = FluxPipeline.lora_state_dict(given)
    # diffusers asserts shapes, and splits before it looks at them.
    except (ValueError, AssertionError, RuntimeError) as error:
        raise ValueError("diffusers knows no such module of FLUX.1, or not of this shape") from error
    parts, _ = _grouped(converted)
    if not parts:
        raise ValueError("diffusers drops it")
    return {_bare(name): LowRank(part["a"], part["b"]) for name, part in parts.items()}


def _raise_for(problems: Mapping[str, str], label: str, transformer: nn.Module) -> None:
    if problems:
        shown = "; ".join(f"'{key}': {why}" for key, why in list(problems.items())[:_SHOWN])
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        kind = type(transformer).__name__
        raise ValueError(f"{label} does not fit {kind} in {len(problems)} places: {shown}{more}")
