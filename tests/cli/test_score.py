"""`dit-heads score`, on cases computed by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dit_heads.cli import main


@pytest.fixture
def score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run the command: what it printed, and the figures that it wrote."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[str, Any]:
        assert main(["score", *words, "--json", "scores.json"]) == 0, capsys.readouterr().err
        return capsys.readouterr().out, json.loads(Path("scores.json").read_text())

    return run


def depth_png(path: str, metres: Any, scale: float = 1000) -> None:
    Path(path).parent.mkdir(exist_ok=True)
    Image.fromarray(np.round(np.array(metres) * scale).astype(np.uint16)).save(path)


def array(path: str, values: Any) -> None:
    Path(path).parent.mkdir(exist_ok=True)
    np.save(path, np.array(values, np.float32))


def label_png(path: str, numbers: Any) -> None:
    Path(path).parent.mkdir(exist_ok=True)
    Image.fromarray(np.array(numbers, np.uint8)).save(path)


# --- depth ---


def test_depth_by_hand(score):
    depth_png("truth/a.png", [[1, 2], [4, 0]])
    array("found/a.npy", [[1, 2], [2, 9]])
    printed, found = score("depth", "truth", "found")
    figures = found["figures"]
    assert figures["AbsRel"] == pytest.approx(1 / 6)
    assert figures["RMSE, m"] == pytest.approx((4 / 3) ** 0.5)
    assert figures["delta1"] == pytest.approx(2 / 3) and figures["no distance"] == 0
    assert found["pictures"]["a"]["AbsRel"] == pytest.approx(1 / 6)
    assert "depth: 1 pictures; alignment: none; range: 0.001 to 80 m; crop: none;" in printed
    assert "AbsRel" in printed and found["protocol"][0] == "1 pictures"


def test_scales_of_files_and_alignment_are_as_asked(score):
    depth_png("truth/a.png", [[1, 2, 3]], 256)
    depth_png("found/a.png", [[2, 4, 6]], 500)
    flags = ["--truth-scale", "256", "--prediction-scale", "500"]
    assert score("depth", "truth", "found", *flags)[1]["figures"]["AbsRel"] == pytest.approx(1, abs=0.01)
    printed, found = score("depth", "truth", "found", *flags, "--alignment", "scale", "--space", "log")
    assert found["figures"]["AbsRel"] == pytest.approx(0, abs=0.01)
    assert "alignment: scale, least squares in log" in printed
    printed, found = score("depth", "truth", "found", *flags, "--near", "1.5", "--far", "2.5")
    assert found["figures"]["RMSE, m"] == pytest.approx(0.5, abs=0.01)  # 4 m is cut to 2.5 m


def test_relative_depth_needs_an_alignment(score, error_line):
    depth_png("truth/a.png", [[1, 2, 3]])
    array("found/a.npy", [[-1, 0, 1]])
    found = score("depth", "truth", "found", "--relative", "--alignment", "scale-and-shift")[1]
    assert found["figures"]["AbsRel"] == pytest.approx(0, abs=1e-3)
    assert main(["score", "depth", "truth", "found", "--relative"]) == 2
    assert "alignment: expected scale, or scale and shift, for relative depth" in error_line()


def test_missing_predictions_are_refused_by_name_or_counted(score, error_line):
    for name in "abc":
        depth_png(f"truth/{name}.png", [[2.0]])
    array("found/a.npy", [[2.0]])
    array("found/z.npy", [[2.0]])
    assert main(["score", "depth", "truth", "found"]) == 2
    assert "expected one for each picture of the truth, got none for b, c; --missing count" in error_line()
    printed, found = score("depth", "truth", "found", "--missing", "count", "--far", "10")
    assert found["figures"]["RMSE, m"] == pytest.approx((0 + 8 + 8) / 3)
    assert found["figures"]["no distance"] == pytest.approx(2 / 3)
    assert "2 without a prediction (b, c), counted as no distance anywhere" in printed
    assert "1 predictions without a truth, not scored (z)" in printed


def test_folders_in_folders_are_matched_by_their_paths(score):
    for side in ("truth", "found"):
        for k, name in enumerate(("one/a", "two/a"), 1):
            (Path(side) / name).parent.mkdir(parents=True, exist_ok=True)
            depth_png(f"{side}/{name}.png", [[k]])
    assert set(score("depth", "truth", "found")[1]["pictures"]) == {"one/a", "two/a"}


# --- segmentation ---


def test_segmentation_by_hand(score):
    label_png("truth/a.png", [[1, 1, 2, 0]])
    label_png("found/a.png", [[1, 2, 2, 2]])
    printed, found = score("segment", "truth", "found", "--classes", "cube", "cone")
    figures = found["figures"]
    assert figures["IoU of cube"] == pytest.approx(1 / 2) and figures["IoU of cone"] == pytest.approx(1 / 3)
    assert figures["mIoU"] == pytest.approx(5 / 12) and figures["found nothing there"] is None
    assert "classes from 1 on" in printed


def test_numbers_from_0_and_void_pixels(score):
    label_png("truth/a.png", [[0, 0, 1, 255]])
    label_png("found/a.png", [[0, 1, 1, 1]])
    Path("names.txt").write_text("cube\ncone\n")
    printed, found = score(
        "segment", "truth", "found", "--classes", "names.txt", "--first", "0", "--void", "255"
    )
    assert found["figures"]["IoU of cube"] == found["figures"]["IoU of cone"] == pytest.approx(1 / 2)
    assert "classes from 0 on, not counted: 255" in printed


def test_a_missing_segmentation_found_nothing(score):
    label_png("truth/a.png", [[1, 1]])
    label_png("truth/b.png", [[1, 1]])
    label_png("found/a.png", [[1, 1]])
    found = score("segment", "truth", "found", "--classes", "cube", "--missing", "count")[1]
    assert found["figures"]["mIoU"] == pytest.approx(1 / 2)


# --- boxes and masks ---

TRUTH = {
    "images": [
        {"id": 7, "file_name": "a.png", "height": 100, "width": 100},
        {"id": 9, "file_name": "b.png", "height": 100, "width": 100},
    ],
    "categories": [{"id": 3, "name": "cube"}],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 3, "bbox": [10, 10, 50, 50], "area": 2500, "iscrowd": 0}
    ],
}
# Of the same picture and class under other numbers: a false box that is surer than the right one.
FOUND = {
    "images": [{"id": 1, "file_name": "a.png", "height": 100, "width": 100}],
    "categories": [{"id": 5, "name": "cube"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 5, "bbox": [10, 10, 50, 50], "score": 0.8},
        {"id": 2, "image_id": 1, "category_id": 5, "bbox": [80, 80, 10, 10], "score": 0.9},
    ],
}
RESULTS = [
    {**e, "image_id": 7, "category_id": 3} for e in FOUND["annotations"] if isinstance(e, dict)
]  # as a result file has them


def write(path: str, contents: Any) -> str:
    Path(path).write_text(json.dumps(contents))
    return path


def test_boxes_by_hand(score):
    """The right box is the second: precision 1/2 at every recall."""
    truth = write("truth.json", TRUTH)
    printed, found = score("detect", truth, write("results.json", RESULTS))
    assert found["figures"]["AP"] == pytest.approx(0.5) and found["figures"]["AR 100"] == pytest.approx(1)
    assert found["figures"]["AP small"] is None
    assert "2 predictions, all of them counted" in printed
    assert "1 pictures in which nothing was predicted" in printed
    printed, other = score("detect", truth, write("found.json", FOUND), "--missing", "count")
    assert other["figures"] == found["figures"]
    assert "1 without a prediction (b.png), counted as pictures in which nothing was predicted" in printed


def test_masks_by_hand(score):
    square = {"size": [4, 4], "counts": [0, 8, 8]}
    half = {"size": [4, 4], "counts": [0, 5, 11]}  # 5 of 8 pixels: right up to an IoU of 0.6
    image = {"id": 1, "file_name": "a.png", "height": 4, "width": 4}
    entry = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 2, 4], "area": 8, "iscrowd": 0}
    truth = {"images": [image], "categories": [{"id": 1, "name": "cube"}]}
    write("truth.json", {**truth, "annotations": [{**entry, "segmentation": square}]})
    write("found.json", {**truth, "annotations": [{**entry, "segmentation": half, "score": 1.0}]})
    figures = score("instances", "truth.json", "found.json")[1]["figures"]
    assert figures["AP50"] == pytest.approx(1) and figures["AP75"] == pytest.approx(0)
    assert figures["AP"] == pytest.approx(0.3)  # of 0.50, 0.55, 0.60 among ten


@pytest.mark.parametrize(
    ("truth", "found", "message"),
    [
        (TRUTH, FOUND, "expected one for each picture of the truth, got none for b.png"),
        (TRUTH, {**FOUND, "categories": [{"id": 5, "name": "dog"}]}, "expected a name of the truth, got dog"),
        (
            TRUTH,
            {**FOUND, "images": [{**FOUND["images"][0], "file_name": "z.png"}]},
            "expected a file_name of the truth, got z.png",
        ),
        (TRUTH, [{**RESULTS[0], "image_id": 8}], "results: expected a image_id of the truth, got 8"),
        (TRUTH, {"a": 1}, "predictions: expected lists images, categories, annotations"),
        ([], RESULTS, "truth: expected lists images, categories, annotations"),
    ],
)
def test_coco_files_that_do_not_fit_are_refused(truth, found, message, tmp_path, monkeypatch, error_line):
    monkeypatch.chdir(tmp_path)
    assert main(["score", "detect", write("truth.json", truth), write("found.json", found)]) == 2
    assert message in error_line()


# --- classes ---


@pytest.fixture
def photos(tmp_path: Path) -> None:
    for name in ("cat/a.png", "cat/b.png", "hot_dog/c.png", "hot_dog/b.png"):
        (tmp_path / "truth" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2)).save(tmp_path / "truth" / name)


def test_classes_by_hand(photos, score):
    answers = {"a.png": "cat", "cat/b.png": "hot dog", "c.png": "hot_dog", "hot_dog/b.png": "cat"}
    figures = score("classify", "truth", write("found.json", answers))[1]["figures"]
    assert figures == {"accuracy": 0.5, "probability of the right answer": 0.5}
    Path("found.csv").write_text("file,answer\n" + "\n".join(f"{k},{v}" for k, v in answers.items()))
    assert score("classify", "truth", "found.csv")[1]["figures"] == figures


def test_probabilities_and_missing_pictures_by_hand(photos, score, error_line):
    Path("found.csv").write_text("file,cat,hot dog\na.png,0.9,0.1\ncat/b.png,0.4,0.6\nc.png,0.2,0.8\n")
    printed, found = score("classify", "truth", "found.csv", "--missing", "count")
    assert found["figures"]["accuracy"] == pytest.approx(2 / 4)
    assert found["figures"]["probability of the right answer"] == pytest.approx((0.9 + 0.4 + 0.8 + 0) / 4)
    assert "1 without a prediction (hot_dog/b.png), counted as wrong answers" in printed
    assert main(["score", "classify", "truth", "found.csv"]) == 2
    assert "got none for hot_dog/b.png" in error_line()


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"b.png": "cat"}, "expected a path for 'b.png', which is the name of cat/b.png, hot_dog/b.png"),
        ({"a.png": "cow"}, "expected classes among cat, hot dog, got cow (cat/a.png)"),
        ({"a.png": {"cat": 0.4}}, "expected at least 0 with a sum of 1, got [0.4, 0.0] (cat/a.png)"),
        ({"a.png": {"cat": "much"}}, "predictions: expected probabilities, got {'cat': 'much'}"),
        ({"a.png": "cat", "cat/a.png": "cat"}, "expected each picture once, got 'cat/a.png' twice"),
        (["cat"], "expected an answer, or probabilities by class, for each picture"),
    ],
)
def test_answers_that_do_not_fit_are_refused(found, message, photos, tmp_path, monkeypatch, error_line):
    monkeypatch.chdir(tmp_path)
    write("found.json", found)
    assert main(["score", "classify", "truth", "found.json", "--missing", "count"]) == 2
    assert message in error_line()


# --- files that cannot be read ---


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["depth", "none", "found"], "truth: expected a folder of .png or .npy files, got 'none'"),
        (["depth", "empty", "found"], "truth: expected .png or .npy files in 'empty', got none"),
        (["depth", "truth", "other"], "expected files named as those of the truth (a), got b"),
        (["depth", "truth", "twice"], "predictions: expected one file of each name, got"),
        (["depth", "truth", "broken"], "depth: cannot read 'broken/a.npy'"),
        (["depth", "truth", "deep"], "depth: expected numbers [height, width], got float32 (2, 3, 4)"),
        (["depth", "truth", "found", "--far", "0"], "near, far: expected 0 < near < far"),
        (["depth", "truth", "found", "--truth-scale", "0"], "truth_scale: expected a finite number"),
        (["segment", "truth", "found"], "classes: expected the names of classes by number"),
        (["detect", "none.json", "found"], "truth: expected a JSON file, cannot read 'none.json'"),
        (["look", "truth", "found"], "segment, detect, instances, classify, edit, got 'look'"),
        (["depth"], "arguments: expected"),
    ],
)
def test_what_cannot_be_scored_is_one_line(words, message, tmp_path, monkeypatch, error_line):
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "broken"):
        Path(name).mkdir()
    depth_png("truth/a.png", [[1]])
    depth_png("twice/a.png", [[1]])
    for path in ("found/a.npy", "twice/a.npy", "other/b.npy"):
        array(path, [[1]])
    array("deep/a.npy", np.zeros((2, 3, 4)))
    Path("broken/a.npy").write_text("hello")
    assert main(["score", *words]) == 2
    assert message in error_line()
