"""Checks of what head guidance is given: arguments, pipelines and models."""

from __future__ import annotations

from diffusers import DiffusionPipeline
from diffusers.pipelines.pag.pag_utils import PAGMixin
from torch import nn

from dit_heads.compat import forward_is_replaced, hook_names, is_compiled
from dit_heads.errors import InputError
from dit_heads.families import HeadLayout

# diffusers' hooks that move or cast weights; any other (block caches) may hand the perturbed branch
# another's result.
_HARMLESS_HOOKS = {
    "group_offloading",
    "layerwise_casting",
    "lazy_prefetch_group_offloading",
    "layer_execution_tracker",
    "peft_autocast_disable",
}


def check_conditional(bare: bool, conditional: object, start: float, stop: float, every: int) -> None:
    """Check what a bare transformer needs, and what it cannot have.

    Args:
        bare: whether a transformer is guided without a pipeline.
        conditional, start, stop, every: as for `HeadGuidance`.

    Raises:
        InputError: for a pipeline with `conditional`, for a bare transformer without, and for one that is to
            be guided at some steps only: it has no steps.
    """
    if not bare:
        if conditional is not None:
            raise InputError(
                "conditional: only for a bare transformer; a pipeline knows its conditional rows"
            )
        return
    if not (isinstance(conditional, slice) or callable(conditional)):
        raise InputError(
            "conditional: a bare transformer needs a slice, or a function from batch size to slice, "
            f"got {conditional!r}"
        )
    if (start, stop) != (0, 1):
        raise InputError(
            f"start, stop: a bare transformer has no steps, expected 0 and 1, got {start} and {stop}"
        )
    if every != 1:
        raise InputError(f"every: a bare transformer has no steps, expected 1, got {every}")


def check_rows(rows: slice, batch: int) -> slice:
    """Conditional rows that a caller gave, for a batch of `batch` rows.

    Raises:
        InputError: unless they stand side by side and tile the batch.
    """
    count = len(range(*rows.indices(batch)))
    if not count or batch % count or rows.step not in (None, 1):
        raise InputError(
            f"conditional: expected rows side by side that tile a batch of {batch}, got {rows}, {count} rows"
        )
    return rows


def transformer_of(pipe: object) -> nn.Module:
    """The transformer of a pipeline that can be guided.

    Raises:
        InputError: for what is no pipeline, a PAG pipeline, and one without a transformer.
    """
    if not isinstance(pipe, DiffusionPipeline):
        raise InputError(f"pipe: expected a diffusers pipeline or its transformer, got {type(pipe).__name__}")
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
    """Check that hooks see every block, and that each branch gets results of its own.

    Raises:
        InputError: for a compiled model or block, a block cache, and a replaced `forward`.
    """
    for module in transformer.modules():
        check_not_compiled(module)
        if caches := set(hook_names(module)) - _HARMLESS_HOOKS:
            name = next(name for name, found in transformer.named_modules() if found is module)
            raise InputError(
                f"pipe: '{name or 'transformer'}' has diffusers' hook {', '.join(sorted(caches))} "
                "(a block cache?), which could hand head guidance stale results; disable it first"
            )
    for path in ("", *layout.blocks):
        if forward_is_replaced(transformer.get_submodule(path)):
            raise InputError(
                f"pipe: the forward of '{path or 'transformer'}' was replaced (a step cache?), which could "
                "hand head guidance stale results; put it back first"
            )


def check_not_compiled(module: nn.Module) -> None:
    """Raise InputError for a compiled module, whose hooks do not run."""
    if is_compiled(module):
        raise InputError("pipe: its transformer is compiled, which skips hooks; attach to the uncompiled one")
