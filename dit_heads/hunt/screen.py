"""The gradient screen: every head's first-order effect on an objective from a few backward passes.

With the weights U of all heads at 0 (or at those of a chosen set) the guided prediction v + w (v - v(U)) is
differentiable in U, and from it follows an estimate of the clean picture, x - s v. The slope of the objective
of that picture at U says what a little of each head would do, for all heads at once (attribution patching,
arXiv 2310.10348). It is a first-order estimate at single noise levels; real pictures must confirm it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dit_heads.errors import InputError
from dit_heads.families import HeadLayout, family_of, layout_of, pipelines_of
from dit_heads.families.latents import denormalised
from dit_heads.guidance.branch import BranchRunner
from dit_heads.guidance.perturb import Perturbation
from dit_heads.heads import HeadId
from dit_heads.objectives import Objective, name_of

LEVELS = (0.5, 0.3, 0.15)  # noise levels of the screen; at higher ones slopes tell little of the picture


class Recorder:
    """Keeps what the transformer is called with in a run, at the steps whose noise is nearest to `levels`.

    `calls` are the first ones of these steps, arguments by name, all rows of the batch."""

    def __init__(self, pipe: Any, levels: Sequence[float] = LEVELS) -> None:
        self.pipe, self.levels = pipe, levels
        self.calls: list[dict[str, Any]] = []
        self._wanted: set[float] | None = None

    def __enter__(self) -> Recorder:
        self._handle = self.pipe.transformer.register_forward_pre_hook(self._keep, with_kwargs=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    def _keep(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._wanted is None:
            noise = [round(t / 1000, 4) for t in self.pipe.scheduler.timesteps.tolist()]
            self._wanted = {min(noise, key=lambda s, level=level: abs(s - level)) for level in self.levels}
        now = round(noise_of(self.pipe.transformer, kwargs), 4)
        if now in self._wanted:
            self._wanted.remove(now)
            self.calls.append(kwargs)


def noise_of(transformer: Any, call: Mapping[str, Any]) -> float:
    """The noise level, from 0 to 1, of a call of the transformer."""
    return family_of(transformer).noise_level(call)


def estimated_pictures(
    pipe: Any, call: Mapping[str, Any], latents: Tensor, velocity: Tensor
) -> Float[Tensor, "b 3 h w"]:
    """Pictures, about [0, 1], that latents at the noise level of a call and their velocity lead to:
    x - s v, decoded."""
    clean = latents - noise_of(pipe.transformer, call) * velocity
    form = pipelines_of(pipe.transformer)
    clean = denormalised(pipe.vae, form.unpack(clean, *form.latent_size(call)))
    return pipe.vae.decode(clean.to(pipe.vae.dtype), return_dict=False)[0] / 2 + 0.5


def screened(
    pipe: Any,
    objective: Objective,
    runs: Sequence[tuple[Sequence[str], Sequence[Mapping[str, Any]]]],
    **options: Any,
) -> dict[HeadId, float]:
    """Slopes of every head, the mean over the recorded calls of runs and their pictures; a run is its prompts
    and its calls. `options` go to `slopes`."""
    sums: defaultdict[HeadId, float] = defaultdict(float)
    for prompts, calls in runs:
        for call in calls:
            arguments = _conditional_rows(pipe, call, len(prompts))

            def clean(latents: Tensor, velocity: Tensor, call: Mapping[str, Any] = arguments) -> Tensor:
                return estimated_pictures(pipe, call, latents, velocity)

            for head, slope in slopes(pipe, objective, prompts, arguments, clean, **options).items():
                sums[head] += slope * len(prompts)
    total = sum(len(prompts) * len(calls) for prompts, calls in runs)
    return {head: slope / total for head, slope in sums.items()}


def slopes(
    pipe: Any,
    objective: Objective,
    prompts: Sequence[str],
    call: Mapping[str, Any],
    clean: Callable[[Tensor, Tensor], Tensor],
    *,
    scale: float,
    chosen: Mapping[HeadId, float],
    perturbation: Perturbation,
) -> dict[HeadId, float]:
    """d objective / d u of every head, the mean over a batch, at one recorded call of the transformer.

    `call` are its arguments; `clean(latents, velocity)` gives pictures in [0, 1] from latents and a predicted
    velocity at the call's noise level; `chosen` heads are perturbed already. Raises ValueError for an
    objective that has no gradient."""
    layout = layout_of(pipe.transformer)
    latents = call[layout.family.arguments.latents]
    u = _leaves(layout, len(prompts), chosen, latents[0])
    with _frozen(pipe.transformer):
        runner = BranchRunner(pipe.transformer, layout, list(u), perturbation, lambda *_: None)
        try:
            arguments = runner.arguments((), {**call, "return_dict": False})
            with torch.no_grad():
                plain = layout.family.prediction(pipe.transformer(**arguments))
            perturbed = layout.family.prediction(pipe.transformer(**runner.perturbed(arguments, u)))
        finally:
            runner.remove()
        pictures = clean(latents, plain + scale * (plain - perturbed))
        exact = pictures.to(torch.promote_types(pictures.dtype, torch.float32))
        scores = objective(exact, prompts)
        if not scores.requires_grad:
            raise InputError(
                f"objective: the fast search takes its gradient, which {name_of(objective)} does not give; "
                "search with method exhaustive"
            )
        leaves = {(block, name): leaf for block, of_block in u.items() for name, leaf in of_block.items()}
        gradients = torch.autograd.grad(scores.sum(), list(leaves.values()))
    return {
        HeadId(block, head, name == layout.image_only): slope
        for (block, name), gradient in zip(leaves, gradients, strict=True)
        for head, slope in enumerate(gradient.float().mean(0).tolist())
    }


def _conditional_rows(pipe: Any, call: Mapping[str, Any], prompts: int) -> dict[str, Any]:
    """A recorded call with its conditional rows alone, one a prompt."""
    layout = layout_of(pipe.transformer)
    found = layout.rows(call, layout.family.conditional_rows(pipe, layout.batch(call)))
    if layout.batch(found) != prompts:
        raise InputError(f"calls: expected {prompts} conditional rows, got {layout.batch(found)}")
    return found


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """No gradient of a module's weights, nor what it would take to compute one."""
    learning = [p for p in module.parameters() if p.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


def _leaves(
    layout: HeadLayout, rows: int, chosen: Mapping[HeadId, float], like: Tensor
) -> dict[int, dict[str, Float[Tensor, "r h"]]]:
    """U of every attention as leaves that take gradients."""
    weights: dict[int, dict[str, Tensor]] = {}
    for block in range(len(layout.blocks)):
        counts = {layout.joint: layout.heads[block], layout.image_only: layout.image_only_heads[block]}
        weights[block] = {
            name: torch.zeros(rows, count, dtype=like.dtype, device=like.device)
            for name, count in counts.items()
            if count
        }
    for head, u in chosen.items():
        weights[head.block][layout.attention(head)][:, head.head] = u
    for of_block in weights.values():
        for u in of_block.values():
            u.requires_grad_()
    return weights
