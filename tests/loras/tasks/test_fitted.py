"""Pictures and answers of any size become ones of one size together."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from dit_heads.embedded.pairs import WorldPairs
from dit_heads.loras.tasks.fitted import Cut, FittedPairs, fitted, fitted_picture
from dit_heads.tasks.annotations import Boxes, Depth, Instances, Labels, Segmentation
from dit_heads.tasks.query import Query

SIZES = [((64, 64), (32, 32)), ((60, 90), (32, 32)), ((33, 20), (48, 64)), ((7, 5), (7, 5))]


@pytest.mark.parametrize(("size", "to"), SIZES)
def test_a_box_stays_around_its_mask(size: Any, to: Any):
    mask = np.zeros((1, *size), bool)
    mask[0, size[0] // 4 : 3 * size[0] // 4, size[1] // 4 : 3 * size[1] // 4] = True
    instances = Instances(mask, ("a",))
    small, box = fitted(instances, to), fitted(instances.boxes(), to)
    assert isinstance(small, Instances) and isinstance(box, Boxes)
    assert small.masks.shape == (1, *to) and np.abs(small.boxes().boxes - box.boxes).max() <= 1


def test_the_middle_is_kept_and_its_sides_are_cut():
    labels = np.arange(6)[None].repeat(4, 0)
    cut = Cut((4, 6), (2, 2))
    assert cut.scale == 0.5 and cut.corner == (0.0, 1.0)
    found = fitted(Segmentation(labels % 2, ("odd",)), (4, 4))
    assert isinstance(found, Segmentation)
    assert np.array_equal(found.labels, (labels % 2)[:, 1:5])


def test_masks_lie_where_the_picture_shows_them():
    """Half a picture white: after any fit, white pixels are those of the mask."""
    half = np.zeros((96, 96, 3), np.uint8)
    half[:, 40:] = 255
    for to in ((32, 32), (64, 48), (96, 40)):
        shown = np.asarray(fitted_picture(Image.fromarray(half), to))[..., 0] > 127
        mask = fitted(Segmentation((half[..., 0] > 0).astype(int), ("white",)), to)
        assert isinstance(mask, Segmentation)
        assert (shown != (mask.labels > 0)).mean() <= 1 / 32


def test_what_falls_outside_is_left_out():
    boxes = Boxes(np.array([[0.0, 0, 5, 10], [10, 2, 25, 8]]), ("a", "b"), (10, 40), np.array([0.5, 1.0]))
    found = fitted(boxes, (10, 10))  # columns 15 to 25 are left
    assert isinstance(found, Boxes)
    assert found.classes == ("b",) and found.boxes.tolist() == [[0, 2, 10, 8]]
    masks = np.zeros((2, 10, 40), bool)
    masks[0, :, :5] = masks[1, :, 18:20] = True
    kept = fitted(Instances(masks, ("a", "b")), (10, 10))
    assert isinstance(kept, Instances) and kept.classes == ("b",)


def test_depth_keeps_its_metres_and_its_holes():
    depth = Depth.from_metres([[1.0, 2.0, np.inf, np.nan]] * 4)
    found = fitted(depth, (8, 8))
    assert isinstance(found, Depth)
    assert set(np.unique(found.metres[found.valid])) == {1.0, 2.0}
    assert (found.valid.sum(), found.sky.sum()) == (32, 16)


def test_pairs_of_any_size_are_pairs_of_one():
    pairs = FittedPairs(WorldPairs("train", 2, 96), (32, 48))
    assert len(pairs) == 2 and pairs.key != pairs.pairs.key and pairs.name(0) == "train scene 0"
    assert pairs.picture(0).size == (48, 32)
    rng = np.random.default_rng(0)
    for task in pairs.tasks:
        answer: Any = pairs.answer(0, pairs.question(0, task, rng))
        if isinstance(answer, Boxes | Instances):
            assert answer.size == (32, 48)
        elif not isinstance(answer, Labels):
            assert (answer.labels if task == "segment" else answer.metres).shape == (32, 48)
    assert isinstance(pairs.answer(0, Query("depth")), Depth)
