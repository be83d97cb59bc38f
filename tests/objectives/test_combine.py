"""Weighted sums and thresholds of objectives."""

import math

import pytest
import torch
from torch.testing import assert_close

from dit_heads.objectives import Objective, Threshold, WeightedSum
from tests.objectives.made import NAMED, PROMPTS, Constant, brightness, redness

MADE = brightness.__module__


def test_a_weighted_sum_is_that_and_says_so(images):
    total = WeightedSum({brightness: 2.0, redness: -0.25, NAMED: 1e-3})
    assert_close(total(images, PROMPTS), 2 * images.mean((1, 2, 3)) - images[:, 0].mean((1, 2)) / 4 + 0.002)
    assert total.name == f"2 {MADE}:brightness + -0.25 {MADE}:redness + 0.001 two"
    assert WeightedSum({total: 3}).name == f"3 ({total.name})"


def test_a_weighted_sum_keeps_weights_of_its_own(images):
    weights: dict[Objective, float] = {brightness: 2.0}
    total = WeightedSum(weights)
    weights[redness] = 5.0
    assert_close(total(images, PROMPTS), 2 * images.mean((1, 2, 3)))


@pytest.mark.parametrize("weights", [{}, {brightness: math.nan}, {brightness: 1.0, redness: math.inf}])
def test_a_sum_of_nothing_or_of_odd_weights_is_refused(weights):
    with pytest.raises(ValueError, match=r"weights: .*expected (a finite number|an objective or more), got"):
        WeightedSum(weights)


def test_a_threshold_takes_what_passes_the_gate():
    images = torch.tensor([0.25, 0.5, 0.75])[:, None, None, None].expand(3, 3, 4, 4)
    gated = Threshold(NAMED, brightness, 0.5, otherwise=-1)
    assert gated(images, PROMPTS).tolist() == [-1, 2, 2]
    assert gated.name == f"two if {MADE}:brightness >= 0.5 else -1"


@pytest.mark.parametrize("bounds", [(math.nan, 0.0), (0.0, math.inf)])
def test_a_threshold_that_is_not_finite_is_refused(bounds):
    with pytest.raises(ValueError, match=r"(at_least|otherwise): expected a finite number, got"):
        Threshold(NAMED, brightness, *bounds)


@pytest.mark.parametrize("combine", [lambda o: WeightedSum({o: 0.0}), lambda o: Threshold(NAMED, o, 0.0)])
def test_parts_that_are_not_finite_are_not_hidden(images, combine):
    with pytest.raises(ValueError, match="objective: bad gave a score that is not finite"):
        combine(Constant(math.nan, "bad"))(images, PROMPTS)
