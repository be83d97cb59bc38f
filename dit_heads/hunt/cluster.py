"""A search on a Ray cluster: batches go to workers that each hold the model; needs `dit-heads[search]`.

A batch is computed whole by one worker with a fixed number of threads, so results depend neither on how many
workers there are nor on which of them die: Ray starts a dead one again and repeats what it was doing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from dit_heads.errors import InputError
from dit_heads.hunt.trials import Batch, Execute, Scorer, fingerprint

NEEDS = "Ray is missing, which workers need: pip install 'dit-heads[search]'"


class _Worker:
    """Lives in a process of its own: a loaded pipeline and its objective."""

    def __init__(self, load: Callable[[], Scorer], threads: int) -> None:
        torch.set_num_threads(threads)
        self.scorer = load()
        self.scorer.pipe.set_progress_bar_config(disable=True)

    def weights(self) -> str:
        return fingerprint(self.scorer.pipe.transformer)

    def score(self, batch: Batch) -> tuple[Batch, list[float]]:
        return batch, self.scorer(batch)


def on_ray(
    load: Callable[[], Scorer],
    workers: int,
    *,
    weights: str,
    address: str | None = None,
    threads: int = 1,
) -> Execute:
    """Batches by `workers` processes of a Ray cluster, each of which calls `load` once.

    address: of a running cluster ("auto" finds the one of this machine); without, one is started here for as
    long as this process lives. threads: CPU threads of a worker. Where the cluster has GPUs a worker takes
    one of them. weights: the fingerprint of the transformer that the search is about.

    Raises ValueError if Ray is missing, for fewer than one worker or more than the cluster has room for, and
    for workers whose weights are others."""
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
    kind = ray.remote(max_restarts=-1, max_task_retries=-1, **options)(_Worker)
    actors = [kind.remote(load, threads) for _ in range(workers)]
    _check_weights(ray.get([actor.weights.remote() for actor in actors]), weights)

    def execute(batches: Sequence[Batch]) -> Iterator[tuple[Batch, list[float]]]:
        pool: Any = ray.util.ActorPool(actors)
        yield from pool.map_unordered(lambda actor, batch: actor.score.remote(batch), batches)

    return execute


def _check_weights(found: Sequence[str], expected: str) -> None:
    if odd := sorted({one for one in found if one != expected}):
        raise InputError(f"workers: expected a model of weights {expected}, and some have {', '.join(odd)}")


def _ray() -> Any:
    try:
        import ray
        import ray.util
    except ImportError as error:
        raise InputError(NEEDS) from error
    return ray
