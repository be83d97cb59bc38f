"""A search on a Ray cluster: batches go to workers that each hold the model; needs `dit-heads[search]`.

One worker computes a whole batch, with a fixed number of threads. So results do not depend on the number of
workers, nor on failures: a new worker takes the place of a dead one, and its batch.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch

from dit_heads.errors import InputError
from dit_heads.hunt.cost import ScreenCost
from dit_heads.hunt.log import differences
from dit_heads.hunt.scorer import HeadCounts, Scorer
from dit_heads.hunt.screen import Screening
from dit_heads.hunt.trials import TrialBatch

NEEDS = "Ray is missing, which workers need: pip install 'dit-heads[search]'"
DEATHS = 3  # of workers over the same batch, before the search ends


class _Worker:
    """Lives in a process of its own: a loaded pipeline and its objective."""

    def __init__(self, load: Callable[[], Scorer], threads: int) -> None:
        torch.set_num_threads(threads)
        self._load = load

    @cached_property
    def scorer(self) -> Scorer:
        """Loaded by the first call: Ray takes an error of the constructor for a death."""
        scorer = self._load()
        scorer.pipe.set_progress_bar_config(disable=True)
        return scorer

    def facts(self) -> tuple[dict[str, Any], HeadCounts]:
        return self.scorer.identity, self.scorer.head_counts

    def score(self, batch: TrialBatch) -> list[float]:
        return self.scorer(batch)

    def paint(self, batch: TrialBatch) -> torch.Tensor:
        return self.scorer.paint(batch).cpu()

    def screen(self, batch: TrialBatch, screening: Screening) -> Any:
        return self.scorer.screen(batch, screening)

    def cost(self, *args: Any) -> ScreenCost:
        return self.scorer.cost(*args)


class RayWorkers:
    """A backend of worker processes; `on_ray` makes one. Called with batches, it scores them.

    A worker that dies is replaced.

    Args:
        ray: the module.
        start: starts a worker.
        workers: number of them.

    Raises:
        InputError: for workers whose pipelines differ, and once three workers have died of the same batch,
            with the reason.
    """

    def __init__(self, ray: Any, start: Callable[[], Any], workers: int) -> None:
        self._ray, self._start = ray, start
        self._actors = [start() for _ in range(workers)]
        found = [facts for _, facts in self._spread("facts", [()] * workers)]
        self.identity, self.head_counts = found[0]
        for other, _ in found[1:]:
            self.check_same(other)

    def __call__(self, batches: Sequence[TrialBatch]) -> Iterator[tuple[TrialBatch, list[float]]]:
        return self.score(batches)

    def check_same(self, identity: Mapping[str, Any]) -> None:
        """Raise InputError unless scores of the workers depend on just this."""
        if differing := "; ".join(differences(self.identity, identity)):
            raise InputError(f"workers: expected the same pipeline and objective everywhere, got {differing}")

    def score(self, batches: Sequence[TrialBatch]) -> Iterator[tuple[TrialBatch, list[float]]]:
        """Each batch with a score for each picture, in the order in which they finish."""
        return self._by_batch("score", batches)

    def paint(self, batches: Sequence[TrialBatch]) -> Iterator[tuple[TrialBatch, torch.Tensor]]:
        """Each batch with its pictures [B, 3, H, W] in [0, 1], in the order in which they finish."""
        return self._by_batch("paint", batches)

    def screen(
        self, batches: Sequence[TrialBatch], screening: Screening
    ) -> Iterator[tuple[TrialBatch, tuple[list[float], dict[Any, float]]]]:
        """Each batch with its scores and slopes, in the order in which they finish."""
        return self._by_batch("screen", batches, screening)

    def cost(self, prompt: str, pictures: int, micro_batch: int | None) -> ScreenCost:
        """What the screen of that many pictures takes, by one worker's account."""
        ((_, found),) = self._spread("cost", [(prompt, pictures, micro_batch)])
        return found

    def _by_batch(self, method: str, batches: Sequence[TrialBatch], *rest: Any) -> Iterator[Any]:
        for (batch, *_), found in self._spread(method, [(batch, *rest) for batch in batches]):
            yield batch, found

    def _spread(self, method: str, calls: Sequence[tuple[Any, ...]]) -> Iterator[tuple[tuple[Any, ...], Any]]:
        """Each call of a worker's method with its result, in the order in which they finish."""
        waiting, idle, deaths = deque(enumerate(calls)), set(range(len(self._actors))), Counter[int]()
        running: dict[Any, tuple[int, int]] = {}
        while waiting or running:
            while waiting and idle:
                slot, (number, call) = idle.pop(), waiting.popleft()
                running[getattr(self._actors[slot], method).remote(*call)] = slot, number
            (done,), _ = self._ray.wait(list(running), num_returns=1)
            slot, number = running.pop(done)
            idle.add(slot)
            try:
                yield calls[number], self._ray.get(done)
            except self._deadly() as error:
                deaths[number] += 1
                if deaths[number] == DEATHS:
                    raise InputError(_why(method, calls[number], error)) from error
                self._actors[slot] = self._start()
                waiting.appendleft((number, calls[number]))
            except self._ray.exceptions.RayTaskError as error:
                raise error.cause from error

    def _deadly(self) -> tuple[type[Exception], ...]:
        known = self._ray.exceptions
        return known.RayActorError, known.OutOfMemoryError, known.WorkerCrashedError


def on_ray(
    load: Callable[[], Scorer], workers: int, *, address: str | None = None, threads: int = 1
) -> RayWorkers:
    """Start workers on a Ray cluster. Each of them calls `load` once.

    Args:
        load: makes the scorer, in the worker's process.
        workers: number of processes. Where the cluster has GPUs each takes one of them.
        address: of a running cluster ("auto" finds the one of this machine). Without it a cluster is started
            here for as long as this process lives.
        threads: CPU threads of a worker.

    Raises:
        InputError: if Ray is missing, for fewer than one worker or more than the cluster has room for, and
            for workers whose pipelines differ.
    """
    ray = _ray()
    if workers < 1:
        raise InputError(f"workers: expected at least 1, got {workers}")
    if not ray.is_initialized():
        local = {"num_cpus": workers * threads} if address is None else {}
        ray.init(address=address, include_dashboard=False, log_to_driver=False, **local)
    resource, each = ("GPU", 1) if ray.cluster_resources().get("GPU") else ("CPU", threads)
    room = ray.cluster_resources().get(resource, 0)
    if workers * each > room:
        raise InputError(
            f"workers: {workers} need {workers * each} {resource}s, and the cluster has {room:g}"
        )
    options = {"num_gpus": 1, "num_cpus": 0} if resource == "GPU" else {"num_cpus": threads}
    kind = ray.remote(max_restarts=0, max_task_retries=0, **options)(_Worker)
    return RayWorkers(ray, lambda: kind.remote(load, threads), workers)


def _why(method: str, call: tuple[Any, ...], error: Exception) -> str:
    what = f"a batch of {len(call[0])} pictures" if method in ("score", "paint", "screen") else method
    reason = " ".join(str(error).split())[:500]
    return f"batch: {DEATHS} workers died of {what} (out of memory? a smaller batch takes less): {reason}"


def _ray() -> Any:
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise InputError(NEEDS) from error
    return ray
