"""The order of samples: whole epochs, full batches, and a million samples at no more than a few."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dit_heads.training import sampler
from dit_heads.training.sampler import draws_at

BUCKETS = st.lists(st.integers(1, 9), min_size=1, max_size=3).map(
    lambda sizes: [[100 * b + k for k in range(size)] for b, size in enumerate(sizes)]
)


@settings(max_examples=50)
@given(buckets=BUCKETS, batch=st.integers(1, 5), seed=st.integers(0, 2**40))
def test_every_sample_comes_once_an_epoch(buckets, batch, seed):
    steps = 3 * sum(map(len, buckets))
    batches = [draws_at(step, batch, buckets, seed) for step in range(steps)]
    for draws in batches:
        assert len(draws) == batch and len({index // 100 for index, _ in draws}) == 1  # full, of one bucket
    counts = Counter(draw for draws in batches for draw in draws)
    assert set(counts.values()) == {1}  # never twice in an epoch
    for b, bucket in enumerate(buckets):
        epochs = [epoch for draws in batches for index, epoch in draws if index // 100 == b]
        for epoch in range(
            max(epochs, default=0) - 1
        ):  # a batch may run ahead by one; those before are whole
            assert {index for index, e in counts if e == epoch and index // 100 == b} == set(bucket)


def test_with_one_bucket_that_divides_an_epoch_is_a_shuffled_pass():
    bucket = [list(range(12))]
    epochs = [[i for step in range(3) for i, _ in draws_at(3 * e + step, 4, bucket, 0)] for e in range(20)]
    assert all(sorted(epoch) == bucket[0] for epoch in epochs)
    assert all(a != b for a, b in pairwise(epochs))
    assert [i for step in range(3) for i, _ in draws_at(step, 4, bucket, 1)] != epochs[0]


def test_buckets_are_drawn_as_often_as_they_have_samples():
    buckets = [list(range(30)), list(range(100, 110))]
    drawn = Counter(draws_at(step, 4, buckets, 0)[0][0] // 100 for step in range(400))
    assert drawn == {0: 300, 1: 100}


@pytest.mark.parametrize(("step", "batch", "name"), [(-1, 1, "step"), (0, 0, "batch_size"), (1.5, 1, "step")])
def test_wrong_steps_are_refused(step, batch, name):
    with pytest.raises(ValueError, match=f"{name}: expected a whole number"):
        draws_at(step, batch, [[0]], 0)


def listed(step: int, batch_size: int, buckets: Sequence[Sequence[int]], seed: int) -> list[tuple[int, int]]:
    """A batch from the shuffled list of all batches of an epoch; each sample shuffles its deck anew."""

    def batches(epoch: int) -> list[tuple[int, int]]:
        full = [(epoch * len(b) // batch_size, (epoch + 1) * len(b) // batch_size) for b in buckets]
        return [(b, k) for b, (first, end) in enumerate(full) for k in range(first, end)]

    epoch = 0
    while step >= len(batches(epoch)):
        step, epoch = step - len(batches(epoch)), epoch + 1
    order = np.random.default_rng((1, seed, epoch)).permutation(len(batches(epoch)))
    bucket, batch = batches(epoch)[order[step]]
    found = []
    for place in range(batch * batch_size, (batch + 1) * batch_size):
        deal, k = divmod(place, len(buckets[bucket]))
        deck = np.random.default_rng((2, seed, deal, bucket)).permutation(len(buckets[bucket]))
        found.append((buckets[bucket][deck[k]], deal))
    return found


@settings(max_examples=50)
@given(buckets=BUCKETS, batch=st.integers(1, 5), seed=st.integers(0, 2**40))
def test_batches_are_those_of_the_whole_list_of_an_epoch(buckets, batch, seed):
    for step in range(2 * sum(map(len, buckets)) // batch):
        assert draws_at(step, batch, buckets, seed) == listed(step, batch, buckets, seed)


def test_a_step_shuffles_nothing_that_was_shuffled_before(monkeypatch: pytest.MonkeyPatch):
    """At a million samples one shuffle takes as long as hundreds of steps."""
    shuffled: list[object] = []

    def generator(key: object) -> np.random.Generator:
        shuffled.append(key)
        return np.random.Generator(np.random.PCG64(0))

    monkeypatch.setattr(sampler, "np", SimpleNamespace(random=SimpleNamespace(default_rng=generator)))
    buckets = [range(900_000), range(900_000, 1_000_000)]
    drawn = [draws_at(step, 16, buckets, 2**41) for step in range(200)]
    assert len({index for draws in drawn for index, _ in draws}) == 3200
    assert len(shuffled) == 3  # the batches of the epoch, and a deck a bucket
