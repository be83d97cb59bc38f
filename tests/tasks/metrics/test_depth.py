"""Errors of depth against cases computed by hand, and an evaluation that is known to be wrong."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dit_heads.errors import InputError
from dit_heads.tasks.annotations import Depth
from dit_heads.tasks.metrics import DepthProtocol, score_depth


def depth(values, metric=True):
    array = np.atleast_2d(np.asarray(values, np.float64))
    return Depth(array, np.ones(array.shape, bool), metric=metric)


def figures(truth, found, **protocol):
    return score_depth([("a", truth, found)], DepthProtocol(**protocol)).figures


def test_figures_are_those_computed_by_hand():
    found = figures(depth([1, 2, 4, 10]), depth([1, 3, 4, 8]))
    assert found["AbsRel"] == pytest.approx((0 + 1 / 2 + 0 + 2 / 10) / 4)
    assert found["RMSE, m"] == pytest.approx(np.sqrt((0 + 1 + 0 + 4) / 4))
    assert found["RMSE log"] == pytest.approx(np.sqrt((np.log(1.5) ** 2 + np.log(0.8) ** 2) / 4))
    assert (found["delta1"], found["delta2"]) == (0.5, 1.0)  # 10 / 8 is not below 1.25
    assert found["no distance"] == 0


def test_pictures_count_alike_however_many_pixels_are_known():
    few = Depth(np.array([[1.0, 1, 1, 1]]), np.array([[True, False, False, False]]))
    scores = score_depth([("a", few, depth([2, 1, 1, 1])), ("b", depth([1, 1, 1, 1]), depth([1, 1, 1, 1]))])
    assert scores.figures["AbsRel"] == pytest.approx(0.5)
    assert scores.rows["a"]["AbsRel"] == pytest.approx(1) and scores.rows["b"]["AbsRel"] == 0


FITTED = [
    ("scale", "depth", lambda x: 7 * x),
    ("scale", "log", lambda x: 7 * x),
    ("scale", "disparity", lambda x: 7 * x),
    ("scale and shift", "depth", lambda x: 7 * x + 3),
    ("scale and shift", "log", lambda x: 7 * x**2),
    ("scale and shift", "disparity", lambda x: 1 / (7 / x + 3)),
]


@pytest.mark.parametrize(("alignment", "space", "spoil"), FITTED)
def test_what_is_fitted_does_not_count(alignment, space, spoil):
    metres = np.random.default_rng(0).uniform(1, 20, (6, 7))
    found = figures(depth(metres), depth(spoil(metres), metric=False), alignment=alignment, space=space)
    assert found["AbsRel"] == pytest.approx(0, abs=1e-9) and found["delta1"] == 1
    assert figures(depth(metres), depth(spoil(metres)))["AbsRel"] > 0.5


@given(st.integers(0, 1000), st.sampled_from(["scale", "scale and shift"]))
def test_no_other_fit_has_a_smaller_square_error(seed, alignment):
    rng = np.random.default_rng(seed)
    true, given = rng.uniform(1, 20, (4, 5)), rng.uniform(1, 20, (4, 5))
    protocol = {"alignment": alignment, "near": 1e-6, "far": 1e6}
    best = figures(depth(true), depth(given, metric=False), **protocol)["RMSE, m"]
    scale, shift = rng.uniform(0, 2), rng.uniform(0, 5) if alignment != "scale" else 0.0
    assert best <= np.sqrt(((scale * given + shift - true) ** 2).mean()) + 1e-9


def test_the_space_of_the_fit_decides_the_figure():
    """Which is why the protocol is printed: the same predictions, the same alignment by name."""
    rng = np.random.default_rng(0)
    true = rng.uniform(1, 60, (20, 20))
    given = depth(true * rng.lognormal(0, 0.3, true.shape), metric=False)
    found = [
        figures(depth(true), given, alignment="scale and shift", space=space)["AbsRel"]
        for space in ("depth", "log", "disparity")
    ]
    assert max(found) > 1.3 * min(found)
    for space in ("depth", "log", "disparity"):
        text = str(score_depth([("a", depth(true), given)], DepthProtocol("scale and shift", space)))
        assert f"alignment: scale and shift, least squares in {space}; range: 0.001 to 80 m" in text


def test_a_mask_of_odd_metres_hides_errors_that_ours_counts():
    """A released evaluation takes the bitwise and of whole metres for a mask, and counts the pixels outside
    of it as right."""
    rng = np.random.default_rng(0)
    true = rng.uniform(0.5, 10, (60, 80))
    found = np.clip(true + rng.normal(0, 1, true.shape), 0.1, 10)
    mask = (true.astype(int) & found.astype(int)) & 1
    wrong = np.sqrt((((found - true) * mask) ** 2).mean())
    ours = figures(depth(true), depth(found), far=10)["RMSE, m"]
    assert ours == pytest.approx(np.sqrt(((found - true) ** 2).mean()))
    assert wrong < 0.7 * ours


def test_a_pixel_without_a_prediction_is_an_error():
    true = depth([2, 2, 2, 2])
    valid, sky = np.array([[1, 1, 0, 0]], bool), np.array([[0, 0, 0, 1]], bool)
    found = Depth(np.full((1, 4), 2.0), valid, sky)
    scored = figures(true, found, far=10)
    assert scored["no distance"] == 0.5 and scored["delta3"] == 0.5
    assert scored["AbsRel"] == pytest.approx((0 + 0 + 4 + 4) / 4)


def test_range_and_crop_say_which_truth_counts():
    metres = np.full((480, 640), 5.0)
    metres[:45] = 2.0  # outside of Eigen's crop
    metres[100, 100] = 70.0
    found = np.full((480, 640), 5.0)
    assert figures(depth(metres), depth(found), crop="eigen", far=10)["AbsRel"] == 0
    assert figures(depth(metres), depth(found), far=10)["AbsRel"] > 0.1
    assert 0 < figures(depth(metres), depth(found), crop="eigen", far=80)["AbsRel"] < 1e-4


def test_a_prediction_on_another_grid_is_resized_and_that_is_said():
    metres = np.add.outer(np.arange(8.0), np.arange(8.0)) + 1
    scores = score_depth([("a", depth(metres), depth(metres.reshape(4, 2, 4, 2).mean((1, 3))))])
    assert "1 predictions were resized (bilinear)" in str(scores)
    assert scores.figures["AbsRel"] < 0.05


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alignment": "median"}, "alignment: expected none, scale, scale and shift, got 'median'"),
        ({"space": "sqrt"}, "space: expected depth, log, disparity, got 'sqrt'"),
        ({"crop": "half"}, "crop: expected none, eigen, garg, got 'half'"),
        ({"near": 5.0, "far": 2.0}, "near, far: expected 0 < near < far, got 5 and 2"),
    ],
)
def test_a_protocol_that_does_not_exist_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        DepthProtocol(**change)


def test_what_cannot_be_scored_is_refused():
    relative = depth([0.1, 0.2], metric=False)
    with pytest.raises(InputError, match=r"alignment: expected scale, or scale and shift, .* got none \(a\)"):
        figures(depth([1, 2]), relative)
    with pytest.raises(InputError, match=r"truth: expected metres, got relative depth \(a\)"):
        figures(relative, depth([1, 2]))
    with pytest.raises(InputError, match=r"expected a pixel or more from 0.001 to 80 m, got none \(a\)"):
        figures(depth([100, 200]), depth([1, 2]))
    with pytest.raises(InputError, match="space: expected depth above 0 for log, got -1"):
        figures(depth([1, 2]), depth([-1, 2], metric=False), alignment="scale", space="log")
    with pytest.raises(InputError, match="pairs: expected a picture or more, got none"):
        score_depth([])
