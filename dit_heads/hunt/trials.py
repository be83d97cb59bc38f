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


Pair = tuple[str, int]
"""A prompt and a seed."""


class Strength(NamedTuple):
    """How strongly heads guide: scale w, and softness u in [0, 1]."""

    scale: float
    softness: float


@dataclass(frozen=True)
class Trial:
    """A picture of a search.

    Attributes:
        heads: as `HeadSet` prints them, or "" for a picture without head guidance.
        prompt, seed: of the picture. The seed is that of its noise, which depends on nothing else.
        steps: number of denoising steps.
        scale: head guidance scale w; 0 without heads.
        softness: u in [0, 1], how far heads are perturbed; 0 without heads.
    """

    heads: str
    prompt: str
    seed: int
    steps: int
    scale: float
    softness: float

    @property
    def setting(self) -> tuple[bool, int, float, float]:
        """What pictures of one batch have in common: whether heads guide, steps, scale and softness."""
        return bool(self.heads), self.steps, self.scale, self.softness


TrialBatch = tuple[Trial, ...]
Scored = tuple[TrialBatch, list[float]]
Execute = Callable[[Sequence[TrialBatch]], Iterable[Scored]]
"""Batches -> each with its scores, in any order."""


def batches_of(trials: Sequence[Trial], size: int) -> list[TrialBatch]:
    """Batches of neighbours that share a setting, each of at most `size` pictures, in order."""
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
    """Score pictures.

    Args:
        trials: the pictures.
        log: of the search; a batch that it holds is not drawn again.
        execute: scores the batches that are missing.
        size: number of pictures of a batch.
        done: told how many more pictures are scored.

    Returns:
        The score of each of the trials.
    """
    batches = batches_of(trials, size)
    missing = [batch for batch in batches if batch not in log]
    done(sum(map(len, batches)) - sum(map(len, missing)))
    for batch, scores in execute(missing):
        log.add(batch, scores)
        done(len(batch))
    return {trial: log[trial] for trial in trials}
