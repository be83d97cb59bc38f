"""One picture of a search and its score, and batches of them.

What is computed in one batch is part of the plan: rounding depends on it, so a search that was killed and
started again, or spread over other workers, gives the same scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from dit_heads.hunt.log import TrialLog


class Strength(NamedTuple):
    """How strongly heads guide: scale w, and softness u from 0 to 1."""

    scale: float
    softness: float


@dataclass(frozen=True)
class Trial:
    """A picture: `heads` as `HeadSet` prints them, or "" for one without head guidance."""

    heads: str
    prompt: str
    seed: int
    steps: int
    scale: float
    softness: float

    @property
    def setting(self) -> tuple[bool, int, float, float]:
        """What all pictures of a batch have in common."""
        return bool(self.heads), self.steps, self.scale, self.softness


TrialBatch = tuple[Trial, ...]
Scored = tuple[TrialBatch, list[float]]
Execute = Callable[[Sequence[TrialBatch]], Iterable[Scored]]
"""Batches -> each with its scores, in any order."""


def batches_of(trials: Sequence[Trial], size: int) -> list[TrialBatch]:
    """Neighbours that share a setting, at most `size` a batch, in order."""
    runs = (list(run) for _, run in groupby(trials, key=lambda trial: trial.setting))
    return [tuple(run[at : at + size]) for run in runs for at in range(0, len(run), size)]


def evaluate(
    trials: Sequence[Trial],
    log: TrialLog,
    execute: Execute,
    *,
    size: int,
    done: Callable[[int], object] = lambda pictures: None,
) -> dict[Trial, float]:
    """The score of every trial, from the log or from `execute`; `done` is told the number of pictures."""
    batches = batches_of(trials, size)
    missing = [batch for batch in batches if batch not in log]
    done(sum(map(len, batches)) - sum(map(len, missing)))
    for batch, scores in execute(missing):
        log.add(batch, scores)
        done(len(batch))
    return {trial: log[trial] for trial in trials}
