"""How batches are dealt to workers that die, by a Ray of our own in this process."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from dit_heads.errors import InputError
from dit_heads.hunt.cluster import RayWorkers
from dit_heads.hunt.trials import Trial


class Died(Exception):
    pass


class TaskError(Exception):
    def __init__(self, cause: Exception) -> None:
        self.cause = cause


class Worker:
    """Whatever it is asked it hands to `answer`, which may raise; a dead one never answers again."""

    def __init__(self, answer: Callable[..., Any]) -> None:
        self.answer, self.dead = answer, False

    def __getattr__(self, method: str) -> Any:
        return SimpleNamespace(remote=lambda *call: (self, method, call))


class Ray:
    """Calls are made when they are waited for, the last one first."""

    exceptions = SimpleNamespace(
        RayActorError=Died, OutOfMemoryError=MemoryError, WorkerCrashedError=Died, RayTaskError=TaskError
    )

    def wait(self, running: list[Any], num_returns: int) -> tuple[list[Any], list[Any]]:
        return running[-1:], running[:-1]

    def get(self, call: Any) -> Any:
        worker, method, given = call
        if worker.dead:
            raise Died("the actor is dead")
        try:
            return ({"pipeline": "tiny"}, ((4,), (0,))) if method == "facts" else worker.answer(*given)
        except (Died, MemoryError):
            worker.dead = True
            raise


def batch(number: int) -> tuple[Trial, ...]:
    return (Trial("L0H0", f"prompt {number}", 0, 2, 1.0, 1.0),)


def workers(answer: Callable[..., Any], count: int = 2) -> tuple[RayWorkers, list[Worker]]:
    """Workers, and all that were ever started."""
    started: list[Worker] = []

    def start() -> Worker:
        started.append(Worker(answer))
        return started[-1]

    return RayWorkers(Ray(), start, count), started


BATCHES = [batch(number) for number in range(7)]


@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_every_batch_comes_back_once(count):
    cluster, _ = workers(lambda batch: [len(batch[0].prompt)], count)
    found = list(cluster.score(BATCHES))
    assert len(found) == len(BATCHES) and dict(found) == {batch: [len(batch[0].prompt)] for batch in BATCHES}


@pytest.mark.parametrize("error", [Died, MemoryError])
def test_a_batch_whose_worker_died_goes_to_a_new_one(error):
    deaths: list[Any] = []

    def answer(batch: Any) -> list[float]:
        if batch in BATCHES[1::2] and deaths.count(batch) < 2:
            deaths.append(batch)
            raise error
        return [1.0]

    cluster, started = workers(answer)
    assert {found for found, _ in cluster.score(BATCHES)} == set(BATCHES)
    assert len(deaths) == 6 and len(started) == 2 + 6


def test_a_worker_that_died_between_two_searches_is_replaced():
    cluster, started = workers(lambda batch: [1.0])
    for worker in started:
        worker.dead = True
    assert len(list(cluster.score(BATCHES))) == len(BATCHES) and len(started) == 4


def test_three_deaths_over_one_batch_end_the_search_with_the_reason():
    def answer(batch: Any) -> list[float]:
        if batch == BATCHES[3]:
            raise Died("killed by signal 9")
        return [1.0]

    cluster, started = workers(answer)
    with pytest.raises(InputError, match=r"batch: 3 workers died of a batch of 1 pictures .*signal 9"):
        list(cluster.score(BATCHES))
    assert len(started) == 2 + 2


def test_what_a_worker_raises_is_raised_here():
    def answer(batch: Any) -> list[float]:
        raise TaskError(InputError("objective: it has no gradient"))

    cluster, _ = workers(answer)
    with pytest.raises(InputError, match="objective: it has no gradient"):
        list(cluster.score(BATCHES))
