"""The perturbed prediction: the conditional rows of a batch once more, with some heads perturbed.

Before the first perturbed block both branches give the same result. A shared trunk forks at that block: the
batch grows by a copy of the conditional rows, and only the blocks from the fork on see more rows. Two passes
give the same numbers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dit_heads.compat import kept_processors
from dit_heads.errors import InputError
from dit_heads.families import HeadLayout
from dit_heads.families.processors import HEAD_WEIGHTS, HeadProcessor, HeadWeights
from dit_heads.guidance.perturb import Perturbation
from dit_heads.guidance.perturbed_heads import Weights
from dit_heads.guidance.watch import ModelWatch

_BRANCH = "dit_heads_branch"
# What a family's carrier does to all that it carries: (call, change of a value) -> the changed argument.
Carried = Callable[[Mapping[str, Any], Callable[[Any], Any]], dict[str, Any]]


@dataclass(frozen=True)
class Whole:
    """A prediction of which every row is perturbed.

    Attributes:
        weights: U [R, H] of each perturbed attention.
        text_tokens: number of text tokens in the sequence.
    """

    weights: Weights
    text_tokens: int

    def entered(self, index: int, call: dict[str, Any], names: Sequence[str], carried: Carried) -> int:
        """Leave the call of a block as it is.

        Returns:
            The number of its perturbed rows, which are all.
        """
        return len(call[names[0]])


@dataclass(frozen=True)
class Forked:
    """A prediction whose batch grows at one block by a copy of the conditional rows, which is perturbed.

    Attributes:
        weights: U [R, H] of each perturbed attention.
        text_tokens: number of text tokens in the sequence.
        at: index of the block where the batch grows.
        rows: the conditional ones, R of them.
        batch: number of rows before the fork.
    """

    weights: Weights
    text_tokens: int
    at: int
    rows: slice
    batch: int

    def entered(self, index: int, call: dict[str, Any], names: Sequence[str], carried: Carried) -> int:
        """Grow the batch in the call of a block from the fork on, in place.

        Args:
            index: of the block.
            call: its arguments by name.
            names: those that have a row for each sample.
            carried: changes what the family carries to its blocks beside them.

        Returns:
            The number of perturbed rows.
        """
        if index < self.at:
            return 0
        call |= {name: self.grown(call[name]) for name in names}
        call |= carried(call, lambda value: _by_row(value, self.batch, self.grown))
        return len(call[names[0]]) - self.batch

    def grown(self, t: Tensor) -> Tensor:
        """`t` with the copies appended, unless they already are."""
        return torch.cat([t, t[self.rows]]) if len(t) == self.batch else t


class BranchRunner:
    """Hooks on a transformer that let one call of it return the perturbed prediction too; `remove` takes
    them off.

    Args:
        transformer: the model.
        layout: of the model.
        blocks: those with perturbed heads.
        perturbation: of these heads.
        count: called for each block that is evaluated, with its number of rows and of perturbed ones.

    Attributes:
        fork: the first perturbed block.
        watch: notices changes of the model.

    Raises:
        InputError: for attention that cannot be perturbed. The model is then as it was.
    """

    def __init__(
        self,
        transformer: Any,
        layout: HeadLayout,
        blocks: Sequence[int],
        perturbation: Perturbation,
        count: Callable[[int, int], object] = lambda rows, perturbed: None,
    ) -> None:
        self.transformer, self.layout, self.fork = transformer, layout, min(blocks)
        self._carrier = layout.family.carrier
        self._latents = layout.family.arguments.latents
        self._positional = _positional(type(transformer), self._latents)
        self._count = count
        self._current: Forked | None = None  # of the call under way: each call sets it anew
        self._undo = ExitStack()
        self._ours: list[HeadProcessor] = []
        try:
            for block in blocks:
                for name in layout.attentions(block):
                    self._replace_processor(f"{layout.blocks[block]}.{name}", name, perturbation)
            for index, path in enumerate(layout.blocks):
                self._hook(path, partial(self._enter_block, index))
            self._hook(layout.final, self._enter_final)
            self.watch = ModelWatch(transformer, layout, self.fork)
        except BaseException:
            self.remove()
            raise

    def __deepcopy__(self, memo: object) -> BranchRunner:
        raise InputError("pipe: a model under head guidance cannot be copied; detach first")

    def remove(self) -> None:
        """Put everything back, in the processors too that `fuse_qkv_projections` has put aside meanwhile."""
        self._undo.close()
        kept = kept_processors(self.transformer)
        for name, processor in kept.items():
            if any(processor is ours for ours in self._ours):
                kept[name] = processor.replaced
        self._ours.clear()

    # --- calls ---

    def arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of a call of the transformer by name. A branch left by an interrupted call is dropped.

        Raises:
            InputError: for a call without latents, or with too many positional arguments.
        """
        self._current = None
        named = dict(zip(self._positional, args, strict=False)) | dict(kwargs)
        if self._latents not in named or len(args) > len(self._positional):
            raise InputError(
                f"pipe: expected calls of its transformer with {self._latents} and at most "
                f"{len(self._positional)} positional arguments, got {len(args)} and {', '.join(kwargs)}"
            )
        return named

    def forked(self, arguments: dict[str, Any], weights: Weights, rows: slice) -> dict[str, Any]:
        """Fork a call of B rows: one that returns the perturbed R conditional rows after those of the batch.

        Args:
            arguments: of the call, by name.
            weights: U [R, H] of each perturbed attention.
            rows: the conditional ones.

        Returns:
            Arguments of the forked call, which returns B + R rows.
        """
        text_tokens, batch = self.layout.family.text_length(arguments), self.layout.batch(arguments)
        self._current = branch = Forked(weights, text_tokens, self.fork, rows, batch)
        residuals = _grown_residuals(self.layout, arguments, branch)
        return self._carrier.put({**arguments, **residuals}, _BRANCH, branch)

    def second_pass(self, arguments: dict[str, Any], weights: Weights, rows: slice) -> Any:
        """Call the transformer again, for the perturbed conditional rows alone.

        Args:
            arguments: of the first call, by name.
            weights: U [R, H] of each perturbed attention.
            rows: the conditional ones.

        Returns:
            The output of the transformer for R rows.
        """
        batch = self.layout.batch(arguments)
        taken = self.layout.rows(arguments, rows)
        taken |= self._carrier.mapped(taken, lambda value: _by_row(value, batch, lambda t: t[rows]))
        # Not the module itself: its hooks are the ones that run this. `forward` holds those of accelerate.
        return self.transformer.forward(**self.perturbed(taken, weights))

    def perturbed(self, arguments: dict[str, Any], weights: Weights) -> dict[str, Any]:
        """Arguments of a call in which each of the R rows is perturbed, by `weights` U [R, H]."""
        self._current = None
        text_tokens = self.layout.family.text_length(arguments)
        return self._carrier.put(arguments, _BRANCH, Whole(weights, text_tokens))

    # --- hooks ---

    def _hook(self, path: str, hook: Callable[..., Any]) -> None:
        module = self.transformer.get_submodule(path)
        self._undo.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)

    def _replace_processor(self, path: str, name: str, perturbation: Perturbation) -> None:
        attn: Any = self.transformer.get_submodule(path)
        replaced = attn.processor
        kind = self.layout.family.processor
        kind.check_replaceable(replaced, attn, path)
        attn.processor = ours = kind(replaced, name, perturbation)
        self._ours.append(ours)
        self._undo.callback(_put_back, attn, ours, replaced)

    def _enter_block(self, index: int, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        names = self.layout.family.arguments
        branch: Forked | Whole | None
        branch, arguments = self._carrier.pop(dict(zip(names.block, args, strict=False)) | kwargs, _BRANCH)
        if branch is None:
            self._count(len(arguments[names.grown[0]]), 0)
            return None
        perturbed = branch.entered(index, arguments, names.grown, self._carrier.mapped)
        if index in branch.weights:
            weights = HeadWeights(branch.weights[index], branch.text_tokens)
            arguments = self._carrier.put(arguments, HEAD_WEIGHTS, weights)
        self._count(len(arguments[names.grown[0]]), perturbed)
        return (), arguments

    def _enter_final(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        branch, self._current = self._current, None
        if branch is None:
            return None
        return tuple(branch.grown(t) for t in args), {name: branch.grown(t) for name, t in kwargs.items()}


def _grown_residuals(
    layout: HeadLayout, arguments: Mapping[str, Any], branch: Forked
) -> dict[str, list[Tensor]]:
    """ControlNet residuals, one a block as the transformer would pick them, grown from the fork on."""
    found = {}
    for kind in layout.residuals:
        given = arguments.get(kind.argument)
        if given is not None:
            picked = [given[kind.pick(place, len(given), arguments)] for place in range(len(kind.blocks))]
            found[kind.argument] = [
                branch.grown(t) if block >= branch.at else t
                for block, t in zip(kind.blocks, picked, strict=True)
            ]
    return found


def _positional(kind: type, latents: str) -> list[str]:
    """Names of the positional arguments of a transformer's `forward`. One that takes any arguments hands them
    to that of a parent class."""
    forwards = [vars(parent)["forward"] for parent in kind.__mro__ if "forward" in vars(parent)]
    names = [list(inspect.signature(forward).parameters) for forward in forwards]
    return next(found for found in names if latents in found)[1:]


def _by_row(value: Any, batch: int, change: Callable[[Tensor], Tensor]) -> Any:
    """`value` with every tensor in it that has a row a sample (masks, features of pictures) changed."""
    if isinstance(value, Mapping):
        return {name: _by_row(item, batch, change) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_by_row(item, batch, change) for item in value]
    return change(value) if isinstance(value, Tensor) and value.ndim > 1 and len(value) == batch else value


def _put_back(attn: Any, ours: object, replaced: object) -> None:
    if attn.processor is ours:  # one that somebody has set since stays
        attn.processor = replaced
