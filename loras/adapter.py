"""The LoRA that a run trains: which modules get it, and its first weights."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from dit_heads.errors import InputError
from dit_heads.families import layout_of, training_of
from dit_heads.loras.config import AdapterConfig
from dit_heads.loras.weights.compose import blocks_of
from dit_heads.loras.weights.formats import read_lora
from dit_heads.loras.weights.low_rank import Lora, linear_modules, require_peft


def add_adapter(transformer: Any, config: AdapterConfig, seed: int, whole: Sequence[str] = ()) -> None:
    """Put a LoRA that changes nothing yet on a transformer, its weights in float32 and by `seed` alone.

    Args:
        transformer: of a family that can be trained.
        config: which modules get it, and of what rank.
        seed: of the first weights.
        whole: linear modules and convolutions whose weight is trained whole. Their A is the identity and
            frozen, so that B is the change of the weight, and stock diffusers loads it as a LoRA.

    Raises:
        InputError: there are no modules as the settings name them, or the LoRA to start from has others.
    """
    start = None if config.start is None else read_lora(config.start, transformer)
    ranks = {f"^{re.escape(name)}": _inputs(transformer.get_submodule(name)) for name in whole}
    lora = require_peft().LoraConfig(
        r=config.rank,
        lora_alpha=config.rank if config.alpha is None else config.alpha,
        target_modules=[*targeted(transformer, config), *whole],
        rank_pattern=dict(ranks),
        alpha_pattern=dict(ranks),
        use_dora=config.dora,
        init_lora_weights="gaussian",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer.add_adapter(lora)
    for parameter in transformer.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    for name in whole:
        a = transformer.get_submodule(name).lora_A["default"].weight
        a.data = torch.eye(len(a), device=a.device).view_as(a)
        a.requires_grad_(False)
    if start is not None:
        _start_from(transformer, start)


@torch.no_grad()
def _start_from(transformer: nn.Module, start: Lora) -> None:
    """Give a new adapter the weights of a LoRA. Raises InputError for other modules, ranks or a DoRA."""
    layers: Any = require_peft().tuners.lora.LoraLayer
    every: dict[str, Any] = dict(transformer.named_modules())
    found = {n: m for n, m in every.items() if isinstance(m, layers) and "default" in m.lora_A}
    for name in sorted({*found} ^ {*start.modules}):
        what = "no" if name in found else "a"
        raise InputError(f"start: expected the layers that are trained, got {what} change of {name}")
    for name, layer in found.items():
        change, a, b = start.modules[name], layer.lora_A["default"].weight, layer.lora_B["default"].weight
        if change.rank != len(a) or change.magnitude is not None or "default" in layer.lora_magnitude_vector:
            raise InputError(
                f"start: expected a LoRA of rank {len(a)} without DoRA, got rank {change.rank} in {name}"
            )
        a.copy_(change.a.view_as(a))
        b.copy_((change.b / layer.scaling["default"]).view_as(b))


def targeted(transformer: Any, config: AdapterConfig) -> list[str]:
    """The linear modules to train: those of the chosen blocks and with the endings of the settings.

    Args:
        transformer: its names and shapes alone are read, so the `meta` device will do.
        config: which modules get the LoRA.

    Returns:
        Their names, sorted.

    Raises:
        InputError: for a target or a block that the transformer lacks.
    """
    groups = training_of(transformer).targets
    endings = {target: groups.get(target, (target,)) for target in config.targets}
    layout = layout_of(transformer)
    chosen = layout.blocks
    if config.blocks is not None:
        chosen = tuple(layout.blocks[b] for b in blocks_of(config.blocks, len(layout.blocks), "blocks"))
    there = [name for name in linear_modules(transformer) if layout.block_of(name) in chosen]
    found = {target: list(_ending(there, ends)) for target, ends in endings.items()}
    missing = [target for target, names in found.items() if not names]
    if missing or not found:
        words = sorted({name.removeprefix(f"{layout.block_of(name)}.") for name in there})
        raise InputError(
            f"targets: expected some of {', '.join(groups)}, or of {', '.join(words)}; got "
            f"{', '.join(missing) or 'none'}"
        )
    return sorted({name for names in found.values() for name in names})


def _ending(names: Sequence[str], endings: Sequence[str]) -> Iterator[str]:
    for name in names:
        if name.endswith(tuple(f".{ending}" for ending in endings)):
            yield name


def _inputs(module: nn.Module) -> int:
    """Inputs of each output of a linear module or a convolution: the columns of its weight as a matrix."""
    weight: Any = module.weight
    return weight[0].numel()
