from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from scipy import ndimage

from dit_heads.errors import InputError
from dit_heads.tasks.codecs.pixels import components, dilated, levels, nearest_colour, without_specks
from dit_heads.tasks.palette import COLOURS, distinct, instance_colours, smallest_distance

MASKS = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12))


@given(MASKS)
def test_components_are_those_of_scipy(mask):
    labels, count = components(mask)
    labelled: Any = ndimage.label(mask)
    expected, number = labelled
    assert count == number
    assert (labels == expected).all()


@given(MASKS, st.integers(0, 3))
def test_dilation_is_that_of_scipy(mask, reach):
    square = np.ones((2 * reach + 1,) * 2, bool)
    assert (dilated(mask, reach) == ndimage.binary_dilation(mask, square)).all()


def test_a_spiral_is_one_component():
    size = 61
    mask = np.zeros((size, size), bool)
    y, x, dy, dx, length = size // 2, size // 2, 0, 1, 2
    while 0 <= y + dy * length < size and 0 <= x + dx * length < size:
        for _ in range(length):
            mask[y, x] = True
            y, x = y + dy, x + dx
        dy, dx, length = dx, -dy, length + 2 * (dy != 0)
    labelled: Any = ndimage.label(mask)
    assert components(mask)[1] == labelled[1] == 1


def test_specks_go_and_the_rest_stays():
    mask = np.zeros((8, 8), bool)
    mask[:3, :3] = mask[6, 6] = True
    kept = without_specks(mask, 2)
    assert kept.sum() == 9
    assert not kept[6, 6]


def test_a_picture_has_the_same_levels_however_it_comes():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
    for same in (pixels, pixels / 255, (pixels / 255).astype(np.float32), Image.fromarray(pixels)):
        assert np.allclose(levels(same), pixels, atol=1e-4)
    assert (levels(pixels[..., 0]) == pixels[..., :1]).all()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((2, 4, 4, 3)), r"the shape \(2, 4, 4, 3\)"),
        (np.zeros((3, 0, 3)), "the shape"),
        (np.full((4, 4, 3), -1.0), "from 0 to 1, got -1"),
        (np.full((4, 4, 3), 255.0), "got 255 to 255"),
        (np.full((4, 4, 3), np.nan), "got nan to nan"),
        (np.zeros((4, 4, 3), np.int64), "got int64"),
        (None, "the shape"),
    ],
)
def test_a_picture_in_another_range_or_shape_is_refused(image, message):
    with pytest.raises(InputError, match=message):
        levels(image)


def test_a_smoothed_edge_does_not_become_a_third_class():
    colours = np.array([(220, 30, 30), (40, 70, 220), (140, 50, 180)], float)  # between red and blue: purple
    row = np.array([colours[0]] * 5 + [(130, 50, 125)] + [colours[1]] * 5, np.float32)
    index, _ = nearest_colour(np.broadcast_to(row, (6, 11, 3)), colours)
    assert set(index.reshape(-1)) == {0, 1}


def test_the_first_colours_are_the_farthest_apart():
    order = [COLOURS[name] for name in distinct(("red",))]
    apart = [smallest_distance(np.array(order[:count])) for count in range(2, 17)]
    assert apart == sorted(apart, reverse=True)
    assert apart[0] > 250


def test_instances_have_colours_of_their_own_and_never_black():
    for count in (0, 1, 7, 63, 64, 215):
        colours = instance_colours(count)
        assert len(set(colours)) == count
        assert (0, 0, 0) not in colours
    assert smallest_distance(np.array([(0, 0, 0), *instance_colours(7)])) == 255
    with pytest.raises(InputError, match="at most 215, got 216"):
        instance_colours(216)
