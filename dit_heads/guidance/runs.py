"""Which call of a transformer belongs to which step of which run of a pipeline.

A hook cannot see its caller, and pipelines share transformers. So a run is told by facts of the pipeline's
own loop: it denoises inside `with self.progress_bar(...)`, calls `scheduler.step` once at the end of a step,
and goes through its lines from top to bottom. Any other call is refused.
"""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from torch import Tensor

from dit_heads.errors import InputError, finite_number, whole_number


@dataclass
class Report:
    """What a run did. A block evaluated on one row of the batch counts as one evaluation.

    Attributes:
        steps: number of steps of the run; of a bare transformer, number of its calls.
        trunk: "shared", "two_pass" or "none".
        reason: why the perturbed branch was evaluated in this way.
        guided: indices of the guided steps.
        evaluations: block evaluations of all calls, those of the perturbed branch included.
        extra: block evaluations of the perturbed branch.
    """

    steps: int
    trunk: str
    reason: str
    guided: list[int] = field(default_factory=list)
    evaluations: int = 0
    extra: int = 0

    def __str__(self) -> str:
        cost = f"{self.extra} of {self.evaluations} block evaluations were the perturbed branch's"
        return f"{len(self.guided)} of {self.steps} steps guided, trunk {self.trunk} ({self.reason}); {cost}"


@dataclass(frozen=True)
class Plan:
    """Which steps of a run are guided.

    Attributes:
        start, stop: step i of N is guided if start <= i / N < stop.
        every: the perturbed branch is evaluated at every n-th guided step. Its difference serves in between.

    Raises:
        InputError: unless 0 <= start < stop <= 1, and for an `every` below 1.
    """

    start: float = 0.0
    stop: float = 1.0
    every: int = 1

    def __post_init__(self) -> None:
        start, stop = finite_number("start", self.start), finite_number("stop", self.stop)
        if not 0 <= start < stop <= 1:
            raise InputError(f"start, stop: expected 0 <= start < stop <= 1, got {start!r} and {stop!r}")
        whole_number("every", self.every, 1)

    def guides(self, step: int, steps: int) -> bool:
        """Whether step `step` of `steps` is guided."""
        return self.start <= step / steps < self.stop

    def guided(self, executed: int, steps: int) -> list[int]:
        """The guided ones of the first `executed` of `steps` steps."""
        return [step for step in range(executed) if self.guides(step, steps)]


class Run:
    """One run of a pipeline, or all calls of a bare transformer while head guidance is attached.

    Args:
        plan: which steps are guided.
        trunk, reason: how the perturbed branch is evaluated, and why.
        steps: number of steps of the run; None for a bare transformer, where each call is a step.
        loop: the frame of the pipeline's own `__call__`; None for a bare transformer.

    Attributes:
        evaluates: whether the call under way evaluates the perturbed branch.
        rows, batch: of that call, the R conditional rows and the number of all rows.
        difference: what every call of the step gets, [R, ...]; None in a step that is not guided.
        is_over: whether the run has ended.
    """

    def __init__(
        self, plan: Plan, trunk: str, reason: str, steps: int | None = None, loop: FrameType | None = None
    ) -> None:
        self.plan, self.trunk, self.reason, self.steps, self._loop = plan, trunk, reason, steps, loop
        self._thread = threading.get_ident()
        self._step, self._calls = 0, 0  # steps done, and calls of the next one
        self._level: Callable[[], float] = float  # the noise level of the first of these
        self._ended_at = 0  # the line of the loop at which the last step ended
        self._call: FrameType | None = None  # makes the call of the transformer that is under way
        self.is_over = self._is_left = False
        self.evaluates = False
        self.rows, self.batch = slice(0), 0
        self.difference: Tensor | None = None
        self._guided: list[int] = []
        self._evaluations = self._extra = 0

    def report(self) -> Report:
        """What the run has done so far."""
        steps = self._step if self.steps is None else self.steps
        return Report(steps, self.trunk, self.reason, list(self._guided), self._evaluations, self._extra)

    def count(self, rows: int, perturbed: int) -> None:
        """A block was evaluated on `rows` rows, `perturbed` of which are the perturbed branch's."""
        self._evaluations += rows
        self._extra += perturbed

    # --- calls ---

    def is_in_call(self) -> bool:
        """Whether the caller is inside a call of the transformer."""
        return self._call is not None and self._call in frames()

    def begin_call(self, noise_level: Callable[[], float]) -> None:
        """Find out which step a call of the transformer belongs to.

        Args:
            noise_level: gives the noise level of the call, in [0, 1].

        Raises:
            InputError: for a call that belongs to no step of this run.
        """
        if threading.get_ident() != self._thread:
            raise InputError(
                "pipe: its transformer was called in another thread, so by something other than a run of the "
                "one that attached head guidance"
            )
        if self.is_in_call():
            raise InputError(
                "pipe: its transformer was called inside a call of it (by a hook?), which is no step of a run"
            )
        if self._call is not None:
            self._calls -= 1  # the last call has raised, and the caller tries again
        if self._calls == 0:
            self._begin_step()
            self._level = noise_level  # for a second call alone: on a GPU it waits
        else:
            self._check_level(noise_level())
            self.evaluates = False
        self._calls += 1
        self._call = sys._getframe(2)  # what runs the hook that calls this

    def _begin_step(self) -> None:
        if self._loop is not None and self._step and self._loop.f_lineno > self._ended_at:
            raise InputError(
                f"pipe: its transformer was called after the scheduler had ended step {self._step - 1} (by a "
                "callback?), which is no step of the run; detach first"
            )
        guides = self.steps is None or self.plan.guides(self._step, self.steps)
        self.evaluates = guides and len(self._guided) % self.plan.every == 0
        if self.evaluates or not guides:
            self.difference = None  # else that of the last evaluation serves again

    def _check_level(self, found: float) -> None:
        if found != self._level():
            raise InputError(
                f"pipe: its transformer was called at noise level {found:.4g} in a step of noise "
                f"level {self._level():.4g}; was its scheduler replaced during the run?"
            )

    def end_call(self) -> None:
        """A call of the transformer has returned."""
        self._call = None
        if self._calls == 1 and self.difference is not None:
            self._guided.append(self._step)
        if self.steps is None:
            self.end_step()

    def end_step(self) -> None:
        """The pipeline calls `scheduler.step`.

        Raises:
            InputError: if this ends no step of the run.
        """
        if self._is_left:
            return
        if self.is_over or not self._calls:
            raise InputError(
                "pipe: its scheduler's step was called by something other than the loop of a guided run (a "
                "callback, or through a copy of the scheduler made there?)"
            )
        self._step, self._calls = self._step + 1, 0
        self._level = float  # lets go of the arguments of the step's first call
        self._ended_at = self._loop.f_lineno if self._loop is not None else 0

    def leave(self) -> None:
        """Head guidance was detached during the run, which continues without it."""
        self._is_left = True

    def close(self) -> None:
        """The run is over. References to its loop and calls are dropped: they hold all tensors of the run."""
        self.is_over = True
        self._loop = self._call = self.difference = None
        self._level = float

    def finish(self, interrupted: bool) -> None:
        """Compare the guided steps with the plan.

        Args:
            interrupted: whether the pipeline was asked to stop early.

        Raises:
            InputError: if they differ, or if steps are missing.
        """
        if self._is_left:
            return
        assert self.steps is not None
        expected = self.plan.guided(self._step, self.steps)
        if self._guided != expected or (self._step != self.steps and not interrupted):
            raise InputError(
                f"pipe: expected a run of {self.steps} steps with these guided: "
                f"{self.plan.guided(self.steps, self.steps)}, got {self._step} steps, guided {self._guided}"
            )


# --- the pipeline's own loop ---


def loop_of(pipe: Any) -> FrameType | None:
    """The frame of `pipe`'s own `__call__` around the caller; None if there is none. A call of another object
    of the same class is none."""
    calls = [vars(kind)["__call__"] for kind in type(pipe).__mro__ if "__call__" in vars(kind)]
    codes = {call.__code__ for call in map(inspect.unwrap, calls) if hasattr(call, "__code__")}
    return next((f for f in frames() if f.f_code in codes and f.f_locals.get("self") is pipe), None)


def frames() -> Iterator[FrameType]:
    """The frames around the caller, from the inside out."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


@contextmanager
def shadowed(owner: Any, name: str, method: Callable[..., Any]) -> Iterator[None]:
    """Shadow a method of this one instance by `method`, and put back what the instance had at the end."""
    had = vars(owner).get(name)
    vars(owner)[name] = method
    try:
        yield
    finally:
        if had is None:
            vars(owner).pop(name, None)
        else:
            vars(owner)[name] = had
