import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dit_heads.errors import InputError
from dit_heads.tasks.annotations import Depth
from dit_heads.tasks.codecs.depth import CURVES, PATHS, DepthCodec

CODECS = [DepthCodec(curve, path, near=0.5, far=20.0) for curve, path in itertools.product(CURVES, PATHS)]
METRES = hnp.arrays(np.float64, (3, 4), elements=st.floats(0.5, 20))
KINDS = hnp.arrays(np.int64, (3, 4), elements=st.integers(0, 2))  # valid, sky, unknown


@pytest.mark.parametrize("codec", CODECS, ids=lambda c: f"{c.curve}-{c.path}")
@settings(max_examples=30)
@given(METRES, KINDS)
def test_depth_comes_back_within_half_a_step_with_sky_and_holes(codec, metres, kinds):
    depth = Depth(metres, kinds == 0, kinds == 1)
    back = codec.decode(codec.encode(depth))
    assert (back.valid == depth.valid).all()
    assert (back.sky == depth.sky).all()
    # A step of rounding is at most as coarse as the coarsest of the neighbouring steps.
    allowed = np.vectorize(lambda m: 0.51 * codec.resolution(m) + 0.51 * codec.resolution(min(m * 1.02, 20)))
    error = np.abs(back.metres - metres)
    assert (error <= np.maximum(allowed(metres), 1e-9))[depth.valid].all()


@pytest.mark.parametrize("codec", CODECS, ids=lambda c: f"{c.curve}-{c.path}")
def test_all_steps_of_a_path_are_depths_of_their_own_in_order(codec):
    share = np.linspace(0, 1, PATHS[codec.path].steps)
    metres = codec._metres(share)[None]
    back = codec.decode(codec.encode(Depth(metres, np.ones(metres.shape, bool)))).metres
    assert np.allclose(back, metres, rtol=1e-5)
    assert (np.diff(back) > 0).all()


def test_the_coding_of_the_paper_is_metres_times_25_and_a_half():
    codec = DepthCodec("linear", "grey", near=0, far=10)
    picture = codec.encode(Depth(np.array([[0.2, 4.0, 10.0]]), np.ones((1, 3), bool)))
    assert picture[0].tolist() == [[5] * 3, [102] * 3, [255] * 3]


def test_the_walk_is_made_of_edges_of_the_cube_by_hand():
    codec = DepthCodec("linear", "walk", near=0, far=5)
    picture = codec.encode(Depth(np.array([[1e-9, 0.5, 1.0, 2.5, 5.0]]), np.ones((1, 5), bool)))
    assert picture[0].tolist() == [[0, 0, 255], [0, 128, 255], [0, 255, 255], [128, 255, 0], [255, 0, 255]]


def test_the_power_transform_is_that_of_barron_but_for_its_range():
    d = np.array([0.5, 1.0, 3.0, 20.0])
    power = -3.0
    barron = abs(power - 1) / power * ((d / abs(power - 1) + 1) ** power - 1)
    ours = CURVES["power"].of(d)
    assert np.allclose(np.diff(barron) / np.diff(barron)[0], np.diff(ours) / np.diff(ours)[0])


@given(METRES)
def test_relative_depth_comes_back_up_to_scale_and_shift(metres):
    codec = DepthCodec("sqrt", "walk", near=1, far=10, metric=False)
    back = codec.decode(codec.encode(Depth(metres, np.ones(metres.shape, bool))))
    span = metres.max() - metres.min()
    assert not back.metric
    if span > 1e-6:
        assert np.allclose(back.metres, (metres - metres.min()) / span, atol=2e-3)


def test_what_is_out_of_range_is_drawn_at_its_end():
    codec = DepthCodec("log", "walk", near=1, far=10)
    back = codec.decode(codec.encode(Depth(np.array([[0.1, 99.0]]), np.ones((1, 2), bool))))
    assert np.allclose(back.metres, [[1, 10]])


@pytest.mark.parametrize("codec", CODECS, ids=lambda c: f"{c.curve}-{c.path}")
def test_noise_changes_neither_sky_nor_holes(codec):
    rng = np.random.default_rng(0)
    metres = rng.uniform(0.6, 19, (40, 40))
    kinds = rng.integers(0, 3, (40, 40))
    picture = codec.encode(Depth(metres, kinds == 0, kinds == 1)) / 255
    back = codec.decode(np.clip(picture + rng.normal(0, 0.06, picture.shape), 0, 1))
    assert (back.valid == (kinds == 0)).mean() > 0.995
    assert (back.sky == (kinds == 1)).mean() > 0.995


def test_the_walk_is_finer_than_grey():
    grey, walk = (DepthCodec("log", path, near=1, far=10) for path in ("grey", "walk"))
    assert walk.resolution(3.0) == pytest.approx(grey.resolution(3.0) / 5, rel=0.02)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DepthCodec("cube"), "curve: expected one of linear, sqrt, log, power, got 'cube'"),
        (lambda: DepthCodec(path="spiral"), "path: expected one of grey, walk"),
        (lambda: DepthCodec("log", near=0), "near: expected above 0 for the curve log"),
        (lambda: DepthCodec(near=5, far=5), "expected 0 <= near < far, got 5 and 5"),
        (lambda: DepthCodec(far=np.inf), "expected 0 <= near < far"),
        (
            lambda: DepthCodec().encode(Depth(np.ones((2, 2)), np.ones((2, 2), bool), metric=False)),
            "expected metres for a metric codec",
        ),
    ],
)
def test_a_coding_that_cannot_be_read_back_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
