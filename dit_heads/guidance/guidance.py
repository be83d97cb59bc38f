"""Head guidance: lead a pipeline's prediction away from the one with chosen attention heads perturbed.

`prediction + scale * (conditional - perturbed)`, arXiv 2506.10978. The difference is added to what the
transformer returns, to both halves of classifier-free guidance (CFG) alike, so the pipeline's own
arithmetic gives CFG + head guidance exactly.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from dit_heads.errors import InputError
from dit_heads.families import layout_of
from dit_heads.guidance.branch import BranchRunner, Weights, weights_of
from dit_heads.guidance.checks import (
    Softness,
    check_conditional,
    check_not_compiled,
    check_numbers,
    check_runs_hooks,
    head_sets,
    softness_of,
    transformer_of,
)
from dit_heads.guidance.perturb import Perturbation
from dit_heads.heads import HeadSet

Conditional = slice | Callable[[int], slice]


@dataclass
class Report:
    """What a run did. A block evaluated on one row of the batch counts as one evaluation."""

    steps: int
    """steps of the run; of a bare transformer, its calls"""
    trunk: str
    """"shared", "two_pass" or "none" """
    reason: str
    """why so"""
    guided: list[int] = field(default_factory=list)
    """the steps that were guided"""
    evaluations: int = 0
    """block evaluations of all calls, those of the perturbed branch included"""
    extra: int = 0
    """block evaluations that guidance added"""

    def __str__(self) -> str:
        cost = f"{self.extra} of {self.evaluations} block evaluations were the perturbed branch's"
        return f"{len(self.guided)} of {self.steps} steps guided, trunk {self.trunk} ({self.reason}); {cost}"


@dataclass
class _Run:
    """One run of the pipeline: which step it is at, whether that evaluates the perturbed branch, and the
    difference that every call of the step gets."""

    steps: int
    thread: int = field(default_factory=threading.get_ident)
    step: int = -1
    evaluates: bool = False
    rows: slice = field(default_factory=lambda: slice(0))
    input: Tensor | None = None
    timestep: Tensor | None = None
    difference: Tensor | None = None


class HeadGuidance:
    """Guide a pipeline by attention heads, while attached.

    >>> with HeadGuidance(pipe, "L1H10, L7", scale=3.0, softness=0.5):   # doctest: +SKIP
    ...     image = pipe("a cat").images[0]

    pipe: a diffusers pipeline with an SD3 or FLUX transformer, or that transformer itself with `conditional`.
    heads: a HeadSet or its text; a list of them gives each picture (conditional row of the batch) its own.
    scale: w of arXiv 2506.10978; 0 is off.
    softness: u in [0, 1], how far heads are perturbed, for all or as a mapping of heads to numbers; 0 is off.
    perturbation, region, temperature: what is done to heads, for which tokens; see `perturb.Perturbation`.
    start, stop: step i of the N of a run is guided if start <= i / N < stop.
    rescale: the share in [0, 1] of cond + difference that is brought back to the standard deviation of cond
        (arXiv 2305.08891, eq. 15 and 16), so that a large scale does not burn colours.
    every: evaluate the perturbed branch at every n-th guided step; its difference serves again in between.
    trunk: "shared" forks at the first perturbed block, "two_pass" runs the transformer again, "auto" shares
        where it can.
    conditional: for a bare transformer, which rows of a batch are conditional: a slice, or a function of the
        size of the batch. They are the R rows of one tile of it; every tile of R rows gets their difference.

    Raises ValueError for anything that could not be honoured. `report` tells what the last run did.
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
        self.scale, self.start, self.stop = scale, start, stop
        self.rescale, self.every = rescale, every
        self.trunk, self.conditional = trunk, conditional
        self.report = Report(0, "none", "no run yet")
        self._run: _Run | None = None
        self._runner: BranchRunner | None = None
        self._undo = ExitStack()

    # --- attaching ---

    def __enter__(self) -> HeadGuidance:
        return self.attach()

    def __exit__(self, *_: object) -> None:
        self.detach()

    def attach(self) -> HeadGuidance:
        """Add the hooks. Raises ValueError if the model is guided already, compiled, or has a block cache."""
        _check_attachable(self.transformer)
        if self._is_off():
            self.report = Report(0, "none", "scale or softness is 0")
            return self
        blocks = sorted({head.block for heads in self.sets for head in heads})
        with ExitStack() as undo:
            self._runner = BranchRunner(self.transformer, self.layout, blocks, self.perturbation, self._count)
            undo.callback(self._runner.remove)
            undo.callback(self.transformer.register_forward_pre_hook(self._before, with_kwargs=True).remove)
            undo.callback(self.transformer.register_forward_hook(self._after, with_kwargs=True).remove)
            if self.pipe is None:
                self._run = self._begin(0)
            else:
                undo.callback(_put_back, self.pipe, vars(self.pipe).get("progress_bar"))
                self._mark_runs(self.pipe)
            self._undo = undo.pop_all()
        return self

    def detach(self) -> None:
        """Put the model and the pipeline back exactly as they were. Does nothing if not attached."""
        self._undo.close()
        self._run = self._runner = None

    def _is_off(self) -> bool:
        """Whether nothing would be added. Then no hook is set: the unguided pictures, bit for bit."""
        return self.scale == 0 or not any(u for softness in self.softness for u in softness.values())

    def _mark_runs(self, pipe: Any) -> None:
        """Know which calls of the transformer belong to a run of this pipeline *object*.

        A hook cannot see its caller, and pipelines share transformers. Every pipeline denoises inside
        `with self.progress_bar(...)`, so that method is shadowed on the instance; it closes after
        exceptions too.
        """
        own = pipe.progress_bar

        @contextmanager
        def progress_bar(*args: Any, **kwargs: Any) -> Any:
            if self._run is not None:
                raise InputError(
                    "pipe: a guided run of it is under way, in another thread or around this one"
                )
            self._run = self._begin(pipe.num_timesteps)
            try:
                with own(*args, **kwargs) as bar:
                    yield bar
            finally:
                self._run = None

        vars(pipe)["progress_bar"] = progress_bar

    def _begin(self, steps: int) -> _Run:
        if self.pipe is not None and self.pipe.transformer is not self.transformer:
            raise InputError(
                "pipe: its transformer was replaced while head guidance is attached; attach again"
            )
        for module in self.transformer.modules():
            check_not_compiled(module)
        if steps and not any(self._guides(i, steps) for i in range(steps)):
            raise InputError(f"start, stop: no step of {steps} lies from {self.start} to before {self.stop}")
        mode, reason = self._mode()
        self.report = Report(steps, mode, reason)
        return _Run(steps)

    def _mode(self) -> tuple[str, str]:
        if self.trunk == "two_pass":
            return "two_pass", "as asked"
        assert self._runner is not None
        return "shared", f"forks at block {self._runner.fork} of {len(self.layout.blocks)}"

    def _guides(self, step: int, steps: int) -> bool:
        return self.start <= step / steps < self.stop

    # --- a call of the transformer ---

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        run, runner = self._run, self._runner
        assert runner is not None
        if run is None or run.thread != threading.get_ident():
            raise InputError(
                "pipe: its transformer was called by something other than a run of the pipeline object that "
                "head guidance is attached to (another pipeline that shares it?); detach first"
            )
        check_not_compiled(module)
        runner.check_untouched()
        arguments = runner.arguments(args, kwargs)
        if self._begins_step(run, arguments):
            self._enter_step(run, arguments)
            if run.evaluates:
                run.rows = self._rows(self.layout.batch(arguments))
            if run.evaluates and self.report.trunk == "shared":
                arguments = runner.forked(arguments, self._weights(arguments, run.rows), run.rows)
        return (), arguments

    def _after(self, _: nn.Module, __: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        run, runner = self._run, self._runner
        assert run is not None and runner is not None
        sample = self.layout.family.prediction(output)
        if run.evaluates and run.difference is None:
            assert run.input is not None
            batch, rows = len(run.input), run.rows
            if self.report.trunk == "shared":
                sample, perturbed = sample[:batch], sample[batch:]
            else:
                second = runner.second_pass(kwargs, self._weights(kwargs, rows), rows)
                perturbed = self.layout.family.prediction(second)
            run.difference = self._difference(sample[rows], perturbed)
        if run.difference is None:
            return output
        return self.layout.family.with_prediction(output, _added(sample, run.difference))

    def _begins_step(self, run: _Run, arguments: Mapping[str, Any]) -> bool:
        """Whether this is the first call of a step. SD3's skip-layer call is another of the same step, and
        so is FLUX's negative call, with the very same latents (equal timesteps alone will not do: a Heun
        scheduler repeats them)."""
        if self.pipe is None or run.input is None:
            return True
        latents, timestep = arguments[self.layout.family.arguments.latents], arguments.get("timestep")
        same = latents is run.input and torch.equal(timestep, run.timestep)  # pyright: ignore[reportArgumentType]
        return not same and arguments.get("skip_layers") is None

    def _enter_step(self, run: _Run, arguments: Mapping[str, Any]) -> None:
        run.step += 1
        run.input, run.timestep = arguments[self.layout.family.arguments.latents], arguments.get("timestep")
        if self.pipe is None:
            self.report.steps += 1
        guided = self.pipe is None or self._guides(run.step, run.steps)
        run.evaluates = guided and len(self.report.guided) % self.every == 0
        if guided:
            self.report.guided.append(run.step)
        if run.evaluates or not guided:
            run.difference = None  # else that of the last evaluation serves again

    def _rows(self, batch: int) -> slice:
        """The conditional rows of a batch."""
        if self.conditional is not None:
            rows = self.conditional(batch) if callable(self.conditional) else self.conditional
            count = len(range(*rows.indices(batch)))
            if not count or batch % count or (rows.step or 1) < 1:
                raise InputError(
                    f"conditional: expected rows that tile a batch of {batch}, got {rows}, {count} rows"
                )
            return rows
        return self.layout.family.conditional_rows(self.pipe, batch)

    def _weights(self, arguments: Mapping[str, Any], rows: slice) -> Weights:
        latents = arguments[self.layout.family.arguments.latents]
        count = len(range(*rows.indices(len(latents))))
        if self.per_sample and len(self.sets) != count:
            raise InputError(
                f"heads: expected one head set for each of {count} pictures, got {len(self.sets)}"
            )
        each = self.softness if self.per_sample else self.softness * count
        return weights_of(self.layout, each, latents[0])

    def _difference(self, conditional: Tensor, perturbed: Tensor) -> Tensor:
        exact = torch.promote_types(conditional.dtype, torch.float32)
        clean = conditional.to(exact)
        difference = self.scale * (clean - perturbed.to(exact))
        if self.rescale:
            guided = clean + difference
            dims = list(range(1, guided.ndim))
            ratio = clean.std(dims, keepdim=True) / guided.std(dims, keepdim=True)
            difference = difference + self.rescale * (ratio - 1) * guided
        return difference.to(conditional.dtype)

    def _count(self, rows: int, second_pass: bool) -> None:
        report, run = self.report, self._run
        if run is None:
            return
        report.evaluations += rows
        if second_pass:
            report.extra += rows
        elif run.input is not None and rows > len(run.input):
            report.extra += rows - len(run.input)


def _put_back(pipe: DiffusionPipeline, progress_bar: object) -> None:
    """What the instance had: usually nothing, the method is the class's."""
    del vars(pipe)["progress_bar"]
    if progress_bar is not None:
        vars(pipe)["progress_bar"] = progress_bar


def _added(sample: Tensor, difference: Tensor) -> Tensor:
    """`sample` [k R, ...] with the difference [R, ...] on each of its k tiles."""
    if len(sample) % len(difference):
        raise InputError(
            f"pipe: expected calls of a multiple of {len(difference)} rows in a step, got {len(sample)}"
        )
    return (sample.unflatten(0, (-1, len(difference))) + difference).flatten(0, 1)


def _check_attachable(transformer: nn.Module) -> None:
    for hook in transformer._forward_pre_hooks.values():
        if isinstance(getattr(hook, "__self__", None), HeadGuidance):
            raise InputError(
                "pipe: its transformer is under head guidance already; join the heads in one set"
            )
    check_runs_hooks(transformer)
