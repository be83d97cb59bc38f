"""Average precision by COCO's protocol: all predictions count."""

import json
import sys

import numpy as np
import pytest

from dit_heads.errors import InputError
from dit_heads.tasks.annotations import Boxes, Instances, box_iou
from dit_heads.tasks.coco import coco_entries, run_lengths
from dit_heads.tasks.metrics import score_coco, score_detection

SIZE = (100, 120)


def boxes(*given, classes=None, scores=None):
    sure = np.ones(len(given)) if scores is None else np.array(scores)
    return Boxes(np.array(given, float).reshape(-1, 4), classes or ("cube",) * len(given), SIZE, sure)


TRUE = boxes((10, 10, 40, 40), (60, 20, 100, 70))


def test_the_truth_scores_one():
    found = score_detection([("a", TRUE, TRUE), ("b", boxes((0, 0, 9, 9)), boxes((0, 0, 9, 9)))]).figures
    assert (found["AP"], found["AP50"], found["AR 100"]) == (1, 1, 1)


def test_average_precision_is_the_one_computed_by_hand():
    """Two true boxes; the surest prediction is right, the second false, the third right. Precision is 1 up to
    half the recall and 2/3 after it, read at 101 recalls."""
    found = boxes((10, 10, 40, 40), (0, 80, 9, 89), (60, 20, 100, 70), scores=[0.9, 0.8, 0.7])
    expected = (51 * 1 + 50 * 2 / 3) / 101
    assert score_detection([("a", TRUE, found)]).figures["AP50"] == pytest.approx(expected)


def test_false_predictions_count_though_an_evaluation_that_drops_them_would_say_all_is_right():
    """A released evaluation keeps only the prediction that overlaps each true box best."""
    junk = [(k, 80, k + 15, 95) for k in range(0, 100, 5)]
    found = boxes(*junk, *TRUE.boxes.tolist(), scores=[0.9] * len(junk) + [0.5] * 2)
    best = [max(range(len(found)), key=lambda j: box_iou(found.boxes[j], box)) for box in TRUE.boxes]
    kept = Boxes(found.boxes[best], ("cube",) * 2, SIZE, found.scores[best])
    assert score_detection([("a", TRUE, kept)]).figures["AP50"] == 1
    scores = score_detection([("a", TRUE, found)])
    assert scores.figures["AP50"] < 0.1
    assert "2 boxes, 22 predictions, all of them counted" in str(scores)


def test_a_box_found_twice_is_found_once():
    twice = boxes((10, 10, 40, 40), (10, 10, 40, 40), (60, 20, 100, 70), scores=[0.9, 0.8, 0.7])
    assert score_detection([("a", TRUE, twice)]).figures["AP50"] == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_classes_are_told_apart_and_a_class_that_is_not_there_counts_for_nothing():
    named = boxes(*TRUE.boxes.tolist(), classes=("cube", "cone"))
    swapped = boxes(*TRUE.boxes.tolist(), classes=("cone", "cube"))
    assert score_detection([("a", named, named)]).figures["AP50"] == 1
    assert score_detection([("a", named, swapped)]).figures["AP50"] == 0


def test_masks_are_compared_as_masks_and_not_as_their_boxes():
    square = np.zeros((1, *SIZE), bool)
    square[0, 20:60, 20:60] = True
    corner = square & np.tri(*SIZE, dtype=bool)[None]
    truth, found = Instances(square, ("cube",)), Instances(corner, ("cube",))
    assert score_detection([("a", truth, truth)]).figures["AP"] == 1
    assert score_detection([("a", truth.boxes(), found.boxes())]).figures["AP"] == 1
    assert score_detection([("a", truth, found)]).figures["AP75"] == 0


def test_nothing_found_is_zero_and_a_picture_without_objects_may_be_empty():
    assert score_detection([("a", TRUE, boxes())]).figures["AP"] == 0
    assert score_detection([("a", TRUE, TRUE), ("b", boxes(), boxes())]).figures["AP"] == 1


def test_files_of_another_model_are_scored_as_they_are():
    categories = {"cube": 7}
    truth = {
        "images": [{"id": 3, "file_name": "3.jpg", "width": 120, "height": 100}],
        "categories": [{"id": 7, "name": "cube"}],
        "annotations": [
            {**entry, "id": k, "area": 900.0, "iscrowd": 0}
            for k, entry in enumerate(coco_entries(TRUE, 3, categories), 1)
        ],
    }
    results = json.loads(json.dumps(coco_entries(TRUE, 3, categories)))
    assert score_coco(truth, results, "bbox").figures["AP"] == 1
    for change, message in [
        ({"image_id": 4}, "expected a image_id of the truth, got 4 in 1"),
        ({"category_id": 1}, "expected a category_id of the truth, got 1 in 1"),
        ({"score": float("nan")}, "expected finite scores, got nan in 1"),
    ]:
        with pytest.raises(InputError, match=f"results: {message}"):
            score_coco(truth, [results[0], results[1] | change], "bbox")
    with pytest.raises(InputError, match="results: expected segmentation in each entry, got none in 0"):
        score_coco(truth, results, "segm")
    with pytest.raises(InputError, match="truth: expected lists images, categories, annotations, as in COCO"):
        score_coco({k: v for k, v in truth.items() if k != "annotations"}, results, "bbox")


def test_what_cannot_be_scored_is_refused(monkeypatch):
    with pytest.raises(InputError, match="pairs: expected boxes alone or instances alone, got none"):
        score_detection([])
    mask = Instances(np.ones((1, *SIZE), bool), ("cube",))
    with pytest.raises(InputError, match="got Boxes, Instances"):
        score_detection([("a", TRUE, mask)])
    other = Boxes(np.array([[0, 0, 5, 5]]), ("cube",), (9, 9))
    with pytest.raises(InputError, match=r"prediction: expected the size \(100, 120\), got \(9, 9\) \(a\)"):
        score_detection([("a", TRUE, other)])
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(InputError, match=r"pip install 'dit-heads\[eval\]'"):
        score_detection([("a", TRUE, TRUE)])


def test_run_lengths_go_down_the_columns_and_begin_outside():
    mask = np.array([[True, False], [True, True], [False, True]])
    assert run_lengths(mask) == {"size": [3, 2], "counts": [0, 2, 2, 2]}
    for mask in (np.zeros((2, 3), bool), np.ones((2, 3), bool), np.eye(4, dtype=bool)):
        found = run_lengths(mask)
        values = np.repeat(np.arange(len(found["counts"])) % 2 == 1, found["counts"])
        assert np.array_equal(values.reshape(mask.shape[::-1]).T, mask)


