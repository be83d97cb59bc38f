"""Successive halving: many candidates on few pairs, the better ones on more, the best on all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class Rung(NamedTuple):
    """A step of successive halving: the first `candidates` of a ranking are drawn with the first `pairs`."""

    candidates: int
    pairs: int


def rungs(candidates: int, pairs: int, choose: int, pictures: int) -> list[Rung]:
    """Plan a round: a quarter, half and all of the pairs for ever fewer candidates (after arXiv 1502.07943).

    The number of candidates falls geometrically to a quarter more than `choose`, at least one more. Pictures
    of one rung serve the next.

    Args:
        candidates: number of heads to choose from.
        pairs: number of (prompt, seed) pairs.
        choose: number of heads to choose.
        pictures: number of pictures that may be drawn. The last rung is drawn even if they do not suffice.
    """
    sizes = sorted({math.ceil(pairs / 4), math.ceil(pairs / 2), pairs})
    last = min(candidates, max(choose + 1, math.ceil(1.25 * choose)))
    plans = (_falling(first, last, sizes) for first in range(candidates, last - 1, -1))
    return next((plan for plan in plans if cost(plan) <= pictures), _falling(last, last, sizes))


def _falling(first: int, last: int, sizes: Sequence[int]) -> list[Rung]:
    falls = max(1, len(sizes) - 1)
    ratio = last / first
    return [Rung(round(first * ratio ** (i / falls)), size) for i, size in enumerate(sizes)]


def cost(plan: Sequence[Rung]) -> int:
    """Number of pictures that a plan takes."""
    known = (0, *(rung.pairs for rung in plan))
    return sum(rung.candidates * (rung.pairs - before) for rung, before in zip(plan, known, strict=False))
