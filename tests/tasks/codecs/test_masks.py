import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dit_heads.errors import InputError
from dit_heads.tasks.annotations import Instances, Segmentation
from dit_heads.tasks.codecs import InstanceCodec, MaskCodec
from dit_heads.tasks.query import Query

NAMES = tuple("abcdefghijklmno")


@given(st.data(), st.integers(1, 15))
def test_classes_come_back_pixel_for_pixel(data, count):
    labels = data.draw(hnp.arrays(np.int64, (6, 7), elements=st.integers(0, count)))
    query, codec = Query("segment", NAMES[:count]), MaskCodec()
    truth = Segmentation(labels, NAMES[:count])
    assert (codec.decode(codec.encode(truth, query), query).labels == labels).all()


def test_one_class_is_white_on_black_and_others_are_background():
    truth = Segmentation(np.array([[0, 1, 2]]), ("cube", "cone"))
    picture = MaskCodec().encode(truth, Query("segment", ("cone",)))
    assert picture[0].tolist() == [[0] * 3, [0] * 3, [255] * 3]


def test_a_class_that_the_picture_does_not_show_is_an_empty_mask():
    query, codec = Query("segment", ("cube",)), MaskCodec()
    back = codec.decode(codec.encode(Segmentation(np.zeros((4, 4), int), ("cube",)), query), query)
    assert not back.mask("cube").any()


def test_the_probability_is_the_brightness_of_a_white_mask():
    grey = np.full((2, 2, 3), 64, np.uint8)
    assert np.allclose(MaskCodec().probability(grey, Query("segment", ("cube",))), 64 / 255, atol=1e-3)


def test_colours_of_the_query_are_kept_and_black_is_refused():
    query = Query("segment", ("cube", "cone"), ("teal", "pink"))
    picture = MaskCodec().encode(Segmentation(np.array([[1, 2]]), ("cube", "cone")), query)
    assert picture[0].tolist() == [[20, 125, 125], [250, 160, 190]]
    with pytest.raises(InputError, match="none of them black"):
        MaskCodec().decode(picture, Query("segment", ("cube", "cone"), ("black", "pink")))


def smoothed(picture: np.ndarray) -> np.ndarray:
    """A picture blurred over 3 x 3 pixels, with noise: worse than what an autoencoder does."""
    padded = np.pad(picture.astype(float), ((1, 1), (1, 1), (0, 0)), mode="edge")
    height, width = picture.shape[:2]
    blurred = sum(padded[dy : dy + height, dx : dx + width] for dy in range(3) for dx in range(3)) / 9
    noise = np.random.default_rng(0).normal(0, 8, picture.shape)
    return np.clip(blurred + noise, 0, 255) / 255


def discs(count: int, size: int = 96) -> np.ndarray:
    """Ids of touching discs, the later ones in front."""
    y, x = np.mgrid[:size, :size]
    ids = np.zeros((size, size), np.int64)
    for k in range(count):
        angle = 2 * np.pi * k / count
        centre = size / 2 + size / 3.2 * np.array([np.sin(angle), np.cos(angle)])
        ids[np.hypot(y - centre[0], x - centre[1]) < size / 7] = k + 1
    return ids


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_classes_survive_blur_and_noise(count):
    ids, query, codec = discs(count), Query("segment", NAMES[:count]), MaskCodec(smallest=4)
    back = codec.decode(smoothed(codec.encode(Segmentation(ids, query.names), query)), query)
    for name in query.names:
        true, found = ids == query.names.index(name) + 1, back.mask(name)
        assert (true & found).sum() / (true | found).sum() > 0.9


EVERY = Query("instances", ("object",))


@pytest.mark.parametrize("count", [0, 1, 2, 5, 8, 12])
def test_instances_survive_blur_and_noise(count):
    truth = Instances.of_ids(discs(count), ("object",) * count)
    codec = InstanceCodec()
    back = codec.decode(smoothed(codec.encode(truth, EVERY)), EVERY)
    assert len(back) == count
    for mask in truth.masks:
        best = max((mask & found).sum() / (mask | found).sum() for found in back.masks)
        assert best > 0.9
    assert all(0.7 < score < 1 for score in back.scores)


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.integers(1, 7))
def test_instances_come_back_pixel_for_pixel(seed, count):
    rng = np.random.default_rng(seed)
    ids = np.zeros((40, 40), np.int64)
    for k in range(1, count + 1):
        x, y, w, h = rng.integers([0, 0, 3, 3], [34, 34, 20, 20])
        ids[y : y + h, x : x + w] = k
    ids[np.isin(ids, [k for k in range(1, count + 1) if (ids == k).sum() < 9])] = 0
    truth, codec = Instances.of_ids(ids, ("object",) * count), InstanceCodec(smallest=1)
    back = codec.decode(codec.encode(truth, EVERY), EVERY)
    assert {mask.tobytes() for mask in back.masks} == {mask.tobytes() for mask in truth.masks}
    assert (back.scores == 1).all()


def test_only_the_class_that_was_asked_for_is_drawn_and_named():
    truth = Instances.of_ids(np.array([[1, 1, 0, 2, 2]] * 4), ("cube", "cone"))
    query, codec = Query("instances", ("cone",)), InstanceCodec(smallest=1)
    back = codec.decode(codec.encode(truth, query), query)
    assert back.classes == ("cone",)
    assert (back.masks[0] == truth.masks[1]).all()


def test_overlapping_masks_show_the_smaller_one_in_front():
    masks = np.zeros((2, 12, 12), bool)
    masks[0, 4:8, 4:8] = masks[1] = True
    back = InstanceCodec().decode(InstanceCodec().encode(Instances(masks, ("a", "a")), EVERY), EVERY)
    assert sorted(mask.sum() for mask in back.masks) == [16, 144 - 16]
