"""The rounds of a search: which heads are drawn with how many pairs, and which of them are chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from dit_heads.heads import HeadId, HeadSet
from dit_heads.hunt.config import HuntConfig
from dit_heads.hunt.evaluator import Done, Evaluator
from dit_heads.hunt.halving import Rung, cost, rungs
from dit_heads.hunt.result import Round


def exhaustive_round(
    evaluator: Evaluator, candidates: Sequence[HeadId], chosen: Sequence[HeadId], done: Done
) -> Round:
    """Score every candidate together with the heads chosen before (arXiv 2506.10978, algorithm 1).

    Args:
        evaluator: of the search.
        candidates: heads that are not chosen yet.
        chosen: heads of earlier rounds.
        done: told the number of pictures.
    """
    sets = [HeadSet((*chosen, head)) for head in candidates]
    scores = dict(zip(candidates, evaluator.scores(sets, evaluator.pairs, done), strict=True))
    return Round(tuple(_ranked(scores)[: evaluator.config.per_round]), scores)


def fast_round(
    evaluator: Evaluator,
    candidates: Sequence[HeadId],
    chosen: Sequence[HeadId],
    slopes: Mapping[HeadId, float],
    done: Done,
) -> Round:
    """Score the candidates of the steepest slopes, by successive halving.

    Args:
        evaluator: of the search.
        candidates: heads that are not chosen yet.
        chosen: heads of earlier rounds.
        slopes: of every head, from the gradient screen.
        done: told the number of pictures.
    """
    left = sorted(candidates, key=lambda head: (-slopes[head], head))
    scores: dict[HeadId, list[float]] = {head: [] for head in left}
    known = 0
    for rung in rungs_of_round(evaluator.config, len(evaluator.pairs), len(left)):
        left = left[: rung.candidates]
        sets = [HeadSet((*chosen, head)) for head in left]
        found = evaluator.scores(sets, evaluator.pairs[known : rung.pairs], done)
        for head, of_head in zip(left, found, strict=True):
            scores[head] += of_head
        known, left = rung.pairs, _ranked({head: scores[head] for head in left})
    scores = {head: of_head for head, of_head in scores.items() if of_head}
    return Round(tuple(left[: evaluator.config.per_round]), scores, slopes)


def rungs_of_round(config: HuntConfig, pairs: int, candidates: int) -> list[Rung]:
    """Plan a fast round: its share of an exhaustive round's pictures, less those of the screen.

    Args:
        config: settings of the search.
        pairs: number of (prompt, seed) pairs.
        candidates: number of heads to choose from.
    """
    pictures = int(config.share * pairs * (candidates + 1)) - pairs
    return rungs(candidates, pairs, config.per_round, pictures)


def picture_count(config: HuntConfig, pairs: int, candidates: int) -> int:
    """Number of pictures that a whole search takes, with that many pairs and candidates."""
    left = [candidates - number * config.per_round for number in range(config.rounds)]
    if config.method == "exhaustive":
        return pairs * (1 + sum(left))
    return pairs * len(left) + sum(cost(rungs_of_round(config, pairs, count)) for count in left)


def _ranked(scores: Mapping[HeadId, Sequence[float]]) -> list[HeadId]:
    """Best mean first."""
    return sorted(scores, key=lambda head: (-fmean(scores[head]), head))
