"""LoRA files of SD3 and FLUX transformers, in and out, at the scale that they were trained at.

A file written here has diffusers' keys (`transformer.<module>.lora_A.weight`), the scale alpha / rank
multiplied into B, and an adapter config that says alpha = rank. diffusers reads the config, ComfyUI takes a
file without alpha for scale 1, so both load the same change. A DoRA is for diffusers alone: ComfyUI does not
read its magnitudes. What is read beside these: `formats`. peft is needed: `pip install 'dit-heads[train]'`.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from safetensors import SafetensorError, safe_open
from torch import nn

from dit_heads.errors import InputError
from dit_heads.io.atomic import write_tensors
from dit_heads.loras.weights.formats import checked_suffix, read_lora
from dit_heads.loras.weights.low_rank import (
    PEFT,
    Lora,
    LowRank,
    check_fits,
    input_projection,
    missing_channels,
    require_peft,
)
from dit_heads.training.widen import widen


def save_lora(
    transformer: nn.Module,
    path: str | Path,
    adapter: str = "default",
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write an adapter of a transformer to a file.

    Args:
        transformer: one with the adapter.
        path: of a `.safetensors` file, which appears whole or not at all.
        adapter: its name.
        metadata: entries to add to the file's header.

    Raises:
        InputError: as of `lora_of` and `write_lora`.
    """
    write_lora(path, lora_of(transformer, adapter), metadata)


def write_lora(path: str | Path, lora: Lora, metadata: Mapping[str, str] | None = None) -> None:
    """Write a LoRA to a file.

    Args:
        path: of a `.safetensors` file, which appears whole or not at all.
        lora: what to write.
        metadata: entries to add to the file's header.

    Raises:
        InputError: for another suffix, and for an entry that is not text or has a name that the file needs.
    """
    path = checked_suffix(path)
    entries = dict(metadata or {})
    for key, value in entries.items():
        if not isinstance(value, str) or key in ("format", LORA_ADAPTER_METADATA_KEY):
            raise InputError(
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
    write_tensors(path, copied, entries)


def lora_of(transformer: nn.Module, adapter: str = "default") -> Lora:
    """Copy a peft adapter of a transformer to the CPU, with alpha / rank in B.

    Weights that `set_adapters` gave the adapter are no part of it.

    Args:
        transformer: one with the adapter.
        adapter: its name.

    Raises:
        InputError: there is no such adapter, or it trains more than A, B and magnitudes of linear modules.
    """
    layers = require_peft().tuners.lora.LoraLayer
    config = _config_of(transformer, adapter)
    if config.modules_to_save or config.bias != "none" or config.lora_bias:
        raise InputError(f"adapter: '{adapter}' trains biases or whole modules, expected linear weights only")
    projection = input_projection(transformer)
    whole = projection.path if projection else ""
    found = {
        name.removeprefix(PEFT): _change(name, module, adapter, convolution=name.removeprefix(PEFT) == whole)
        for name, module in _instances(transformer, layers)
        if adapter in module.lora_A
    }
    return Lora(found)


def _config_of(transformer: nn.Module, adapter: str) -> Any:
    configs = getattr(transformer, "peft_config", None) or {}
    if adapter not in configs:
        there = ", ".join(configs) or "none"
        raise InputError(f"adapter: the transformer has no adapter '{adapter}', it has: {there}")
    config = configs[adapter]
    if config.peft_type != "LORA":
        raise InputError(f"adapter: expected a LoRA, '{adapter}' is of type {config.peft_type}")
    return config


def _change(name: str, layer: Any, adapter: str, *, convolution: bool) -> LowRank:
    a, b = (part[adapter].weight.detach().to("cpu", copy=True) for part in (layer.lora_A, layer.lora_B))
    dora = adapter in layer.lora_magnitude_vector
    kernel = None
    if convolution and a.ndim == 4 and len(a) == a[0].numel():  # trained whole
        kernel, a, b = tuple(a.shape[1:]), a.flatten(1), b.flatten(1)
    if a.ndim != 2 or (adapter in layer.lora_variant and not dora):
        raise InputError(f"adapter: expected plain LoRA or DoRA of linear modules, '{name}' has another kind")
    magnitude = layer.lora_magnitude_vector[adapter].weight.detach().to("cpu", copy=True) if dora else None
    rank = layer.r[adapter]
    scale = layer.lora_alpha[adapter] / (math.sqrt(rank) if layer.use_rslora[adapter] else rank)
    return LowRank(a, b * scale, magnitude, kernel)


def load_lora(pipe: DiffusionPipeline, path: str | Path, name: str) -> None:
    """Read a file into a pipeline as an adapter, and make it the only active one.

    Args:
        pipe: a pipeline of SD3 or FLUX. After an error it is as it was.
        path: of a `.safetensors` file.
        name: of the new adapter.

    Raises:
        InputError: as of `read_lora` and `add_lora`.
    """
    add_lora(pipe, read_lora(path, _transformer_of(pipe)), name)


def run_settings(path: str | Path) -> dict[str, Any]:
    """The settings of the run that made a file, as its metadata keeps them; empty for one of another trainer.

    Raises:
        InputError: there is no such file, or it is damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            found = json.loads((file.metadata() or {}).get("dit_heads", "{}"))
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"path: cannot read '{path}': {error}") from error
    return found if isinstance(found, dict) else {}


def add_lora(pipe: DiffusionPipeline, lora: Lora, name: str) -> None:
    """Give a pipeline's transformer an adapter, which all of diffusers' methods for adapters know.

    A LoRA that reads a source beside the noise widens the transformer's input (`training.widen`).

    Args:
        pipe: a pipeline of SD3 or FLUX. After an error it is as it was.
        lora: what the adapter changes.
        name: of the new adapter.

    Raises:
        InputError: the name is taken, or the LoRA does not fit.
    """
    transformer: Any = _transformer_of(pipe)
    if not name or "." in name or name in (getattr(transformer, "peft_config", None) or {}):
        raise InputError(f"name: expected a new name without dots, got {name!r}")
    check_fits(lora, transformer)
    extra = missing_channels(lora, transformer)
    with (
        _widened_unless_it_fails(transformer, extra),
        _undone_on_error(transformer, name),
        warnings.catch_warnings(),
    ):
        # peft warns of a second adapter, which a second name asks for, and of what diffusers undoes.
        warnings.filterwarnings("ignore", "Already found a `peft_config` attribute|Adapter .* now deleted")
        transformer.load_lora_adapter(
            lora.tensors(), adapter_name=name, metadata=lora.config(), _pipeline=pipe
        )


@contextmanager
def _widened_unless_it_fails(transformer: Any, extra: int) -> Iterator[None]:
    undo = widen(transformer, extra) if extra else None
    try:
        yield
    except BaseException:  # Ctrl-C too
        if undo is not None:
            undo()
        raise


@contextmanager
def _undone_on_error(transformer: Any, name: str) -> Iterator[None]:
    """What was put in for an adapter leaves if its load ends halfway, and the adapters that were active
    before are again. diffusers does a part of this after an error, and nothing after Ctrl-C."""
    kind = require_peft().tuners.tuners_utils.BaseTunerLayer
    active = {at: layer.active_adapters for at, layer in _instances(transformer, kind)}
    try:
        yield
    except BaseException:
        for at, layer in _instances(transformer, kind):
            if at in active:
                layer.set_adapter(active[at])
                layer.delete_adapter(name)
            else:
                parent, _, child = at.rpartition(".")
                setattr(transformer.get_submodule(parent), child, layer.base_layer)
        getattr(transformer, "peft_config", {}).pop(name, None)
        if not active:
            transformer.unload_lora()
        raise


def _instances(transformer: nn.Module, kind: type) -> list[tuple[str, Any]]:
    return [(name, module) for name, module in transformer.named_modules() if isinstance(module, kind)]


def _transformer_of(pipe: DiffusionPipeline) -> nn.Module:
    transformer = getattr(pipe, "transformer", None)
    if not isinstance(transformer, nn.Module):
        raise InputError(f"pipe: expected a pipeline with a transformer, got {type(pipe).__name__}")
    return transformer
