"""Successive halving: many candidates on few pairs, the better ones on more, the best on all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class Rung(NamedTuple):
    """The first `candidates` of a ranking are drawn with the first `pairs`."""

    candidates: int
    pairs: int


def rungs(candidates: int, pairs: int, choose: int, pictures: int) -> list[Rung]:
    """Rungs of a quarter, a half and all of `pairs`, for as many candidates as `pictures` allow, falling
    geometrically to a quarter more than `choose`, at least one more (after arXiv 1502.07943). Pictures of one
    rung serve the next. The last rung is drawn even where `pictures` do not suffice for it."""
    sizes = sorted({math.ceil(pairs / 4), math.ceil(pairs / 2), pairs})
    last = min(candidates, max(choose + 1, math.ceil(1.25 * choose)))
    plans = (_falling(first, last, sizes) for first in range(candidates, last - 1, -1))
    return next((plan for plan in plans if cost(plan) <= pictures), _falling(last, last, sizes))


def _falling(first: int, last: int, sizes: Sequence[int]) -> list[Rung]:
    falls = max(1, len(sizes) - 1)
    ratio = last / first
    return [Rung(round(first * ratio ** (i / falls)), size) for i, size in enumerate(sizes)]


def cost(plan: Sequence[Rung]) -> int:
    """Pictures that a plan takes."""
    known = (0, *(rung.pairs for rung in plan))
    return sum(rung.candidates * (rung.pairs - before) for rung, before in zip(plan, known, strict=False))
