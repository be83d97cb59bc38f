"""Losses, against their formulas in numpy over the pixels that are known."""

import numpy as np
import pytest
import torch

from dit_heads.tasks.soft_tokens.losses import (
    depth_silog,
    dice,
    mask_error,
    sky_error,
    straight_through,
    value_error,
)
from dit_heads.tasks.soft_tokens.maps import DepthRange
from dit_heads.tasks.soft_tokens.tokenizer import Decoded

SPAN = DepthRange(1, 100)
RNG = np.random.default_rng(0)
METRES = torch.from_numpy(RNG.uniform(2, 50, (2, 6, 5))).float()
KNOWN = torch.from_numpy(RNG.integers(0, 3, (2, 6, 5)))
FOUND = Decoded(
    torch.from_numpy(RNG.uniform(-1, 1, (2, 6, 5))).float(),
    torch.from_numpy(RNG.normal(size=(2, 6, 5))).float(),
)


def changed_where(values: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    return torch.where(where, values + 3.0, values)


def test_silog_of_the_pixels_with_a_distance():
    each = []
    for k in range(2):
        on = (KNOWN[k] == 1).numpy()
        g = np.log(SPAN.metres(FOUND.values)[k].numpy()[on]) - np.log(METRES[k].numpy()[on])
        each.append(np.sqrt((g**2).mean() - 0.5 * g.mean() ** 2))
    assert depth_silog(FOUND, METRES, KNOWN, SPAN).item() == pytest.approx(np.mean(each), rel=1e-4)


def test_unknown_pixels_and_sky_have_no_part_in_the_errors_of_depth():
    other = Decoded(changed_where(FOUND.values, KNOWN != 1), FOUND.sky)
    gone = torch.where(KNOWN == 1, METRES, 0)
    for error in (depth_silog, value_error):
        assert error(other, gone, KNOWN, SPAN) == error(FOUND, METRES, KNOWN, SPAN)
    unseen = Decoded(FOUND.values, changed_where(FOUND.sky, KNOWN == 0))
    assert sky_error(unseen, KNOWN) == sky_error(FOUND, KNOWN) != sky_error(other, 2 - KNOWN)


def test_a_map_without_a_distance_has_a_finite_error():
    nothing = torch.zeros_like(KNOWN)
    found = torch.stack([error(FOUND, METRES, nothing, SPAN) for error in (depth_silog, value_error)])
    assert found.isfinite().all() and value_error(FOUND, METRES, nothing, SPAN) == 0


def test_equal_masks_have_no_dice_and_disjoint_ones_almost_all():
    a = torch.zeros(1, 8, 8)
    a[0, :4] = 1
    assert dice(a, a).item() == pytest.approx(0) and dice(a, 1 - a).item() > 0.95
    assert mask_error(20 * (2 * a - 1), a).item() == pytest.approx(0, abs=1e-3)


def test_gradients_go_straight_through_the_codes():
    vectors = torch.randn(3, 4, requires_grad=True)
    codes = torch.randn(3, 4)
    out = straight_through(vectors, codes)
    assert torch.allclose(out, codes, atol=1e-6)
    out.pow(2).sum().backward()
    assert vectors.grad is not None and torch.allclose(vectors.grad, 2 * codes, atol=1e-6)
