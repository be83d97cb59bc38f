"""The gradient screen: every head's first-order effect on an objective from a few backward passes.

With the weights U of all heads at 0 (or at those of a chosen set) the guided prediction v + w (v - v(U)) is
differentiable in U, and from it follows an estimate of the clean picture, x - s v. The slope of the objective
of that picture at U says what a little of each head would do, for all heads at once (attribution patching,
arXiv 2310.10348). It is a first-order estimate at single noise levels; real pictures must confirm it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dit_heads.branch import BranchRunner
from dit_heads.heads import HeadId
from dit_heads.layouts import IMAGE_ONLY, JOINT, Layout, attention_name, layout_of
from dit_heads.objectives import Objective
from dit_heads.perturb import Perturbation


class Recorder:
    """Keeps what the transformer was called with in a run, conditional rows only, at chosen steps."""

    def __init__(self, pipe: Any, steps: Sequence[int]) -> None:
        self.pipe, self.steps = pipe, set(steps)
        self.calls: list[dict[str, Any]] = []
        self._call = 0

    def __enter__(self) -> Recorder:
        self._handle = self.pipe.transformer.register_forward_pre_hook(self._keep, with_kwargs=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    def _keep(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._call in self.steps:
            self.calls.append({k: v.clone() if isinstance(v, Tensor) else v for k, v in kwargs.items()})
        self._call += 1


def slopes(
    pipe: Any,
    objective: Objective,
    prompts: Sequence[str],
    call: Mapping[str, Any],
    clean: Any,
    *,
    scale: float,
    chosen: Mapping[HeadId, float],
    perturbation: Perturbation,
) -> dict[HeadId, float]:
    """d objective / d u of every head, the mean over a batch, at one recorded call of the transformer.

    `call` are its arguments; `clean(latents, velocity)` gives pictures in [0, 1] from latents and a predicted
    velocity at the call's noise level; `chosen` heads are perturbed already."""
    layout = layout_of(pipe.transformer)
    rows = len(prompts)
    u = _leaves(layout, rows, chosen, call["hidden_states"])
    runner = BranchRunner(pipe.transformer, layout, list(u), perturbation, lambda *_: None)
    try:
        arguments = runner.arguments((), {**call, "return_dict": False})
        with torch.no_grad():
            plain = pipe.transformer(**arguments)[0]
        perturbed = pipe.transformer(**runner.perturbed(arguments, u))[0]
    finally:
        runner.remove()
    pictures = clean(call["hidden_states"], plain + scale * (plain - perturbed))
    leaves = {(block, name): leaf for block, of_block in u.items() for name, leaf in of_block.items()}
    gradients = torch.autograd.grad(objective(pictures, prompts).sum(), list(leaves.values()))
    return {
        HeadId(block, head, name == IMAGE_ONLY): slope
        for (block, name), gradient in zip(leaves, gradients, strict=True)
        for head, slope in enumerate(gradient.float().mean(0).tolist())
    }


def _leaves(
    layout: Layout, rows: int, chosen: Mapping[HeadId, float], like: Tensor
) -> dict[int, dict[str, Float[Tensor, "r h"]]]:
    """U of every attention as leaves that take gradients."""
    weights: dict[int, dict[str, Tensor]] = {}
    for block in range(len(layout.blocks)):
        counts = {JOINT: layout.heads[block], IMAGE_ONLY: layout.image_only_heads[block]}
        weights[block] = {
            name: torch.zeros(rows, count, dtype=like.dtype, device=like.device)
            for name, count in counts.items()
            if count
        }
    for head, u in chosen.items():
        weights[head.block][attention_name(head)][:, head.head] = u
    for of_block in weights.values():
        for u in of_block.values():
            u.requires_grad_()
    return weights
