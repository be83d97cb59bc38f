"""Work that a test watches, or cancels, while it goes on."""

import gc
from collections.abc import Callable, Mapping
from typing import Any

import psutil

from dit_heads.demo.jobs import Job, Work


def watched(work: Work, tell: Callable[[Job, Mapping[str, Any]], object]) -> Work:
    """The work; `tell` is called with its job and the changes after each of its updates."""

    def watching(pipe: Any, job: Job) -> Any:
        original = job.update

        def update(**changes: Any) -> None:
            original(**changes)
            tell(job, changes)

        job.update = update  # pyright: ignore[reportAttributeAccessIssue]
        return work(pipe, job)

    return watching


def memory_grown(work: Callable[[int], object]) -> int:
    """Bytes by which this process grows in 100 pieces of work, after 120 others; `work` does so many."""
    process = psutil.Process()

    def used(count: int) -> int:
        work(count)
        gc.collect()
        return process.memory_info().rss

    used(100)
    before = used(20)
    grown = used(100) - before
    print(f"memory grew by {grown / 2**20:.1f} MiB")
    return grown


def cancelled_at(step: int, work: Work) -> Work:
    """The work, whose job is cancelled once it has taken a step."""
    return watched(work, lambda job, changes: job.cancel() if changes.get("step") == step else None)
