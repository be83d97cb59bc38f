"""The run under way: all calls of a bare transformer, or one run of a pipeline after the other."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import FrameType
from typing import Any

from dit_heads.errors import InputError
from dit_heads.guidance.runs import Plan, Run, loop_of, shadowed


class Runs:
    """The run under way and the last one. All calls of a bare transformer are one run.

    Args:
        plan: which steps are guided.
        trunk, reason: how the perturbed branch is evaluated, and why.
    """

    def __init__(self, plan: Plan, trunk: str, reason: str) -> None:
        self._plan, self._trunk, self._reason = plan, trunk, reason
        self.current: Run | None = None
        self.last: Run | None = None

    @contextmanager
    def attached(self) -> Iterator[None]:
        """While this lasts, calls of the transformer belong to runs."""
        self._begin()
        try:
            yield
        finally:
            self._leave()

    def _begin(self, steps: int | None = None, loop: FrameType | None = None) -> Run:
        self.current = self.last = Run(self._plan, self._trunk, self._reason, steps, loop)
        return self.current

    def _leave(self) -> None:
        if self.current is not None:
            self.current.leave()
        self.current = None


class PipelineRuns(Runs):
    """The runs of a pipeline, one at a time, all in the thread that made this.

    A run lasts as long as the pipeline's `progress_bar`, and its scheduler's `step` ends each step. Both are
    shadowed on the instance.

    Args:
        pipe: the pipeline.
        check_model: raises if the model has changed; called when a run begins.
        plan, trunk, reason: as for `Runs`.
    """

    def __init__(
        self, pipe: Any, check_model: Callable[[], None], plan: Plan, trunk: str, reason: str
    ) -> None:
        super().__init__(plan, trunk, reason)
        self._pipe, self._transformer, self._check_model = pipe, pipe.transformer, check_model
        self._thread, self._lock = threading.get_ident(), threading.Lock()
        self._is_attached = False

    @contextmanager
    def attached(self) -> Iterator[None]:
        """While this lasts, every run of the pipeline is marked."""
        self._is_attached = True
        try:
            with shadowed(self._pipe, "progress_bar", self._marking(self._pipe.progress_bar)):
                yield
        finally:
            self._is_attached = False
            self._leave()

    def _marking(self, own: Callable[..., Any]) -> Callable[..., Any]:
        """The pipeline's `progress_bar`, which tells when a run begins and ends, after exceptions too."""

        @contextmanager
        def progress_bar(*args: Any, **kwargs: Any) -> Any:
            # A shallow copy of the pipeline has this method still when guidance is detached.
            run = self._running() if self._is_attached else nullcontext()
            with run, own(*args, **kwargs) as bar:
                yield bar

        return progress_bar

    @contextmanager
    def _running(self) -> Iterator[None]:
        with self._lock:
            if self.current is not None:
                raise InputError(
                    "pipe: a guided run of it is under way, in another thread or around this one"
                )
            run = self._begin(*self._steps_and_loop())
        try:
            with shadowed(self._pipe.scheduler, "step", StepOf(self._pipe.scheduler, run.end_step)):
                yield
            run.finish(interrupted=bool(getattr(self._pipe, "interrupt", False)))
        finally:
            run.close()
            self.current = None

    def _steps_and_loop(self) -> tuple[int, FrameType]:
        """Number of steps of the run that begins, and the frame of the pipeline's loop."""
        if threading.get_ident() != self._thread:
            raise InputError(
                "pipe: head guidance was attached to it in another thread, which alone can run it; attach in "
                "the thread that runs, to a pipeline of its own"
            )
        if self._pipe.transformer is not self._transformer:
            raise InputError(
                "pipe: its transformer was replaced while head guidance is attached; attach again"
            )
        self._check_model()  # before a compiled model can trace what we do in a call
        loop = loop_of(self._pipe)
        if loop is None:
            raise InputError(
                "pipe: expected a run of its own `__call__`, got another loop inside its progress_bar; guide "
                "its transformer instead, with `conditional`"
            )
        steps = self._pipe.num_timesteps
        if not self._plan.guided(steps, steps):
            raise InputError(
                f"start, stop: no step of {steps} lies from {self._plan.start} to before {self._plan.stop}"
            )
        return steps, loop


class StepOf:
    """A scheduler's `step`, which first says that a step has ended."""

    def __init__(self, scheduler: Any, ended: Callable[[], None]) -> None:
        self._own, self._ended = scheduler.step, ended

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._ended()
        return self._own(*args, **kwargs)

    def __deepcopy__(self, memo: object) -> StepOf:
        raise InputError("pipe: its scheduler cannot be copied during a guided run")
