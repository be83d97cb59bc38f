import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dit_heads.embedded.world.data import scene_of
from dit_heads.embedded.world.render import boxes as boxes_of
from dit_heads.embedded.world.render import render
from dit_heads.errors import InputError
from dit_heads.tasks.annotations import Boxes
from dit_heads.tasks.codecs import BoxCodec
from dit_heads.tasks.codecs.frames import Finder, frame_mask
from dit_heads.tasks.query import Query

SIZE = (96, 120)
GREY = np.full((*SIZE, 3), 120, np.uint8)
HOLLOW, FILLED = BoxCodec(), BoxCodec(filled=True)
CUBES = Query("detect", ("cube",))
BOTH = Query("detect", ("cube", "cone"))


def listed(boxes: Boxes) -> list[tuple[str, list[float]]]:
    return sorted(zip(boxes.classes, boxes.boxes.tolist(), strict=True))


def through(codec: BoxCodec, truth: Boxes, query: Query, source: np.ndarray = GREY) -> Boxes:
    return codec.decode(codec.encode(truth, query, source), query, None if codec.filled else source)


def cubes(*boxes: tuple[int, int, int, int]) -> Boxes:
    return Boxes(np.array(boxes).reshape(-1, 4), ("cube",) * len(boxes), SIZE)


@st.composite
def separate(draw) -> Boxes:
    """Up to three boxes of two classes, in any arrangement whose lines lie apart or cross."""
    found: list[list[int]] = []
    for _ in range(draw(st.integers(0, 3))):
        x0, y0 = draw(st.integers(0, 90)), draw(st.integers(0, 66))
        box = [x0, y0, x0 + draw(st.integers(16, 120 - x0)), y0 + draw(st.integers(16, 96 - y0))]
        if all(min(abs(a - b) for a, b in itertools.product(box[k::2], each[k::2])) > 8
               for each in found for k in (0, 1)):  # fmt: skip
            found.append(box)
    names = [draw(st.sampled_from(BOTH.names)) for _ in found]
    return Boxes(np.array(found).reshape(-1, 4), tuple(names), SIZE)


@pytest.mark.parametrize("codec", [HOLLOW, FILLED], ids=["hollow", "filled"])
@settings(max_examples=25)
@given(separate())
def test_boxes_of_two_classes_come_back_to_the_pixel(codec, truth):
    assert listed(through(codec, truth, BOTH)) == listed(truth)


@pytest.mark.parametrize("codec", [HOLLOW, FILLED], ids=["hollow", "filled"])
@pytest.mark.parametrize(
    "boxes",
    [
        [],
        [(10, 10, 60, 50)],
        [(0, 0, 120, 96)],
        [(10, 10, 60, 60), (40, 40, 100, 90)],  # they cross
        [(10, 10, 110, 90), (30, 30, 60, 60)],  # one lies in the other
        [(10, 40, 110, 60), (50, 10, 70, 90)],  # a cross
        [(10, 10, 50, 50), (50, 10, 90, 50)],  # they touch
        [(20, 20, 26, 26), (60, 60, 65, 64)],  # small
        [(10, 10, 50, 60), (10, 10, 100, 90)],  # they share a corner
    ],
)
def test_boxes_of_one_class_come_back_to_the_pixel_by_hand(codec, boxes):
    back = through(codec, cubes(*boxes), CUBES)
    assert sorted(map(tuple, back.boxes.astype(int).tolist())) == sorted(boxes)
    assert (back.scores > 0.99).all()


def test_boxes_of_scenes_come_back_to_the_pixel():
    for index in range(12):
        scene = scene_of("validation", index)
        done = render(scene)
        names = tuple(solid.shape for solid in scene.solids)
        truth = Boxes.clipped(boxes_of(done.ids, len(names)), names, done.ids.shape)
        query = Query("detect", tuple(dict.fromkeys(names)))
        for codec in (HOLLOW, FILLED):
            assert listed(through(codec, truth, query, done.image)) == listed(truth)


def test_a_fainter_box_has_a_lower_score():
    picture = HOLLOW.encode(cubes((10, 10, 50, 50), (60, 20, 110, 80)), CUBES, GREY) / 255
    picture[:, 55:] = 0.7 * picture[:, 55:] + 0.3 * 120 / 255
    back = HOLLOW.decode(picture, CUBES)
    assert listed(back) == [("cube", [10, 10, 50, 50]), ("cube", [60, 20, 110, 80])]
    assert back.scores[0] > 0.99 > back.scores[1] > 0.3


def test_a_box_with_a_missing_side_is_none():
    picture = HOLLOW.encode(cubes((10, 10, 50, 50)), CUBES, GREY)
    picture[14:46, 44:52] = 120
    assert len(HOLLOW.decode(picture, CUBES, GREY)) == 0


def test_a_surface_in_the_colour_of_lines_is_no_box():
    source = GREY.copy()
    source[20:70, 20:80] = (0, 0, 255)
    assert len(HOLLOW.decode(source, CUBES)) == 0
    truth = cubes((10, 12, 100, 88))
    assert listed(through(HOLLOW, truth, CUBES, source)) == listed(truth)


def test_lines_of_the_source_are_no_boxes():
    source = HOLLOW.encode(cubes((10, 10, 50, 50)), CUBES, GREY)
    assert len(HOLLOW.decode(source, CUBES, source)) == 0
    truth = cubes((60, 20, 110, 80))
    assert listed(through(HOLLOW, truth, CUBES, source)) == listed(truth)


@pytest.mark.parametrize("codec", [HOLLOW, FILLED], ids=["hollow", "filled"])
def test_boxes_survive_noise(codec):
    truth = Boxes(np.array([[10, 10, 60, 60], [40, 30, 100, 90.0]]), ("cube", "cone"), SIZE)
    picture = codec.encode(truth, BOTH, GREY) / 255
    noisy = np.clip(picture + np.random.default_rng(0).normal(0, 0.1, picture.shape), 0, 1)
    back = codec.decode(noisy, BOTH)
    assert [name for name, _ in listed(back)] == ["cone", "cube"]
    found, true = (np.array([box for _, box in listed(each)]) for each in (back, truth))
    assert np.abs(found - true).max() <= 1


def test_other_classes_are_not_drawn_and_anything_takes_all():
    truth = Boxes(np.array([[10, 10, 40, 40], [60, 20, 110, 80]]), ("cube", "cone"), SIZE)
    assert listed(through(HOLLOW, truth, CUBES)) == [("cube", [10, 10, 40, 40])]
    assert len(through(HOLLOW, truth, Query("detect", ("object",)))) == 2


def test_a_box_between_pixels_is_rounded():
    back = through(HOLLOW, Boxes(np.array([[10.4, 10.6, 50.5, 49.5]]), ("cube",), SIZE), CUBES)
    assert back.boxes.tolist() == [[10, 11, 51, 50]]


def test_a_finder_sees_a_frame_under_another():
    size = (60, 60)
    below, above = frame_mask((10, 10, 40, 50), size, 3), frame_mask((38, 5, 55, 55), size, 3)
    boxes, scores = Finder(3)((below & ~above).astype(float), above.astype(float))
    assert boxes.tolist() == [[10, 10, 40, 50]]
    assert scores[0] > 0.9


def test_a_source_of_another_size_and_a_missing_one_are_refused():
    with pytest.raises(InputError, match="to draw hollow boxes on, got none"):
        HOLLOW.encode(cubes((1, 1, 20, 20)), CUBES)
    with pytest.raises(InputError, match="expected 96 x 120 pixels"):
        HOLLOW.encode(cubes((1, 1, 20, 20)), CUBES, np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(InputError, match="expected the shape"):
        HOLLOW.decode(GREY, CUBES, np.zeros((4, 4, 3), np.uint8))
