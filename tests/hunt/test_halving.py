"""Plans of successive halving."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dit_heads.hunt.halving import Rung, cost, rungs


def test_a_plan_by_hand():
    plan = rungs(96, 20, 4, 174)
    assert plan == [Rung(15, 5), Rung(9, 10), Rung(5, 20)]
    assert cost(plan) == 15 * 5 + 9 * 5 + 5 * 10 == 170  # from 16 on it would be 175


def test_the_last_rung_is_drawn_whatever_it_takes():
    assert rungs(96, 5, 3, 0) == [Rung(4, 2), Rung(4, 3), Rung(4, 5)]


@given(
    candidates=st.integers(1, 600), pairs=st.integers(1, 40), choose=st.integers(1, 30),
    pictures=st.integers(0, 5000),
)  # fmt: skip
def test_plans_narrow_candidates_and_widen_pairs_within_the_pictures(candidates, pairs, choose, pictures):
    choose = min(choose, candidates)
    plan = rungs(candidates, pairs, choose, pictures)
    assert plan[-1].pairs == pairs and plan[0].candidates <= candidates
    assert len(plan) == 1 or choose <= plan[-1].candidates <= 1.25 * choose + 1
    assert all(a.candidates >= b.candidates and a.pairs < b.pairs for a, b in pairwise(plan))
    assert cost(plan) <= pictures or plan[0].candidates == plan[-1].candidates


@pytest.mark.parametrize("pairs", [1, 2, 3])
def test_few_pairs_make_fewer_rungs(pairs):
    assert [rung.pairs for rung in rungs(10, pairs, 1, 1000)] == sorted(
        {-(-pairs // 4), -(-pairs // 2), pairs}
    )
