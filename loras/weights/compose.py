"""Several LoRAs at once, each at a scale of its own or with one for each block.

A scale is a number, or numbers for blocks: `{"L0-9": 0.8, "L12, L14": 0.3, "rest": 0.0}`. Blocks are numbered
as heads are (in FLUX.1 `L0-18` are double and `L19-56` single ones) and matched exactly. `rest` is everything
not named, modules outside of blocks too, and is 1 where it is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from dit_heads.errors import InputError, finite_number
from dit_heads.families import HeadLayout, layout_of
from dit_heads.heads import BlockId, HeadSet
from dit_heads.loras.weights.low_rank import Lora, LowRank, check_fits, require_peft

Scale = float | Mapping[str, float]
REST = "rest"


def compose(transformer: nn.Module, parts: Sequence[tuple[Lora, Scale]]) -> Lora:
    """Add LoRAs up to a single one, without approximation.

    Ranks add up: A is stacked by rows, and scale * B by columns.

    Args:
        transformer: the model that all of them fit.
        parts: LoRAs, each with its scale.

    Returns:
        A LoRA that changes every weight by the sum of the parts' changes times their scales.

    Raises:
        InputError: for a DoRA, whose change of a weight depends on the weight; for a part that does not fit,
            a scale that is wrong, and a sum of nothing.
    """
    layout = layout_of(transformer)
    stacks: dict[str, list[LowRank]] = {}
    for place, (lora, scale) in enumerate(parts):
        _check_additive(lora, transformer, f"parts[{place}]")
        factor = _factor(scale, layout, f"parts[{place}]")
        for name, change in lora.modules.items():
            if at := factor(name):
                stacks.setdefault(name, []).append(replace(change, b=change.b * at))
    if not stacks:
        raise InputError("parts: expected at least one LoRA at a scale other than 0, got none")
    return Lora({name: _stacked(name, changes) for name, changes in stacks.items()})


def set_scales(transformer: nn.Module, scales: Mapping[str, Scale]) -> None:
    """Make some adapters of a transformer the active ones, each at its scale.

    Args:
        transformer: one with these adapters. After an error it is as it was.
        scales: the scale of each adapter by its name. The others are switched off.

    Raises:
        InputError: for no adapter, for a name that is not there, for a scale that is wrong, and while an
            adapter is fused, which would hide the change.
    """
    layers = require_peft().tuners.tuners_utils.BaseTunerLayer
    there = getattr(transformer, "peft_config", None) or {}
    if not scales or not scales.keys() <= there.keys():
        raise InputError(f"scales: expected names among {', '.join(there) or 'none'}, got {list(scales)}")
    layout = layout_of(transformer)
    factors = {name: _factor(scale, layout, f"scales[{name!r}]") for name, scale in scales.items()}
    tuned: dict[str, Any] = {n: m for n, m in transformer.named_modules() if isinstance(m, layers)}
    if any(module.merged for module in tuned.values()):
        raise InputError("transformer: its adapters are fused; call pipe.unfuse_lora() first")
    for name, module in tuned.items():
        module.set_adapter(list(scales))
        for adapter, factor in factors.items():
            module.set_scale(adapter, factor(name))


def _check_additive(lora: Lora, transformer: nn.Module, label: str) -> None:
    if lora.dora:
        raise InputError(f"{label}: a DoRA is not additive, so it cannot be composed; use set_scales")
    check_fits(lora, transformer, f"{label}: it")


def _stacked(name: str, changes: Sequence[LowRank]) -> LowRank:
    if len({change.channels for change in changes}) > 1:
        raise InputError(f"parts: expected LoRAs that read the same inputs, those of '{name}' differ")
    a, b = torch.cat([c.a for c in changes]), torch.cat([c.b for c in changes], 1)
    return LowRank(a, b, kernel=changes[0].kernel)


def _factor(scale: Scale, layout: HeadLayout, label: str) -> Callable[[str], float]:
    """The scale of a module by its name."""
    if not isinstance(scale, Mapping):
        rest, blocks = finite_number(label, scale), dict[str | None, float]()
    else:
        rest = finite_number(f"{label}[{REST!r}]", scale.get(REST, 1.0))
        blocks = _blocks({text: at for text, at in scale.items() if text != REST}, layout, label)
    return lambda module: blocks.get(layout.block_of(module), rest)


def _blocks(scale: Mapping[str, float], layout: HeadLayout, label: str) -> dict[str | None, float]:
    """The scale of each block that is named, by the block's path."""
    found: dict[str | None, float] = {}
    for text, at in scale.items():
        number = finite_number(f"{label}[{text!r}]", at)
        for block in blocks_of(text, len(layout.blocks), label, f" or '{REST}'"):
            if layout.blocks[block] in found:
                raise InputError(f"{label}: expected each block once, L{block} is named twice")
            found[layout.blocks[block]] = number
    return found


def blocks_of(text: str, count: int, label: str, others: str = "") -> list[int]:
    """The blocks that a text lists.

    Args:
        text: such as "L0-9, L12".
        count: number of blocks that there are.
        label: what the text is, with which an error begins.
        others: what else would have done, for the error.

    Raises:
        InputError: the text cannot be read, names heads, or blocks that there are not.
    """
    try:
        parts = list(HeadSet.parse(text))
    except ValueError as error:
        raise InputError(f"{label}: {error}") from error
    found = [part.block for part in parts if isinstance(part, BlockId) and not part.image_only]
    if len(found) < len(parts) or max(found) >= count:
        raise InputError(f"{label}: expected blocks of L0-{count - 1}{others}, got '{text}'")
    return found
