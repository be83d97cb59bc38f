"""The gradient screen: every head's first-order effect on an objective from a few backward passes.

With the weights U of all heads at 0 (or at those of a chosen set) the guided prediction v + w (v - v(U)) is
differentiable in U, and from it follows an estimate of the clean picture, x - s v. The slope of the objective
of that picture at U says what a little of each head would do, for all heads at once (attribution patching,
arXiv 2310.10348). It is a first-order estimate at single noise levels; real pictures must confirm it.

Transformer and decoder keep the inputs of their blocks alone and run them again on the way back (gradient
checkpointing, arXiv 1604.06174), a micro-batch of pictures at a time: see `cost` for the memory.
"""

from __future__ import annotations

import inspect
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from dit_heads.errors import InputError
from dit_heads.families import HeadLayout, family_of, layout_of, pipelines_of
from dit_heads.families.latents import denormalised
from dit_heads.guidance.branch import BranchRunner
from dit_heads.guidance.perturb import Perturbation
from dit_heads.guidance.runs import shadowed
from dit_heads.heads import HeadId
from dit_heads.hunt.cost import micro_batch_of, picture_size
from dit_heads.objectives import Objective, name_of

LEVELS = (0.5, 0.3, 0.15)  # noise levels of the screen; at higher ones slopes tell little of the picture
Slopes = dict[HeadId, float]


@dataclass(frozen=True)
class Screening:
    """What is screened.

    Attributes:
        scale: head guidance scale w.
        chosen: heads that guide already, each with its softness u in [0, 1].
        micro_batch: number of pictures that are differentiated side by side; None for the default.
    """

    scale: float
    chosen: Mapping[HeadId, float] = field(default_factory=dict)
    micro_batch: int | None = None


class Recorder:
    """Records the calls of the transformer at the steps of a run whose noise is nearest to some levels.

    Steps are counted by `scheduler.step`.

    Args:
        pipe: the pipeline.
        levels: noise levels in [0, 1].

    Attributes:
        calls: for each of the steps the keyword arguments of its first call, on the CPU, with all rows of the
            batch. With SD3's CFG the rows of the negative prompts come first.

    Raises:
        InputError: at the end of a run that did not reach all of these steps.
    """

    def __init__(self, pipe: Any, levels: Sequence[float] = LEVELS) -> None:
        self.pipe, self.levels = pipe, levels
        self.calls: list[dict[str, Any]] = []
        self._step, self._wanted, self._undo = 0, set[int](), ExitStack()

    def __enter__(self) -> Recorder:
        transformer, scheduler = self.pipe.transformer, self.pipe.scheduler
        self._undo.callback(transformer.register_forward_pre_hook(self._keep, with_kwargs=True).remove)
        own = scheduler.step

        def step(*args: Any, **kwargs: Any) -> Any:
            self._step += 1
            return own(*args, **kwargs)

        self._undo.enter_context(shadowed(scheduler, "step", step))
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._undo.close()
        if kind is None and (self._wanted or not self.calls):
            raise InputError(
                "steps: expected the run to come to the steps that are nearest to the noise levels "
                f"{', '.join(map(str, self.levels))}; it ended after {self._step} steps"
            )

    def _keep(self, transformer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self.calls and not self._wanted:
            self._wanted = _nearest_steps(self.pipe.scheduler, self.levels)
        if self._step in self._wanted:
            self._wanted.remove(self._step)
            call = inspect.signature(type(transformer).forward).bind(transformer, *args, **kwargs).arguments
            named = {name: value for name, value in call.items() if value is not transformer}
            self.calls.append(tree_map_only(Tensor, lambda t: t.detach().cpu(), named))


def _nearest_steps(scheduler: Any, levels: Sequence[float]) -> set[int]:
    """Indices of the steps whose noise is nearest to each level. Rounding of what a transformer is called
    with (FLUX in bf16) does not matter."""
    noise = [t / scheduler.config.num_train_timesteps for t in scheduler.timesteps.tolist()]
    return {min(range(len(noise)), key=lambda i, level=level: abs(noise[i] - level)) for level in levels}


def noise_of(transformer: Any, call: Mapping[str, Any]) -> float:
    """The noise level, in [0, 1], of a call of the transformer."""
    return family_of(transformer).noise_level(call)


def estimated_pictures(
    pipe: Any, call: Mapping[str, Any], latents: Tensor, velocity: Tensor
) -> Float[Tensor, "b 3 h w"]:
    """Decode the clean latents x - s v that a prediction leads to.

    Args:
        pipe: whose autoencoder decodes.
        call: of the transformer; it tells the noise level s and the size of the pictures.
        latents: x, in the shape of the call.
        velocity: v, in the same shape.

    Returns:
        Pictures, about in [0, 1].
    """
    clean = latents - noise_of(pipe.transformer, call) * velocity
    form = pipelines_of(pipe.transformer)
    clean = denormalised(pipe.vae, form.unpack(clean, *form.latent_size(call)))
    return pipe.vae.decode(clean.to(pipe.vae.dtype), return_dict=False)[0] / 2 + 0.5


def screened(
    pipe: Any,
    objective: Objective,
    runs: Sequence[tuple[Sequence[str], Sequence[Mapping[str, Any]]]],
    *,
    micro_batch: int | None = None,
    **options: Any,
) -> Slopes:
    """Compute the slope of every head, the mean over recorded calls and their pictures.

    Args:
        pipe: the pipeline that was recorded.
        objective: a score that has a gradient.
        runs: prompts and recorded calls of each run.
        micro_batch: number of pictures that are differentiated side by side. Default: see
            `cost.micro_batch_of`.
        options: `scale`, `chosen` and `perturbation` of `slopes`.

    Raises:
        InputError: for slopes that are not finite, and as `slopes`.
    """
    sums: defaultdict[HeadId, float] = defaultdict(float)
    with _checkpointed(pipe.transformer), _checkpointed(pipe.vae), _frozen(pipe.vae):
        for prompts, calls in runs:
            for call in calls:
                for some, part in _micro_batches(pipe, call, prompts, micro_batch):

                    def clean(latents: Tensor, velocity: Tensor, part: Mapping[str, Any] = part) -> Tensor:
                        return estimated_pictures(pipe, part, latents, velocity)

                    for head, slope in slopes(pipe, objective, some, part, clean, **options).items():
                        sums[head] += slope * len(some)
    total = sum(len(prompts) * len(calls) for prompts, calls in runs)
    if heads := [str(head) for head, slope in sums.items() if not math.isfinite(slope)]:
        raise InputError(
            f"objective: its slopes are not finite for {', '.join(heads[:5])} (too large for half "
            "precision?); search with method exhaustive"
        )
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
) -> Slopes:
    """Compute d objective / d u of every head, the mean over a batch, at one recorded call.

    Args:
        pipe: its `transformer` is evaluated twice, once with gradients.
        objective: a score that has a gradient.
        prompts: one for each picture.
        call: arguments of the transformer by name.
        clean: (latents, predicted velocity) -> pictures in [0, 1].
        scale: head guidance scale w.
        chosen: heads that are perturbed already, each with its softness u.
        perturbation: what is done to heads.

    Raises:
        InputError: for an objective that has no gradient.
    """
    layout = layout_of(pipe.transformer)
    latents = call[layout.family.arguments.latents]
    u = _leaves(layout, len(prompts), chosen, latents[0])
    runner = BranchRunner(pipe.transformer, layout, list(u), perturbation)
    try:
        with _frozen(pipe.transformer):
            arguments = runner.arguments((), {**call, "return_dict": False})
            with torch.no_grad():
                plain = layout.family.prediction(pipe.transformer(**arguments))
            perturbed = layout.family.prediction(pipe.transformer(**runner.perturbed(arguments, u)))
            pictures = clean(latents, plain + scale * (plain - perturbed))
            exact = pictures.to(torch.promote_types(pictures.dtype, torch.float32))
            scores = objective(exact, prompts)
            if not scores.requires_grad:
                raise InputError(
                    f"objective: the fast search takes its gradient, which {name_of(objective)} does not "
                    "give; search with method exhaustive"
                )
            leaves = {(block, name): leaf for block, of_block in u.items() for name, leaf in of_block.items()}
            # The hooks stay until here: checkpointed blocks run again.
            gradients = torch.autograd.grad(scores.sum(), list(leaves.values()))
    finally:
        runner.remove()
    return {
        HeadId(block, head, name == layout.image_only): slope
        for (block, name), gradient in zip(leaves, gradients, strict=True)
        for head, slope in enumerate(gradient.float().mean(0).tolist())
    }


def _micro_batches(
    pipe: Any, call: Mapping[str, Any], prompts: Sequence[str], size: int | None
) -> Iterator[tuple[Sequence[str], dict[str, Any]]]:
    """Prompts and the conditional rows of a recorded call, so many pictures at a time, on the GPU if any."""
    layout = layout_of(pipe.transformer)
    whole = layout.rows(call, layout.family.conditional_rows(pipe, layout.batch(call)))
    if layout.batch(whole) != len(prompts):
        raise InputError(f"calls: expected {len(prompts)} conditional rows, got {layout.batch(whole)}")
    size = size or micro_batch_of(picture_size(pipe, whole))
    for at in range(0, len(prompts), size):
        part = layout.rows(whole, slice(at, at + size))
        yield prompts[at : at + size], tree_map_only(Tensor, lambda t: t.to(pipe._execution_device), part)


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """No gradient of a module's weights, nor the tensors that it would take to compute one."""
    learning = [p for p in module.parameters() if p.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


@contextmanager
def _checkpointed(model: Any) -> Iterator[None]:
    """Gradient checkpointing of a diffusers model; attributes are put back as they were."""
    names = ("gradient_checkpointing", "_gradient_checkpointing_func")
    parts = [part for part in model.modules() if hasattr(part, names[0])]
    before = [{name: vars(part)[name] for name in names if name in vars(part)} for part in parts]
    if getattr(model, "_supports_gradient_checkpointing", False):
        model.enable_gradient_checkpointing()
    try:
        yield
    finally:
        for part, had in zip(parts, before, strict=True):
            for name in names:
                vars(part).pop(name, None)
            vars(part).update(had)


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
