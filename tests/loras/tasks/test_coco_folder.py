"""COCO's annotations as questions and answers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dit_heads.errors import InputError
from dit_heads.loras.config import config_of
from dit_heads.loras.tasks.coco_folder import CocoFolder
from dit_heads.loras.tasks.instruct import Instruct
from dit_heads.tasks.coco import run_lengths
from dit_heads.tasks.query import Query

MASK = np.zeros((20, 30), bool)
MASK[2:12, 4:14] = True
SQUARE = [[4, 2, 14, 2, 14, 12, 4, 12]]


def entry(number: int, kind: int, box: list[float], segmentation: Any = None, crowd: int = 0) -> Any:
    found = {"id": number, "image_id": 5, "category_id": kind, "bbox": box, "iscrowd": crowd, "area": 1.0}
    return found | ({"segmentation": segmentation} if segmentation is not None else {})


def folder(root: Path, *objects: dict[str, Any], **changes: Any) -> Path:
    """A picture with a name in a folder, and another without objects."""
    (root / "val").mkdir(parents=True)
    Image.new("RGB", (30, 20)).save(root / "val/a.jpg")
    Image.new("RGB", (30, 20)).save(root / "b.png")
    images = [("val/a.jpg", 5), ("b.png", 6)]
    found = {
        "images": [{"id": n, "file_name": name, "height": 20, "width": 30} for name, n in images],
        "categories": [{"id": 1, "name": "cat"}, {"id": 18, "name": "dog"}, {"id": 3, "name": "cup"}],
        "annotations": list(objects),
    }
    (root / "annotations.json").write_text(json.dumps(found | changes))
    return root


@pytest.mark.parametrize(
    "segmentation",
    [SQUARE, run_lengths(MASK), {"size": [20, 30], "counts": "l1:j00000000000000000000000"}],
    ids=["polygon", "run lengths", "compressed"],
)
def test_masks_are_read_in_all_their_forms(tmp_path, segmentation):
    if isinstance(segmentation, dict) and isinstance(segmentation["counts"], str):
        from faster_coco_eval.core import mask

        packed = mask.encode(np.asfortranarray(MASK.astype(np.uint8)))
        segmentation["counts"] = packed["counts"].decode()
    pairs = CocoFolder(folder(tmp_path, entry(1, 18, [4, 2, 10, 10], segmentation)))
    (found,) = pairs.answer(0, Query("instances", ("dog",))).masks  # pyright: ignore
    assert np.array_equal(found, MASK)
    labels = pairs.answer(0, Query("segment", ("cat", "dog"))).labels  # pyright: ignore
    assert np.array_equal(labels, 2 * MASK)


def test_boxes_are_cut_at_the_borders_and_those_outside_are_left_out(tmp_path):
    objects = [entry(1, 1, [-5, 5, 15, 100]), entry(2, 1, [40, 5, 5, 5]), entry(3, 3, [0, 0, 3, 3])]
    pairs = CocoFolder(folder(tmp_path, *objects))
    assert pairs.tasks == ("detect",)  # there are no masks
    found: Any = pairs.answer(0, Query("detect", ("cat", "dog")))
    assert found.boxes.tolist() == [[0, 5, 10, 20]] and found.classes == ("cat",)
    assert len(pairs.answer(1, Query("detect", ("cat",)))) == 0  # pyright: ignore


def test_crowds_are_segmented_and_nobody_asks_for_their_boxes(tmp_path):
    crowd = entry(1, 18, [4, 2, 10, 10], run_lengths(MASK), crowd=1)
    pairs = CocoFolder(folder(tmp_path, crowd, entry(2, 1, [0, 0, 4, 2], [[0, 0, 4, 0, 4, 2, 0, 2]])))
    rng = np.random.default_rng(0)
    asked = {task: [pairs.question(0, task, rng) for _ in range(60)] for task in pairs.tasks}
    assert not any("dog" in query.names for task in ("detect", "instances") for query in asked[task])
    assert any("dog" in query.names for query in asked["segment"])
    assert pairs.answer(0, Query("segment", ("dog",))).mask("dog").sum() == 100  # pyright: ignore


def test_questions_are_mostly_about_what_is_there(tmp_path):
    pairs = CocoFolder(folder(tmp_path, entry(1, 1, [0, 0, 4, 4], SQUARE)))
    rng = np.random.default_rng(0)
    named = ["cat" in pairs.question(0, "instances", rng).names for _ in range(400)]
    assert 0.8 < np.mean(named) < 0.9
    asked = [pairs.question(1, "detect", rng) for _ in range(40)]
    assert {name for query in asked for name in query.names} == {"cat", "dog", "cup"}


@pytest.mark.parametrize(
    ("objects", "changes", "message"),
    [
        ([entry(1, 7, [0, 0, 1, 1])], {}, "expected an id of categories, got 7 in annotation 0"),
        ([{"id": 1, "image_id": 5}], {}, "expected category_id, bbox in annotations, got none in 0"),
        ([], {"images": 3}, "expected lists images, categories, annotations"),
        ([], {"images": [{"id": 1, "file_name": "c.jpg", "height": 9, "width": 9}]}, "got none named c.jpg"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path, objects, changes, message):
    with pytest.raises(InputError, match=message):
        CocoFolder(folder(tmp_path, *objects, **changes))


def test_what_is_found_out_later_is_told_with_its_picture(tmp_path):
    pairs = CocoFolder(folder(tmp_path, entry(1, 1, [0, 0, 4, 4], {"size": [9, 9], "counts": [81]})))
    with pytest.raises(InputError, match=r"segmentation: expected size \[20, 30\], got \[9, 9\]"):
        pairs.answer(0, Query("instances", ("cat",)))
    Image.new("RGB", (31, 20)).save(tmp_path / "b.png")
    with pytest.raises(InputError, match=r"expected 30 x 20 pixels .* got 31 x 20 in '.*b\.png'"):
        pairs.picture(1)
    with pytest.raises(InputError, match=r"expected a folder with 'annotations\.json' and pictures"):
        CocoFolder(tmp_path / "val")
    (tmp_path / "annotations.json").write_text("{")
    with pytest.raises(InputError, match="root: expected JSON in"):
        CocoFolder(tmp_path)


def test_a_run_asks_about_the_pictures_of_the_folder(tmp_path):
    root = folder(tmp_path, entry(1, 1, [0, 0, 20, 20]))
    sections: dict[str, Any] = {
        "data": {"root": str(root), "sizes": [[128, 128]]},
        "instruct": {"pairs": "coco", "tasks": ["detect"], "validation_scenes": 0},
    }
    asked = Instruct.of(config_of({"task": "instruct", "model": "embedded", **sections})).asked
    question = asked.asked(0, "detect", 0, "")
    assert asked.pairs.picture(0).size == (128, 128) and question.query.task == "detect"
    with pytest.raises(InputError, match="tasks: expected some of detect, got segment"):
        sections["instruct"]["tasks"] = ["segment"]
        Instruct.of(config_of({"task": "instruct", "model": "embedded", **sections}))
