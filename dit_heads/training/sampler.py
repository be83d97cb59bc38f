"""The order of samples in a run: shuffled decks, dealt in batches, a function of seed and step."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from dit_heads.errors import whole_number


def draws_at(
    step: int, batch_size: int, buckets: Sequence[Sequence[int]], seed: int
) -> list[tuple[int, int]]:
    """The samples of one batch, all from one bucket.

    Each bucket deals its samples like a deck that is shuffled anew when it is used up: every sample comes
    once an epoch. Every batch is full, because the samples that an epoch leaves over begin the next one's
    first batch. The full batches of all buckets are shuffled among each other in each epoch.

    A step takes time in proportion to the batch. The first step of an epoch shuffles the whole epoch.

    Args:
        step: number of the batch, from 0.
        batch_size: number of samples in it.
        buckets: the samples of each bucket.
        seed: of the order.

    Returns:
        Pairs of a sample and the epoch in which it is dealt.
    """
    whole_number("step", step, 0)
    whole_number("batch_size", batch_size, 1)

    def batches_before(epoch: int) -> list[int]:
        return [epoch * len(bucket) // batch_size for bucket in buckets]

    epoch = step * batch_size // sum(map(len, buckets))  # left-over samples can only make it later
    while sum(batches_before(epoch + 1)) <= step:
        epoch += 1
    first, end = batches_before(epoch), batches_before(epoch + 1)
    ends = list(accumulate(e - f for f, e in zip(first, end, strict=True)))
    place = int(_shuffled((1, seed, epoch), ends[-1])[step - sum(first)])
    bucket = bisect_right(ends, place)
    batch = end[bucket] - ends[bucket] + place
    return [_dealt(buckets[bucket], bucket, batch * batch_size + k, seed) for k in range(batch_size)]


def _dealt(samples: Sequence[int], bucket: int, place: int, seed: int) -> tuple[int, int]:
    epoch, k = divmod(place, len(samples))
    return samples[_shuffled((2, seed, epoch, bucket), len(samples))[k]], epoch


@lru_cache(maxsize=256)
def _shuffled(key: tuple[int, ...], count: int) -> NDArray[np.int64]:
    """The numbers below `count` in an order that the key fixes."""
    return np.random.default_rng(key).permutation(count)
