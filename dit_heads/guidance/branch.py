"""The perturbed prediction: the conditional rows of a batch once more, with some heads perturbed.

Until the first perturbed block the perturbed branch *is* the conditional one, so a shared trunk forks
there: the batch grows by a copy of the conditional rows, and only the blocks after the fork see more rows.
Two passes give the same numbers.
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

from dit_heads.errors import InputError
from dit_heads.families import HeadLayout
from dit_heads.families.processors import HEAD_WEIGHTS, HeadProcessor, HeadWeights
from dit_heads.guidance.perturb import Perturbation
from dit_heads.heads import HeadId

_BRANCH = "dit_heads_branch"
# U of each perturbed block: attention name -> [R, H].
Weights = Mapping[int, Mapping[str, Tensor]]


def weights_of(layout: HeadLayout, softness: Sequence[Mapping[HeadId, float]], like: Tensor) -> Weights:
    """U of every perturbed attention from u of each head, a mapping for each of R rows; like `like`."""
    # Filled on the CPU: a write for each head would be as many launches on a GPU, at every step.
    weights: dict[int, dict[str, Tensor]] = {}
    for row, of_row in enumerate(softness):
        for head, u in of_row.items():
            of_block = weights.setdefault(head.block, {})
            name = layout.attention(head)
            if name not in of_block:
                of_block[name] = torch.zeros(len(softness), layout.count(head), dtype=torch.float64)
            of_block[name][row, head.head] = u
    return {
        block: {name: u.to(like.device, like.dtype) for name, u in of_block.items()}
        for block, of_block in weights.items()
    }


@dataclass(frozen=True)
class Branch:
    """One perturbed prediction. With `fork` None every row of the batch is perturbed; otherwise the batch
    of `batch` rows grows by a copy of `rows` at block `fork`, and the copies are perturbed. `text_tokens` of
    the sequence are text."""

    weights: Weights
    fork: int | None
    rows: slice
    batch: int
    text_tokens: int

    def grown(self, t: Tensor) -> Tensor:
        """`t` with the copied rows at its end; as it is if it has them."""
        return torch.cat([t, t[self.rows]]) if len(t) == self.batch else t


class BranchRunner:
    """Hooks on a transformer that let one call of it return the perturbed prediction too; `remove` takes
    them off.

    `blocks` are those with perturbed heads. `count(rows, second_pass)` is called for every block that is
    evaluated.
    """

    def __init__(
        self,
        transformer: Any,
        layout: HeadLayout,
        blocks: Sequence[int],
        perturbation: Perturbation,
        count: Callable[[int, bool], None],
    ) -> None:
        self.transformer, self.layout, self.fork = transformer, layout, min(blocks)
        self._carrier = layout.family.carrier
        self._signature = inspect.signature(type(transformer).forward)
        self._count, self._current = count, None
        self._undo = ExitStack()
        self._processors: list[tuple[nn.Module, HeadProcessor, str]] = []
        try:
            for block in blocks:
                for name in layout.attentions(block):
                    self._replace_processor(f"{layout.blocks[block]}.{name}", name, perturbation)
            for index, path in enumerate(layout.blocks):
                self._hook(path, partial(self._enter_block, index))
            self._hook(layout.final, self._enter_final)
            self._modules = _identities(transformer)
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Put everything back."""
        self._undo.close()
        self._processors.clear()

    def check_untouched(self) -> None:
        """Raise ValueError if a processor of ours was replaced since, or modules came or went (a LoRA)."""
        for attn, ours, path in self._processors:
            if attn.processor is not ours:
                raise InputError(
                    f"{path}: its attention processor was replaced by {type(attn.processor).__name__} while "
                    "head guidance is attached; detach, change the model, attach again"
                )
        if _identities(self.transformer) != self._modules:
            raise InputError(
                f"{self.layout.model}: its modules were changed (a LoRA loaded?) while head guidance is "
                "attached; detach, change the model, attach again"
            )

    # --- calls ---

    def arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call of the transformer by name."""
        bound = self._signature.bind(self.transformer, *args, **kwargs).arguments
        bound.pop(next(iter(self._signature.parameters)))
        return dict(bound)

    def forked(self, arguments: dict[str, Any], weights: Weights, rows: slice) -> dict[str, Any]:
        """Arguments of a call that returns the perturbed rows after those of the batch."""
        branch = self._branch(arguments, weights, self.fork, rows)
        self._current = branch
        return self._carrier.put({**arguments, **self._grown_residuals(arguments, branch)}, _BRANCH, branch)

    def second_pass(self, arguments: dict[str, Any], weights: Weights, rows: slice) -> Any:
        """What the transformer returns for the conditional rows alone, perturbed."""
        taken = self.layout.rows(arguments, rows)
        # Not the module itself: its hooks are the ones that run this. `forward` holds those of accelerate.
        return self.transformer.forward(**self.perturbed(taken, weights))

    def perturbed(self, arguments: dict[str, Any], weights: Weights) -> dict[str, Any]:
        """Arguments of a call in which every row is perturbed."""
        self._current = None
        return self._carrier.put(arguments, _BRANCH, self._branch(arguments, weights, None, slice(None)))

    def _branch(self, call: dict[str, Any], weights: Weights, fork: int | None, rows: slice) -> Branch:
        text_tokens = self.layout.family.text_length(call)
        return Branch(weights, fork, rows, self.layout.batch(call), text_tokens)

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
        self._processors.append((attn, ours, path))
        self._undo.callback(_put_back, attn, ours, replaced)

    def _enter_block(self, index: int, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        names = self.layout.family.arguments
        branch: Branch | None
        branch, arguments = self._carrier.pop(dict(zip(names.block, args, strict=False)) | kwargs, _BRANCH)
        if branch is None:
            self._count(len(arguments[names.grown[0]]), False)
            return None
        if index in branch.weights:
            weights = HeadWeights(branch.weights[index], branch.text_tokens)
            arguments = self._carrier.put(arguments, HEAD_WEIGHTS, weights)
        if branch.fork is not None and index >= branch.fork:
            arguments |= {name: branch.grown(arguments[name]) for name in names.grown}
        self._count(len(arguments[names.grown[0]]), branch.fork is None)
        return (), arguments

    def _enter_final(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        branch, self._current = self._current, None
        if branch is None:
            return None
        return tuple(branch.grown(t) for t in args), {name: branch.grown(t) for name, t in kwargs.items()}

    def _grown_residuals(self, arguments: Mapping[str, Any], branch: Branch) -> dict[str, list[Tensor]]:
        """ControlNet residuals, one a block as the transformer would pick them, grown from the fork on."""
        found = {}
        for kind in self.layout.residuals:
            given = arguments.get(kind.argument)
            if given is not None:
                picked = [given[kind.pick(place, len(given), arguments)] for place in range(len(kind.blocks))]
                found[kind.argument] = [
                    branch.grown(t) if block >= self.fork else t
                    for block, t in zip(kind.blocks, picked, strict=True)
                ]
        return found


def _identities(module: nn.Module) -> list[int]:
    return [id(part) for part in module.modules()]


def _put_back(attn: Any, ours: object, replaced: object) -> None:
    if attn.processor is ours:  # whoever replaced it since meant to
        attn.processor = replaced
