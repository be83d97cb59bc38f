"""Truth and predictions in files, joined by their names. Nothing is left out without being named."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from dit_heads.errors import InputError, listed
from dit_heads.io.pictures import read_levels
from dit_heads.tasks.annotations import Depth, Labels, Segmentation
from dit_heads.tasks.coco import checked_truth
from dit_heads.tasks.depth_files import read_depth_png
from dit_heads.tasks.label_files import read_label_png

Pair = TypeVar("Pair")


@dataclass(frozen=True)
class Found(Generic[Pair]):
    """Truth and predictions that belong together.

    Args:
        names: Of the pictures that have a truth.
        read: Name -> truth and prediction; where that is missing, one that found nothing.
        missing: Names without a prediction.
        extra: Names of predictions without a truth.
    """

    names: Sequence[str]
    read: Callable[[str], Pair]
    missing: Sequence[str] = ()
    extra: Sequence[str] = ()

    def pairs(self) -> Iterator[Any]:
        """Name, truth and prediction of each picture, read when its turn comes."""
        for name in self.names:
            yield (name, *self.read(name))  # pyright: ignore[reportGeneralTypeIssues]


def depths(
    truth: Path, predictions: Path, scales: tuple[float, float], *, relative: bool = False
) -> Found[tuple[Depth, Depth]]:
    """Depth maps of two folders, as PNG files of 8 or 16 bits or as .npy files of metres.

    Args:
        truth: A folder.
        predictions: A folder with files of the same names, whatever their suffix.
        scales: Levels a metre in the PNG files of each.
        relative: Whether predictions are known up to scale and shift alone.

    Raises:
        InputError: for a folder without such files, and two files of one name; when a pair is read, for a
            file that cannot be.
    """
    own, theirs = (_files(folder, what, (".png", ".npy")) for folder, what in _named(truth, predictions))

    def read(name: str) -> tuple[Depth, Depth]:
        right = _depth(own[name], scales[0], relative=False)
        if name in theirs:
            return right, _depth(theirs[name], scales[1], relative=relative)
        nothing = np.zeros(right.metres.shape, bool)
        return right, Depth(np.zeros(nothing.shape, np.float32), nothing, metric=not relative)

    return _joined(own, theirs, read)


def segmentations(
    truth: Path, predictions: Path, classes: Sequence[str], first: int = 1, void: Sequence[int] = ()
) -> Found[tuple[Segmentation, Segmentation]]:
    """Segmentations of two folders of PNG files of class numbers. Where the truth is void, neither counts.

    Args:
        truth: A folder.
        predictions: A folder with files of the same names.
        classes, first, void: As of `read_label_png`.

    Raises:
        InputError: as of `depths`.
    """
    own, theirs = (_files(folder, what, (".png",)) for folder, what in _named(truth, predictions))

    def read(name: str) -> tuple[Segmentation, Segmentation]:
        right = read_label_png(own[name], classes, first, void)
        if name not in theirs:
            return right, Segmentation(np.zeros_like(right.labels), right.classes)
        found = read_label_png(theirs[name], classes, first, void)
        if void and found.labels.shape == right.labels.shape:
            counts = ~np.isin(read_levels(own[name], palette=True), list(void))
            found = Segmentation(np.where(counts, found.labels, 0), found.classes)
        return right, found

    return _joined(own, theirs, read)


def coco_results(truth: Any, predictions: Any) -> tuple[list[dict[str, Any]], list[str]]:
    """Predictions in COCO's form of results, and the names of pictures that they leave out.

    Args:
        truth: The contents of an annotation file.
        predictions: The contents of a result file, of whose pictures nothing is known but the entries; or
            of an annotation file with scores, whose pictures and classes are matched by their names.

    Raises:
        InputError: for other contents, and for pictures and classes that the truth does not have.
    """
    checked_truth(truth, "truth")
    if isinstance(predictions, list) and all(isinstance(entry, Mapping) for entry in predictions):
        return [dict(entry) for entry in predictions], []
    checked_truth(predictions, "predictions")
    given: Any = predictions
    images = _matched(given["images"], truth["images"], "file_name")
    classes = _matched(given["categories"], truth["categories"], "name")
    there = {image["file_name"] for image in given["images"]}
    entries = [
        {**entry, "image_id": images[entry["image_id"]], "category_id": classes[entry["category_id"]]}
        for entry in given["annotations"]
    ]
    return entries, [each["file_name"] for each in truth["images"] if each["file_name"] not in there]


def labels_of(path: Path, right: Mapping[str, str], classes: Sequence[str]) -> Found[tuple[str, Labels]]:
    """Predicted classes of pictures, from a JSON or CSV file.

    JSON: the answer by picture, or the probability of each class by picture. CSV: the columns "file" and
    "answer", or "file" and a column for each class. A picture is named by its path as in the truth, or by
    its file's name where that occurs once.

    Args:
        path: Of the file.
        right: Path of each picture -> its class.
        classes: All of them.

    Raises:
        InputError: for another file, a picture that occurs twice or not in the truth, and classes that are
            none of these.
    """
    table = _table(path)
    given: dict[str, Any] = {}
    for key, value in table:
        name = _place(key, right)
        if name in given:
            raise InputError(f"predictions: expected each picture once, got '{key}' twice in '{path}'")
        given[name] = value
    extra = [name for name in given if name not in right]

    def read(name: str) -> tuple[str, Labels]:
        if name in given:
            return right[name], _labels(given[name], classes, name)
        wrong = next(each for each in classes if each != right[name])
        return right[name], Labels.of(classes, wrong)

    return Found(list(right), read, [name for name in right if name not in given], extra)


def read_json(path: Path, what: str) -> Any:
    """The contents of a JSON file.

    Args:
        path: Of the file.
        what: It is, for messages.

    Raises:
        InputError: there is none, or it is damaged.
    """
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{what}: expected a JSON file, cannot read '{path}': {error}") from error


# --- folders ---


def _named(truth: Path, predictions: Path) -> tuple[tuple[Path, str], tuple[Path, str]]:
    return (truth, "truth"), (predictions, "predictions")


def _files(folder: Path, what: str, suffixes: Sequence[str]) -> dict[str, Path]:
    """Files by their path in a folder without the suffix."""
    kinds = " or ".join(suffixes)
    if not folder.is_dir():
        raise InputError(f"{what}: expected a folder of {kinds} files, got '{folder}'")
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in suffixes or path.name.startswith("."):
            continue
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in found:
            raise InputError(f"{what}: expected one file of each name, got '{found[name]}' and '{path}'")
        found[name] = path
    if not found:
        raise InputError(f"{what}: expected {kinds} files in '{folder}', got none")
    return found


def _joined(own: Mapping[str, Path], theirs: Mapping[str, Path], read: Callable[[str], Pair]) -> Found[Pair]:
    missing = [name for name in own if name not in theirs]
    if len(missing) == len(own):
        raise InputError(
            f"predictions: expected files named as those of the truth ({listed(list(own), 3)}), got "
            f"{listed(list(theirs), 3)}"
        )
    return Found(list(own), read, missing, [name for name in theirs if name not in own])


def _depth(path: Path, scale: float, *, relative: bool) -> Depth:
    if path.suffix.lower() == ".png":
        found = read_depth_png(path, scale)
        return Depth(found.metres, found.valid, metric=False) if relative else found
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"depth: cannot read '{path}': {error}") from error
    values = np.squeeze(values) if values.ndim > 2 else values
    if values.ndim != 2 or values.dtype.kind not in "fiu" or not values.size:
        raise InputError(
            f"depth: expected numbers [height, width], got {values.dtype} {values.shape} in '{path}'"
        )
    if not relative:
        return Depth.from_metres(values)
    known = np.isfinite(values)
    return Depth(np.where(known, values, 0).astype(np.float64), known, metric=False)


# --- tables ---


def _matched(given: Sequence[Any], own: Sequence[Any], key: str) -> dict[Any, Any]:
    """Their ids -> the ids of what has the same name in the truth."""
    ids = {each[key]: each["id"] for each in own}
    if unknown := [str(each[key]) for each in given if each[key] not in ids]:
        raise InputError(f"predictions: expected a {key} of the truth, got {listed(unknown)}")
    return {each["id"]: ids[each[key]] for each in given}


def _table(path: Path) -> list[tuple[str, Any]]:
    """Pictures, each with an answer or with probabilities by class."""
    if path.suffix.lower() == ".csv":
        return _csv(path)
    found = read_json(path, "predictions")
    if not isinstance(found, Mapping) or not all(isinstance(v, str | Mapping) for v in found.values()):
        raise InputError(
            f"predictions: expected an answer, or probabilities by class, for each picture in '{path}'"
        )
    return list(found.items())


def _csv(path: Path) -> list[tuple[str, Any]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            rows, columns = list(reader), list(reader.fieldnames or ())
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"predictions: cannot read '{path}': {error}") from error
    if "file" not in columns or len(columns) < 2:
        raise InputError(
            f"predictions: expected the columns file and answer, or file and one a class, got "
            f"{', '.join(columns) or 'none'} in '{path}'"
        )
    if torn := [n for n, row in enumerate(rows, 2) if None in row or None in row.values()]:
        raise InputError(f"predictions: expected {len(columns)} values in line {torn[0]} of '{path}'")
    if "answer" in columns:
        return [(row["file"], row["answer"]) for row in rows]
    return [(row["file"], {k: v for k, v in row.items() if k != "file"}) for row in rows]


def _place(key: str, right: Mapping[str, str]) -> str:
    """The path of a picture that is named by it or by the last part of it."""
    if key in right:
        return key
    same = [name for name in right if name.rpartition("/")[2] == key]
    if len(same) > 1:
        raise InputError(f"predictions: expected a path for '{key}', which is the name of {listed(same)}")
    return same[0] if same else key


def _labels(given: Any, classes: Sequence[str], name: str) -> Labels:
    spaced = {each.replace("_", " "): each for each in classes}
    chances = {given: 1.0} if isinstance(given, str) else given
    if unknown := [str(each) for each in chances if str(each).replace("_", " ") not in spaced]:
        known = listed(list(classes), 10)
        raise InputError(f"predictions: expected classes among {known}, got {listed(unknown)} ({name})")
    by_name = {str(each).replace("_", " "): value for each, value in chances.items()}
    try:
        found = np.array([float(by_name.get(each, 0)) for each in spaced])
    except (TypeError, ValueError) as error:
        raise InputError(f"predictions: expected probabilities, got {dict(chances)!r} ({name})") from error
    try:
        return Labels(tuple(classes), found)
    except InputError as error:
        raise InputError(f"{error} ({name})") from error
