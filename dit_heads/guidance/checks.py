"""What head guidance can be asked for, and of which models. Each check raises ValueError that names the
argument, what was expected and what came."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from diffusers import DiffusionPipeline
from diffusers.pipelines.pag.pag_utils import PAGMixin
from torch import nn

from dit_heads.compat import forward_is_replaced, hook_names, is_compiled
from dit_heads.errors import InputError
from dit_heads.families import HeadLayout
from dit_heads.heads import HeadId, HeadSet

Softness = float | Mapping[HeadId | str, float]
TRUNKS = ("auto", "shared", "two_pass")
# diffusers' hooks that move or cast weights; any other (block caches) may hand the perturbed branch
# another's result.
_HARMLESS_HOOKS = {
    "group_offloading",
    "layerwise_casting",
    "lazy_prefetch_group_offloading",
    "layer_execution_tracker",
    "peft_autocast_disable",
}


def head_sets(heads: Any) -> list[HeadSet]:
    listed = list(heads) if isinstance(heads, Sequence) and not isinstance(heads, str) else [heads]
    if not listed or not all(isinstance(item, HeadSet | str) for item in listed):
        raise InputError(f"heads: expected a HeadSet, its text, or a list of these, got {heads!r}")
    return [HeadSet.parse(item) if isinstance(item, str) else item for item in listed]


def softness_of(
    heads: Sequence[HeadId], softness: Softness, resolve: Callable[[HeadSet], tuple[HeadId, ...]]
) -> dict[HeadId, float]:
    """u of every head. A mapping must name exactly the heads of the set; whole blocks may stand for
    theirs."""
    if not isinstance(softness, Mapping):
        return dict.fromkeys(heads, _checked_softness(softness))
    found = {
        head: _checked_softness(u)
        for name, u in softness.items()
        for head in resolve(HeadSet.parse(str(name)))
    }
    if found.keys() != set(heads):
        odd = ", ".join(map(str, sorted(found.keys() ^ set(heads))))
        raise InputError(
            f"softness: expected a number for each head of the set and no other, these differ: {odd}"
        )
    return found


def _checked_softness(u: object) -> float:
    if not _is_number(u) or not 0 <= u <= 1:  # pyright: ignore[reportOperatorIssue]
        raise InputError(f"softness: expected a number from 0 to 1, got {u!r}")
    return float(u)  # pyright: ignore[reportArgumentType]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def check_numbers(
    scale: object, start: object, stop: object, rescale: object, every: object, trunk: object
) -> None:
    if not _is_number(scale):
        raise InputError(f"scale: expected a finite number, got {scale!r}")
    if not (_is_number(start) and _is_number(stop) and 0 <= start < stop <= 1):  # pyright: ignore[reportOperatorIssue]
        raise InputError(f"start, stop: expected 0 <= start < stop <= 1, got {start!r} and {stop!r}")
    if not _is_number(rescale) or not 0 <= rescale <= 1:  # pyright: ignore[reportOperatorIssue]
        raise InputError(f"rescale: expected a number from 0 to 1, got {rescale!r}")
    if not isinstance(every, int) or isinstance(every, bool) or every < 1:
        raise InputError(f"every: expected a whole number of at least 1, got {every!r}")
    if trunk not in TRUNKS:
        raise InputError(f"trunk: expected {', '.join(TRUNKS)}, got {trunk!r}")


def check_conditional(bare: bool, conditional: object, start: float, stop: float) -> None:
    if not bare and conditional is not None:
        raise InputError("conditional: only for a bare transformer; a pipeline knows its conditional rows")
    if bare and not (isinstance(conditional, slice) or callable(conditional)):
        raise InputError(
            "conditional: a bare transformer needs a slice, or a function from batch size to slice, "
            f"got {conditional!r}"
        )
    if bare and (start, stop) != (0, 1):
        raise InputError(
            f"start, stop: a bare transformer has no steps, expected 0 and 1, got {start} and {stop}"
        )


def check_rows(rows: slice, batch: int) -> slice:
    """Conditional rows that a caller gave. Raises InputError unless they are one tile of the batch."""
    count = len(range(*rows.indices(batch)))
    if not count or batch % count or rows.step not in (None, 1):
        raise InputError(
            f"conditional: expected rows side by side that tile a batch of {batch}, got {rows}, {count} rows"
        )
    return rows


def transformer_of(pipe: DiffusionPipeline) -> nn.Module:
    if isinstance(pipe, PAGMixin):
        raise InputError(f"pipe: {type(pipe).__name__} adds rows of its own; use the class without PAG")
    transformer = getattr(pipe, "transformer", None)
    if not isinstance(transformer, nn.Module):
        raise InputError(
            f"pipe: expected a pipeline with a transformer, got {type(pipe).__name__} without one"
        )
    return transformer


# --- what the model must be like ---


def check_runs_hooks(transformer: nn.Module, layout: HeadLayout) -> None:
    """Raise InputError if something could keep hooks from seeing a block, or hand the perturbed branch
    another's result: compilation, a block cache, a replaced `forward`."""
    for module in transformer.modules():
        check_not_compiled(module)
        if odd := set(hook_names(module)) - _HARMLESS_HOOKS:
            name = next(name for name, found in transformer.named_modules() if found is module)
            raise InputError(
                f"pipe: '{name or 'transformer'}' has diffusers' hook {', '.join(sorted(odd))} "
                "(a block cache?), which could hand head guidance stale results; disable it first"
            )
    for path in ("", *layout.blocks):
        if forward_is_replaced(transformer.get_submodule(path)):
            raise InputError(
                f"pipe: the forward of '{path or 'transformer'}' was replaced (a step cache?), which could "
                "hand head guidance stale results; put it back first"
            )


def check_not_compiled(module: nn.Module) -> None:
    if is_compiled(module):
        raise InputError("pipe: its transformer is compiled, which skips hooks; attach to the uncompiled one")
