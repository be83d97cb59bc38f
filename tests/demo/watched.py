"""Work that a test watches, or cancels, while it goes on."""

from collections.abc import Callable, Mapping
from typing import Any

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


def cancelled_at(step: int, work: Work) -> Work:
    """The work, whose job is cancelled once it has taken a step."""
    return watched(work, lambda job, changes: job.cancel() if changes.get("step") == step else None)
