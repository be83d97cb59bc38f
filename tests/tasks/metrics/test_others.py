"""Segmentation and classification."""

import numpy as np
import pytest

from dit_heads.errors import InputError
from dit_heads.tasks.annotations import Labels, Segmentation
from dit_heads.tasks.metrics import score_labels, score_segmentation

NAMES = ("cube", "cone")


def labels(*rows):
    return Segmentation(np.array(rows), NAMES)


def test_mean_iou_adds_up_pixels_over_pictures_before_it_divides():
    """Cube: 1 common of 3, and 2 of 2. Cone: 1 of 2 in all. So 3/5 and 1/2, where the mean of pictures would
    be another."""
    pairs = [
        ("a", labels([1, 1, 0, 2]), labels([1, 0, 1, 2])),
        ("b", labels([1, 1, 0, 0]), labels([1, 1, 2, 0])),
    ]
    found = score_segmentation(pairs).figures
    assert (found["IoU of cube"], found["IoU of cone"]) == (3 / 5, 1 / 2)
    assert found["mIoU"] == pytest.approx(0.55)
    assert found["IoU of a question"] == pytest.approx(((1 / 3 + 1) / 2 + (1 + 0) / 2) / 2)
    assert found["found nothing there"] == 1  # the cone in b


def test_a_class_that_never_occurs_does_not_count():
    scores = score_segmentation([("a", labels([1, 0]), labels([1, 0]))])
    assert scores.figures["mIoU"] == 1 and "IoU of cone" not in scores.figures
    assert scores.figures["found nothing there"] == 0
    assert "1 pictures; 1 classes that occur; at the resolution of the truth" in str(scores)


def test_segmentations_that_cannot_be_compared_are_refused():
    with pytest.raises(InputError, match=r"expected the classes cube, cone, got cube \(a\)"):
        score_segmentation([("a", labels([1, 0]), Segmentation(np.array([[1, 0]]), ("cube",)))])
    with pytest.raises(InputError, match=r"expected the size \(1, 2\), got \(1, 3\) \(a\)"):
        score_segmentation([("a", labels([1, 0]), labels([1, 0, 0]))])
    with pytest.raises(InputError, match="pairs: expected a picture or more, got none"):
        score_segmentation([])


def test_accuracy_is_the_share_of_right_answers():
    sure, unsure = Labels(NAMES, np.array([0.9, 0.1])), Labels(NAMES, np.array([0.5, 0.5]))
    found = score_labels([("a", "cube", sure), ("b", "cone", sure), ("c", "cube", unsure)]).figures
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["probability of the right answer"] == pytest.approx((0.9 + 0.1 + 0.5) / 3)
    with pytest.raises(InputError, match=r"expected 'ball' among its answers, .* \(a\)"):
        score_labels([("a", "ball", sure)])
