"""Distances of pixels, by hand and against another implementation."""

import numpy as np
import pytest
from scipy.ndimage import correlate1d

from dit_heads.errors import InputError
from dit_heads.tasks.metrics.preservation import MOST_DECIBELS, likeness

SIDE = 24


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((SIDE, SIDE, 3))


def ssim(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """SSIM of each window (Wang et al., 2004, equation 13) by scipy's filters."""
    line = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)

    def mean(values: np.ndarray) -> np.ndarray:
        across = correlate1d(values, line / line.sum(), axis=0, mode="mirror")
        return correlate1d(across, line / line.sum(), axis=1, mode="mirror")

    a, b = mean(one), mean(other)
    va, vb = mean(one**2) - a**2, mean(other**2) - b**2
    both, c1, c2 = mean(one * other) - a * b, 0.01**2, 0.03**2
    return (2 * a * b + c1) * (2 * both + c2) / ((a**2 + b**2 + c1) * (va + vb + c2))


def test_distances_by_hand():
    truth = np.full((8, 8, 3), 0.5)
    found = truth.copy()
    found[:4] += 0.2
    figures = likeness(found, truth)
    assert figures["L1"] == pytest.approx(0.1) and figures["L2"] == pytest.approx(0.02)
    assert figures["PSNR"] == pytest.approx(10 * np.log10(1 / 0.02))
    top = np.zeros((8, 8), bool)
    top[:4] = True
    assert likeness(found, truth, top)["L1"] == pytest.approx(0.2)
    assert likeness(found, truth, ~top)["L2"] == 0


def test_ssim_is_that_of_another_implementation():
    one, other = picture(0), picture(1)
    assert likeness(one, other)["SSIM"] == pytest.approx(ssim(one, other).mean(), abs=1e-4)


def test_ssim_of_a_part_is_the_mean_of_its_windows_and_blind_to_the_rest():
    truth, found = picture(0), picture(1)
    where = np.zeros((SIDE, SIDE), bool)
    where[:, :9] = True
    kept = np.where(where[..., None], found, truth)
    figures = likeness(found, truth, where)
    assert figures["SSIM"] == pytest.approx(ssim(kept, truth).mean(-1)[where].mean(), abs=1e-4)
    assert likeness(np.where(where[..., None], found, picture(2)), truth, where) == figures


def test_equal_pixels_have_the_most_decibels():
    truth = picture(0)
    figures = likeness(truth, truth)
    assert (figures["L1"], figures["PSNR"]) == (0, MOST_DECIBELS) and figures["SSIM"] == pytest.approx(1)
    assert likeness(truth + 1e-5, truth)["PSNR"] == MOST_DECIBELS


@pytest.mark.parametrize(
    ("found", "where", "message"),
    [
        (np.zeros((8, 9, 3)), None, "found: expected a picture of the truth's size, "),
        (np.zeros((8, 8, 3)), np.zeros((4, 4), bool), "pixels that may count"),
        (np.zeros((8, 8, 3)), np.zeros((8, 8), bool), "where: expected pixels that count, got none"),
    ],
)
def test_pictures_that_cannot_be_compared_are_refused(found, where, message):
    with pytest.raises(InputError, match=message):
        likeness(found, np.zeros((8, 8, 3)), where)
