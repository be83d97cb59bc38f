import numpy as np
import pytest

from dit_heads.errors import InputError
from dit_heads.tasks.annotations import Boxes, Depth, Instances, Labels, Segmentation, box_of
from dit_heads.tasks.query import Query, colours_of
from tests.shapes import shapes_unchecked

ONE = np.ones((3, 4), bool)


def test_a_mask_of_a_class_comes_back_from_a_segmentation():
    mask = np.array([[True, False], [False, True]])
    assert (Segmentation.of_mask(mask, "cube").mask("cube") == mask).all()
    with pytest.raises(InputError, match="expected one of cube, got 'cone'"):
        Segmentation.of_mask(mask, "cube").mask("cone")


def test_a_box_ends_behind_the_last_pixel_of_its_mask():
    mask = np.zeros((5, 7), bool)
    mask[1:3, 2:6] = True
    assert box_of(mask) == (2, 1, 6, 3)
    assert Instances(mask[None], ("cube",)).boxes().boxes.tolist() == [[2, 1, 6, 3]]


def test_boxes_are_cut_at_the_borders_and_left_out_beyond_them():
    found = Boxes.clipped([[-5, -5, 4, 3], [8, 0, 99, 10], [11, 0, 12, 5], [3, 3, 3, 5]], "abcd", (10, 10))
    assert found.boxes.tolist() == [[0, 0, 4, 3], [8, 0, 10, 10]]
    assert found.classes == ("a", "b")
    assert found.scores.tolist() == [1, 1]


def test_hidden_objects_are_no_instances():
    ids = np.array([[0, 1], [3, 3]])
    found = Instances.of_ids(ids, ("a", "b", "c"))
    assert found.classes == ("a", "c")
    assert found.masks.sum((1, 2)).tolist() == [1, 2]
    assert len(Instances.of_ids(np.zeros((2, 2), int), ("a",))) == 0


def test_depth_from_metres_tells_sky_from_what_is_unknown():
    depth = Depth.from_metres([[1.5, np.inf], [0, np.nan]])
    assert depth.valid.tolist() == [[True, False], [False, False]]
    assert depth.sky.tolist() == [[False, True], [False, False]]


def test_the_best_answer_is_the_likeliest():
    assert Labels(("cat", "dog"), np.array([0.4, 0.6])).best == "dog"
    assert Labels.of(("cat", "dog"), "cat").best == "cat"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Segmentation(np.full((2, 2), 3), ("a", "b")), "expected 0 to 2, got 3 to 3"),
        (lambda: Segmentation(np.zeros((2, 2)), ("a",)), "expected whole numbers"),
        (lambda: Segmentation(np.zeros((0, 2), int), ("a",)), "got int64"),
        (lambda: Segmentation(np.zeros((2, 2), int), ("a", "a")), "expected each once, got a twice"),
        (lambda: Segmentation(np.zeros((2, 2), int), ("",)), "none of them empty"),
        (lambda: Boxes(np.array([[0, 0, 5, 3]]), ("a",), (3, 4)), r"got \[0.0, 0.0, 5.0, 3.0\] \(box 0\)"),
        (lambda: Boxes(np.array([[2, 0, 2, 3]]), ("a",), (3, 4)), "x0 < x1"),
        (lambda: Boxes(np.array([[np.nan, 0, 2, 3]]), ("a",), (3, 4)), "x0 < x1"),
        (lambda: Boxes(np.array([[0, 0, 2, 3]]), (), (3, 4)), "expected 1 of each, got 0"),
        (lambda: Boxes(np.array([[0, 0, 2, 3]]), ("a",), (3, 4), np.array([np.inf])), "expected finite"),
        (lambda: Instances(np.zeros((1, 3, 4), bool), ("a",)), "got none in mask 0"),
        (lambda: Instances(np.zeros((1, 3, 4)), ("a",)), "expected booleans"),
        (lambda: Depth(np.full((3, 4), np.nan), ONE), "finite numbers where valid"),
        (lambda: Depth(np.zeros((3, 4)), ONE), "above 0 where valid, got 0"),
        (lambda: Depth(np.ones((3, 4)), ONE, ONE), "no pixel that is valid too"),
        (lambda: Depth(np.ones((3, 4)), np.ones((4, 3), bool)), "expected the shape"),
        (lambda: Labels(("a", "b"), np.array([0.5, 0.6])), "a sum of 1"),
        (lambda: Labels.of(("a", "b"), "c"), "expected one of a, b, got 'c'"),
    ],
)
def test_what_cannot_be_an_annotation_is_refused(make, message):
    with shapes_unchecked(), pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Query("colour"), "expected one of segment"),  # pyright: ignore[reportArgumentType]
        (lambda: Query("classify", ("cat",)), "expected two or more"),
        (lambda: Query("depth", ("cat",)), "expected none for depth"),
        (lambda: Query("instances", ("cat", "dog")), "expected one for instances"),
        (lambda: Query("segment", ("cat", "cat")), "expected each once"),
        (lambda: Query("classify", ("cat", "dog"), ("red", "red")), "another for each name"),
        (lambda: Query("classify", ("cat", "dog"), ("red",)), "expected 2, one a name"),
        (lambda: Query("classify", ("cat", "dog"), ("red", "mauve")), "got 'mauve'"),
        (lambda: colours_of(Query("detect", tuple("abcdefg"))), "expected at most 6 at once for detect"),
    ],
)
def test_what_cannot_be_asked_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_any_number_of_answers_has_colours_of_its_own():
    for count in (2, 16, 17, 240, 1000):
        colours = colours_of(Query("classify", tuple(map(str, range(count)))))
        assert len(set(colours)) == count
        bands = {colour.count(" and ") for colour in colours}
        assert len(bands) == 1
