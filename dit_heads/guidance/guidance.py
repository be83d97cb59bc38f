"""Head guidance: lead a pipeline's prediction away from the one with chosen attention heads perturbed.

`prediction + scale * (conditional - perturbed)`, arXiv 2506.10978. The difference is added to what the
transformer returns, to both halves of classifier-free guidance (CFG) alike, so the pipeline's own
arithmetic gives CFG + head guidance exactly.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from diffusers import DiffusionPipeline
from jaxtyping import Float
from torch import Tensor, nn

from dit_heads.errors import InputError
from dit_heads.families import HeadLayout, layout_of
from dit_heads.guidance.branch import BranchRunner, Weights, weights_of
from dit_heads.guidance.checks import (
    Softness,
    check_conditional,
    check_not_compiled,
    check_numbers,
    check_rows,
    check_runs_hooks,
    head_sets,
    softness_of,
    transformer_of,
)
from dit_heads.guidance.perturb import Perturbation
from dit_heads.guidance.runs import Plan, Report, Run, StepOf, loop_of, shadowed
from dit_heads.heads import HeadSet

Conditional = slice | Callable[[int], slice]


class HeadGuidance:
    """Guide a pipeline by attention heads, while attached.

    >>> with HeadGuidance(pipe, "L1H10, L7", scale=3.0, softness=0.5):   # doctest: +SKIP
    ...     image = pipe("a cat").images[0]

    Args:
        pipe: a diffusers pipeline of a supported family, or its transformer with `conditional`.
        heads: a HeadSet or its text; a list of them gives each picture (conditional row) its own.
        scale: w of arXiv 2506.10978; 0 is off.
        softness: u in [0, 1], how far heads are perturbed, for all or as a mapping of heads to numbers; 0 is
            off.
        perturbation, region, temperature: what is done to heads, for which tokens; see
            `perturb.Perturbation`.
        start, stop: step i of the N of a run is guided if start <= i / N < stop.
        rescale: the share in [0, 1] of cond + difference that is brought back to the standard deviation of
            cond (arXiv 2305.08891, eq. 15 and 16), so that a large scale does not burn colours.
        every: evaluate the perturbed branch at every n-th guided step; its difference serves in between.
        trunk: "shared" forks at the first perturbed block, "two_pass" runs the transformer again, "auto"
            shares unless an attention processor after the fork is unknown to us.
        conditional: for a bare transformer, which rows of a batch are conditional: a slice, or a function of
            the size of the batch. They are the R rows of one tile of it; every tile of R rows gets their
            difference.

    Raises:
        InputError: for anything that could not be honoured, here, at `attach` and in a run.

    The thread that attaches is the one that runs. Gradients are exact as long as `backward` is called while
    attached. `report` tells what the last run did.
    """

    def __init__(
        self,
        pipe: Any,
        heads: HeadSet | str | Sequence[HeadSet | str],
        *,
        scale: float = 3.0,
        softness: Softness = 1.0,
        perturbation: str = "identity",
        region: str = "joint",
        temperature: float | None = None,
        start: float = 0.0,
        stop: float = 1.0,
        rescale: float = 0.0,
        every: int = 1,
        trunk: str = "auto",
        conditional: Conditional | None = None,
    ) -> None:
        bare = isinstance(pipe, nn.Module)
        if not bare and not isinstance(pipe, DiffusionPipeline):
            raise InputError(
                f"pipe: expected a diffusers pipeline or its transformer, got {type(pipe).__name__}"
            )
        check_conditional(bare, conditional, start, stop)
        check_numbers(scale, start, stop, rescale, every, trunk)
        if bare and every != 1:
            raise InputError(f"every: a bare transformer has no steps, expected 1, got {every}")
        self.pipe = None if bare else pipe
        self.transformer = pipe if bare else transformer_of(pipe)
        check_not_compiled(self.transformer)
        self.layout = layout_of(self.transformer)
        self.per_sample = isinstance(heads, Sequence) and not isinstance(heads, str)
        self.sets = [self.layout.resolve(heads) for heads in head_sets(heads)]
        self.softness = [softness_of(heads, softness, self.layout.resolve) for heads in self.sets]
        self.perturbation = Perturbation(perturbation, region, temperature)
        self.scale, self.rescale, self.plan = scale, rescale, Plan(start, stop, every)
        self.trunk, self.conditional = trunk, conditional
        self._run: Run | None = None  # under way
        self._last: Run | None = None
        self._runner: BranchRunner | None = None
        self._thread = 0
        self._lock = threading.Lock()
        self._undo = ExitStack()

    @property
    def report(self) -> Report:
        """What the last run did; see `runs.Report`."""
        if self._last is not None:
            return self._last.report()
        return Report(0, "none", "scale or softness is 0" if self._is_off() else "no run yet")

    # --- attaching ---

    def __enter__(self) -> HeadGuidance:
        return self.attach()

    def __exit__(self, *_: object) -> None:
        self.detach()

    def __deepcopy__(self, memo: object) -> HeadGuidance:
        raise InputError("pipe: a model under head guidance cannot be copied; detach first")

    def attach(self) -> HeadGuidance:
        """Add the hooks. Raises InputError if the model is guided already, compiled, or has a block cache."""
        _check_attachable(self.transformer, self.layout)
        self._last = None
        if self._is_off():
            return self
        self._thread = threading.get_ident()
        blocks = sorted({head.block for heads in self.sets for head in heads})
        with ExitStack() as undo:
            runner = BranchRunner(self.transformer, self.layout, blocks, self.perturbation, self._count)
            undo.callback(runner.remove)
            self._runner, mode = runner, self._mode(runner)
            undo.callback(self.transformer.register_forward_pre_hook(self._before, with_kwargs=True).remove)
            undo.callback(self.transformer.register_forward_hook(self._after, with_kwargs=True).remove)
            if self.pipe is None:
                self._run = self._last = Run(self.plan, *mode)
            else:
                own = self.pipe.progress_bar  # pyright: ignore[reportAttributeAccessIssue]
                undo.enter_context(shadowed(self.pipe, "progress_bar", self._marking_runs(own, mode)))
            self._undo = undo.pop_all()
        return self

    def detach(self) -> None:
        """Put the model and the pipeline back exactly as they were. Does nothing if not attached."""
        self._undo.close()
        if self._run is not None:
            self._run.leave()
        self._run = self._runner = None

    def _is_off(self) -> bool:
        """Whether nothing would be added. Then no hook is set: the unguided pictures, bit for bit."""
        return self.scale == 0 or not any(u for softness in self.softness for u in softness.values())

    def _mode(self, runner: BranchRunner) -> tuple[str, str]:
        """How the perturbed branch is evaluated, and why so."""
        unknown = runner.unlike_stock()
        if self.trunk == "two_pass":
            return "two_pass", "as asked"
        if unknown is None:
            return "shared", f"forks at block {runner.fork} of {len(self.layout.blocks)}"
        if self.trunk == "shared":
            raise InputError(
                f"trunk: expected stock attention processors after the fork to share it, {unknown}; use "
                "'two_pass' or 'auto'"
            )
        return "two_pass", f"{unknown}, which may look across the rows of a batch"

    def _marking_runs(self, own: Callable[..., Any], mode: tuple[str, str]) -> Callable[..., Any]:
        """The pipeline's `progress_bar`, which tells when a run begins and ends, after exceptions too."""

        @contextmanager
        def progress_bar(*args: Any, **kwargs: Any) -> Any:
            attached = self._runner is not None  # not so in a copy of the pipeline that outlives it
            with self._running(mode) if attached else nullcontext(), own(*args, **kwargs) as bar:
                yield bar

        return progress_bar

    @contextmanager
    def _running(self, mode: tuple[str, str]) -> Iterator[None]:
        pipe: Any = self.pipe
        with self._lock:
            if self._run is not None:
                raise InputError(
                    "pipe: a guided run of it is under way, in another thread or around this one"
                )
            run = self._run = self._last = self._begin(pipe, mode)
        try:
            with shadowed(pipe.scheduler, "step", StepOf(pipe.scheduler, run)):
                yield
            run.finish(interrupted=bool(getattr(pipe, "interrupt", False)))
        finally:
            run.close()
            self._run = None

    def _begin(self, pipe: Any, mode: tuple[str, str]) -> Run:
        if threading.get_ident() != self._thread:
            raise InputError(
                "pipe: head guidance was attached to it in another thread, which alone can run it; attach in "
                "the thread that runs, to a pipeline of its own"
            )
        if pipe.transformer is not self.transformer:
            raise InputError(
                "pipe: its transformer was replaced while head guidance is attached; attach again"
            )
        assert self._runner is not None
        self._runner.check_untouched()  # before a compiled model can trace what we do in a call
        loop = loop_of(pipe)
        if loop is None:
            raise InputError(
                "pipe: expected a run of its own `__call__`, got another loop inside its progress_bar; guide "
                "its transformer instead, with `conditional`"
            )
        steps = pipe.num_timesteps
        if not self.plan.guided(steps, steps):
            raise InputError(
                f"start, stop: no step of {steps} lies from {self.plan.start} to before {self.plan.stop}"
            )
        return Run(self.plan, *mode, steps=steps, loop=loop)

    # --- a call of the transformer ---

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        run, runner = self._run, self._runner
        assert runner is not None
        if run is None:
            raise InputError(
                "pipe: its transformer was called by something other than a run of the pipeline object that "
                "head guidance is attached to (another pipeline that shares it?); detach first"
            )
        arguments = runner.arguments(args, kwargs)
        run.begin_call(lambda: self.layout.family.noise_level(arguments))
        runner.check_untouched()
        if run.evaluates:
            run.batch = self.layout.batch(arguments)
            run.rows = self._rows(run.batch)
            if run.trunk == "shared":
                arguments = runner.forked(arguments, self._weights(arguments, run.rows), run.rows)
        return (), arguments

    def _after(self, _: nn.Module, __: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        run, runner = self._run, self._runner
        assert run is not None and runner is not None
        family = self.layout.family
        sample = family.prediction(output)
        if run.evaluates:
            if run.trunk == "shared":
                sample, perturbed = sample[: run.batch], sample[run.batch :]
            else:
                second = runner.second_pass(kwargs, self._weights(kwargs, run.rows), run.rows)
                perturbed = family.prediction(second)
            run.difference = difference(sample[run.rows], perturbed, self.scale, self.rescale)
        if run.difference is not None:
            output = family.with_prediction(output, _added(sample, run.difference))
        run.end_call()
        return output

    def _rows(self, batch: int) -> slice:
        """The conditional rows of a batch."""
        if self.conditional is not None:
            rows = self.conditional(batch) if callable(self.conditional) else self.conditional
            return check_rows(rows, batch)
        return self.layout.family.conditional_rows(self.pipe, batch)

    def _weights(self, arguments: Mapping[str, Any], rows: slice) -> Weights:
        latents = arguments[self.layout.family.arguments.latents][rows]
        count = len(latents)
        if self.per_sample and len(self.sets) != count:
            raise InputError(
                f"heads: expected one head set for each of {count} pictures, got {len(self.sets)}"
            )
        each = self.softness if self.per_sample else self.softness * count
        return weights_of(self.layout, each, latents[0])

    def _count(self, rows: int, perturbed: int) -> None:
        if self._run is not None:
            self._run.count(rows, perturbed)


def difference(
    conditional: Float[Tensor, "r ..."], perturbed: Float[Tensor, "r ..."], scale: float, rescale: float
) -> Float[Tensor, "r ..."]:
    """What guidance adds: scale * (conditional - perturbed), of which the share `rescale` is changed so that
    conditional + difference has the standard deviation of conditional (arXiv 2305.08891, eq. 15 and 16)."""
    exact = torch.promote_types(conditional.dtype, torch.float32)
    clean = conditional.to(exact)
    added = scale * (clean - perturbed.to(exact))
    if rescale:
        guided = clean + added
        dims = list(range(1, guided.ndim))
        ratio = clean.std(dims, keepdim=True) / guided.std(dims, keepdim=True)
        added = added + rescale * (ratio - 1) * guided
    return added.to(conditional.dtype)


def _added(sample: Tensor, difference: Tensor) -> Tensor:
    """`sample` [k R, ...] with the difference [R, ...] on each of its k tiles."""
    if len(sample) % len(difference):
        raise InputError(
            f"pipe: expected calls of a multiple of {len(difference)} rows in a step, got {len(sample)}"
        )
    return (sample.unflatten(0, (-1, len(difference))) + difference).flatten(0, 1)


def _check_attachable(transformer: nn.Module, layout: HeadLayout) -> None:
    for hook in transformer._forward_pre_hooks.values():
        if isinstance(getattr(hook, "__self__", None), HeadGuidance):
            raise InputError(
                "pipe: its transformer is under head guidance already; join the heads in one set"
            )
    check_runs_hooks(transformer, layout)
