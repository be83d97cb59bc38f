"""The only owner of pipelines. Jobs of one model run one after the other, in one thread; nothing of a job
reaches another; the wait is bounded and shown; a cancelled job ends before the next step; a long one lets
the others go first."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from dit_heads.demo.isolation import MAKING, State, lent, state_of
from dit_heads.demo.jobs import Job, Work
from dit_heads.demo.limits import Limits
from dit_heads.demo.log import LOG
from dit_heads.demo.sentences import sentence
from dit_heads.errors import InputError

Load = Callable[[], Any]
ASIDE = "aside"
"""Where jobs run that bring a model of their own, one after the other, beside those of the models."""
Pause = Callable[[], AbstractContextManager[None]]


class Engine:
    """Queues of jobs, one for each model.

    >>> with Engine({"embedded": load_embedded}) as engine:                      # doctest: +SKIP
    ...     picture = engine.submit("embedded", Drawing(settings)).wait()

    Args:
        loaders: what loads the pipeline of a model, by the model's name. It is called in the thread that
            draws, at the first job or at `warm_up`.
        limits: how many jobs may wait, and how long each may run.
    """

    def __init__(self, loaders: Mapping[str, Load], limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._workers = {name: Worker(name, load, self.limits) for name, load in loaders.items()}
        slow = replace(self.limits, queue=self.limits.trainings, seconds=self.limits.training_seconds)
        self._workers[ASIDE] = Worker(ASIDE, None, slow)
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(name for name in self._workers if name != ASIDE)

    def submit(self, model: str, work: Work, owner: str | None = None) -> Job:
        """Queue a piece of work.

        Args:
            model: the model whose pipeline it gets; `ASIDE` for work that gets none.
            work: what to do with it.
            owner: who asks, for the limit of jobs that one visitor may have.

        Raises:
            InputError: for an unknown model, a full queue, or too many jobs of this owner.
        """
        if model not in self._workers:
            raise InputError(f"model: expected one of {', '.join(self.models)}, got '{model}'")
        with self._lock:
            self._forget()
            self._check_owner(owner)
            job = self._workers[model].put(work, owner)
            self._jobs[job.id] = job
        return job

    def job(self, key: str) -> Job:
        """The job of an id. Raises InputError for one that there is not, or not any more."""
        with self._lock:
            if (job := self._jobs.get(key)) is None:
                raise InputError("job: there is none of this name any more; please start it again")
            return job

    def cancel_all(self, owner: str | None) -> None:
        """Cancel all jobs of an owner."""
        with self._lock:
            theirs = [job for job in self._jobs.values() if owner is not None and job.owner == owner]
        for job in theirs:
            job.cancel()

    def warm_up(self) -> None:
        """Load the first model in the background; the others are loaded when they are asked for."""
        next(iter(self._workers.values())).put(lambda pipe, job: None, None)

    def close(self) -> None:
        """Cancel all jobs and end the threads."""
        for worker in self._workers.values():
            worker.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_owner(self, owner: str | None) -> None:
        theirs = [job for job in self._jobs.values() if job.owner == owner and not job.over]
        if owner is not None and len(theirs) >= self.limits.per_visitor:
            raise InputError(
                f"queue: {len(theirs)} of your requests are waiting already; please wait for one of them, or "
                "cancel it"
            )

    def _forget(self) -> None:
        over = [key for key, job in self._jobs.items() if job.over]
        for key in over[: max(0, len(over) - self.limits.kept)]:
            del self._jobs[key]


class Worker:
    """One model and the thread that alone touches it; without `load`, a thread whose jobs get no model."""

    def __init__(self, name: str, load: Load | None, limits: Limits) -> None:
        self.name, self._load, self._limits = name, load, limits
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []  # the last one is being done; the others give way to it
        self._wake = threading.Condition()
        self._closed = False
        self._pipe: Any = None
        self._clean: State = ()
        self._thread = threading.Thread(target=self._loop, name=f"dit-heads {name}", daemon=True)
        self._thread.start()

    def put(self, work: Work, owner: str | None) -> Job:
        """Queue a piece of work. Raises InputError if too many wait."""
        with self._wake:
            self._waiting = deque(job for job in self._waiting if not job.over)
            if len(self._waiting) >= self._limits.queue:
                raise InputError(
                    f"queue: {len(self._waiting)} requests are waiting already; please try again in a minute"
                )
            job = Job(work, owner, self._limits.seconds, self._position)
            self._waiting.append(job)
            self._wake.notify()
            return job

    def close(self) -> None:
        """Cancel all jobs, and end the thread after the step that it is in."""
        with self._wake:
            self._closed = True
            for job in (*self._waiting, *self._running):
                job.cancel()
            self._wake.notify()
        self._thread.join(timeout=60)

    def _position(self, job: Job) -> int:
        with self._wake:
            before = [each for each in self._waiting if each.waits]
            return (before.index(job) if job in before else 0) + bool(self._running)

    def _loop(self) -> None:
        while (job := self._next()) is not None:
            self._run(job)

    def _next(self) -> Job | None:
        """The next job that was not cancelled; None once the worker is closed."""
        with self._wake:
            while not (job := self._taken(lambda _: True)) and not self._closed:
                self._wake.wait()
            return job

    def _taken(self, fits: Callable[[Job], bool]) -> Job | None:
        """The first waiting job that fits, which now runs."""
        with self._wake:
            self._waiting = deque(job for job in self._waiting if not job.over)
            job = next(filter(fits, self._waiting), None)
            if job:
                self._waiting.remove(job)
                self._running.append(job)
            return job

    def _run(self, job: Job) -> None:
        try:
            if self._load is None:
                job.run(None)
            else:
                self._lend(job, self._load)
        except Exception as error:  # the job's own errors end in `Job.run`
            self._pipe = None
            job.update(state="failed", note=sentence(error))
        self._check_clean()
        with self._wake:
            self._running.remove(job)

    def _lend(self, job: Job, load: Load) -> None:
        if self._pipe is None:
            job.update(note="The model is being loaded.")
            with MAKING:
                self._pipe = load()
            self._pipe.set_progress_bar_config(disable=True)
            self._clean = state_of(self._pipe)
        with lent(self._pipe, job.check) as paused:
            job.run(self._pipe, lambda: self._others(job, paused))

    def _others(self, job: Job, paused: Pause) -> bool:
        """Do the jobs that wait and are not long, while `job` gives way; each of those there are now, so that
        `job` goes on however many come after them."""
        with self._wake:
            quick = [each for each in self._waiting if not each.long and not each.over]
        if not quick:
            return False
        job.update(note="Another visitor's picture goes first")
        with paused():
            if state_of(self._pipe) != self._clean:
                return False  # the job is not as free of changes as it says
            for each in quick:
                if self._taken(lambda waiting, each=each: waiting is each):
                    self._run(each)
        if self._pipe is None:
            raise RuntimeError("a job that went first has changed the model")
        return True

    def _check_clean(self) -> None:
        if self._pipe is not None and state_of(self._pipe) != self._clean:
            LOG.error("a job left a trace in the model '%s', which is loaded again", self.name)
            self._pipe = None
