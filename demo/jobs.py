"""A job: one piece of work for one model, its state as any thread may read it, and the way to stop it."""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from dit_heads.demo.sentences import sentence
from dit_heads.errors import InputError

State = Literal["waiting", "running", "done", "failed", "cancelled"]
POLL = 0.05  # seconds between two looks at a job


class Work(Protocol):
    """What a job does with the pipeline that it is lent; what it returns is the job's result.

    Work that takes minutes has an attribute `long` that is true and calls `job.give_way()` now and then.
    """

    def __call__(self, pipe: Any, job: Job, /) -> Any: ...


class Cancelled(BaseException):
    """Ends a job from within. No `except Exception` on the way stops it."""


@dataclass(frozen=True)
class View:
    """A job at one moment.

    Attributes:
        position: jobs before this one, the running one included; 0 for one that runs or is over.
        step, steps: how far it is; 0 of 0 before its work says more.
        note: what is going on, or for a failed job what was wrong, as a sentence.
        preview: what there is to see by now, in a form that the work and its tab agree on.
        result: what the work returned, once it is done.
    """

    state: State = "waiting"
    position: int = 0
    step: int = 0
    steps: int = 0
    note: str = ""
    preview: Any = None
    result: Any = None

    @property
    def over(self) -> bool:
        return self.state in ("done", "failed", "cancelled")

    @property
    def stamp(self) -> tuple[Any, ...]:
        """What differs between two views of a job that a visitor could tell apart."""
        return self.state, self.position, self.step, self.note, id(self.preview)


class Job:
    """One piece of work. Its id is a secret of whoever asked for it.

    Args:
        work: what to do.
        owner: who asked; None for nobody in particular.
        seconds: how long it may run.
        position: jobs before this one.
    """

    def __init__(self, work: Work, owner: str | None, seconds: float, position: Callable[[Job], int]) -> None:
        self.id = secrets.token_urlsafe(16)
        self.work, self.owner, self.seconds = work, owner, seconds
        self._position, self._view = position, View()
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._deadline = float("inf")
        self._others: Callable[[], bool] = lambda: False

    @property
    def long(self) -> bool:
        """Whether it lets others go first while it runs."""
        return bool(getattr(self.work, "long", False))

    @property
    def view(self) -> View:
        """The job as it is now."""
        view = self._view
        return replace(view, position=self._position(self)) if view.state == "waiting" else view

    @property
    def over(self) -> bool:
        return self._view.over

    @property
    def waits(self) -> bool:
        return self._view.state == "waiting"

    def update(self, **changes: Any) -> None:
        """Change the view. A job that is over stays as it is."""
        with self._changed:
            if not self._view.over:
                self._view = replace(self._view, **changes)
                self._changed.notify_all()

    def cancel(self) -> None:
        """Stop: at once if it waits, else before the next step of its model."""
        self._stop.set()
        if self.waits:
            self.update(state="cancelled")

    @property
    def stopped(self) -> bool:
        """Whether it was cancelled, or has run for too long, for work that ends by itself then."""
        return self._stop.is_set() or time.monotonic() > self._deadline

    def check(self) -> None:
        """Called by the model before each of its steps.

        Raises:
            Cancelled: if the job was cancelled.
            InputError: if it has run for too long.
        """
        if self._stop.is_set():
            raise Cancelled
        if time.monotonic() > self._deadline:
            raise InputError(f"time: expected a job of at most {self.seconds:.0f} s; ask for fewer steps")

    def give_way(self) -> None:
        """Called by long work where the pipeline is free of its changes: jobs that wait and are not long go
        first. The time that they take is not the job's own."""
        note, began = self._view.note, time.monotonic()
        if self._others():
            self._deadline += time.monotonic() - began
            self.update(note=note)
        self.check()

    def run(self, pipe: Any, others: Callable[[], bool] = lambda: False) -> None:
        """Do the work in this thread; whatever happens in it becomes the job's state.

        Args:
            pipe: the pipeline that it is lent.
            others: does jobs that wait, and says whether there were any.
        """
        self._others = others
        self._deadline = time.monotonic() + self.seconds
        self.update(state="running", note="")
        try:
            self.check()
            result = self.work(pipe, self)
        except Cancelled:
            self.update(state="cancelled", preview=None)
        except Exception as error:
            self.update(state="failed", note=sentence(error), preview=None)
        else:
            self.update(state="done", note="", preview=None, result=result)

    def wait(self, timeout: float | None = None) -> Any:
        """The result, once it is there.

        Raises:
            InputError: with the sentence of a failed job, or that it was cancelled.
            TimeoutError: if it is not over in time.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._view.over, timeout):
                raise TimeoutError(f"job: not over after {timeout} s")
        if self._view.state == "done":
            return self._view.result
        raise InputError(self._view.note or "job: it was cancelled")

    async def follow(self) -> AsyncIterator[View]:
        """The view whenever it has changed, the last one when the job is over. No thread waits meanwhile."""
        seen = None
        while True:
            view = self.view
            if view.stamp != seen:
                seen = view.stamp
                yield view
            if view.over:
                return
            await asyncio.sleep(POLL)
