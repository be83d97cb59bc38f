"""The `score` command: predictions of any model against the truth, by a protocol that is printed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from dit_heads.errors import InputError, finite_number, listed
from dit_heads.io.atomic import write_text
from dit_heads.io.pictures import check_writable
from dit_heads.tasks.metrics import (
    DepthProtocol,
    Scores,
    score_coco,
    score_depth,
    score_labels,
    score_segmentation,
)
from dit_heads.tasks.metrics.files import (
    coco_results,
    depths,
    labels_of,
    read_json,
    segmentations,
)

Flag = tyro.conf.arg
Positional = tyro.conf.Positional


@dataclass(frozen=True)
class Score:
    """Score predictions of any model against the truth. The protocol is printed with the figures."""

    task: Positional[Literal["depth", "segment", "detect", "instances", "classify", "edit"]]
    """What was predicted."""
    truth: Positional[Annotated[Path, Flag(metavar="TRUTH")]]
    """depth: a folder of 16-bit PNG or .npy files. segment: a folder of PNG files of class numbers. detect,
    instances: an annotation file of COCO. classify: a folder with a folder of pictures for each class.
    edit: a folder with a folder for each edit."""
    predictions: Positional[Annotated[Path, Flag(metavar="PREDICTIONS")]]
    """depth, segment: a folder of files with the names of the truth's. detect, instances: a result file of
    COCO, or an annotation file with scores. classify: a JSON or CSV file, the answer or the probabilities of
    each picture. edit: a folder with a picture named after each edit, or with a folder for each that has
    `result.png`; may be the truth's."""
    json: Annotated[Path | None, Flag(metavar="FILE")] = None
    """Also write protocol, figures, and the figures of each picture to this file."""
    missing: Literal["refuse", "count"] = "refuse"
    """What to do about pictures without a prediction: name them and stop, or count each as a prediction that
    found nothing."""
    alignment: Literal["none", "scale", "scale-and-shift"] = "none"
    """depth: what is fitted to each picture's truth before errors are measured."""
    space: Literal["depth", "log", "disparity"] = "depth"
    """depth: where it is fitted."""
    near: float = 1e-3
    """depth: metres from which on truth counts."""
    far: float = 80.0
    """depth: metres up to which truth counts; also the distance of pixels without a prediction."""
    crop: Literal["none", "eigen", "garg"] = "none"
    """depth: part of the picture that counts; eigen is that of NYUv2, garg that of KITTI."""
    truth_scale: float = 1000.0
    """depth: levels a metre in PNG files of the truth, 1000 as in NYUv2, 256 as in KITTI."""
    prediction_scale: float = 1000.0
    """depth: levels a metre in PNG files of predictions. Files of .npy hold metres."""
    relative: bool = False
    """depth: predictions are known up to scale and shift alone."""
    classes: tuple[str, ...] = ()
    """segment: names of the classes by number, or a text file with a name a line."""
    first: int = 1
    """segment: number of the first class. Smaller numbers are none of them."""
    void: tuple[int, ...] = ()
    """segment: numbers of pixels that do not count where the truth has them, such as 255."""

    clip: Annotated[str | None, Flag(metavar="MODEL")] = None
    """edit: CLIP of CLIP-I and CLIP-T, such as openai/clip-vit-base-patch32, or embedded. Default: none."""
    dino: Annotated[str | None, Flag(metavar="MODEL")] = None
    """edit: DINO whose class tokens are compared, such as facebook/dino-vits16. Default: none."""
    device: str = "auto"
    """edit: device of both."""
    gedit: Annotated[Path | None, Flag(metavar="FOLDER")] = None
    """edit: also copy results and sources to this folder, in the layout of GEdit-Bench."""
    method: str = "results"
    """edit: name of the model there."""
    language: Literal["en", "cn"] = "en"
    """edit: language of the instructions there."""

    def run(self) -> None:
        """Read, measure, print, and write if asked to."""
        if self.json is not None:
            check_writable(self.json)
        scores = SCORERS[self.task](self)
        print(scores)
        if self.json is not None:
            write_text(self.json, json.dumps(contents(scores), indent=1) + "\n")


def contents(scores: Scores) -> dict[str, Any]:
    """Scores as JSON has them; what cannot be measured is null."""
    rows = {name: _plain(row) for name, row in scores.rows.items()}
    return {
        "task": scores.task,
        "protocol": list(scores.protocol),
        "figures": _plain(scores.figures),
        **({"intervals": dict(scores.intervals)} if scores.intervals else {}),
        "pictures": rows,
    }


def _plain(figures: Any) -> dict[str, float | None]:
    return {name: float(v) if math.isfinite(v) else None for name, v in figures.items()}


def check_missing(names: Sequence[str], missing: str) -> None:
    """Raise InputError for pictures without a prediction, unless they are to be counted."""
    if names and missing == "refuse":
        raise InputError(
            f"predictions: expected one for each picture of the truth, got none for {listed(names)}; "
            "--missing count takes each for one that found nothing"
        )


def _told(scores: Scores, missing: Sequence[str], extra: Sequence[str], what: str) -> Scores:
    """Scores that say which predictions were missing or left over."""
    said = []
    if missing:
        said.append(f"{len(missing)} without a prediction ({listed(missing)}), counted as {what}")
    if extra:
        said.append(f"{len(extra)} predictions without a truth, not scored ({listed(extra)})")
    return replace(scores, protocol=(*scores.protocol, *said))


def _depth(asked: Score) -> Scores:
    alignment: Any = asked.alignment.replace("-", " ")
    protocol = DepthProtocol(alignment, asked.space, asked.near, asked.far, asked.crop)
    for name in ("truth_scale", "prediction_scale"):
        finite_number(name, getattr(asked, name), 1e-6)
    scales = (asked.truth_scale, asked.prediction_scale)
    found = depths(asked.truth, asked.predictions, scales, relative=asked.relative)
    check_missing(found.missing, asked.missing)
    scores = score_depth(found.pairs(), protocol)
    return _told(scores, found.missing, found.extra, "no distance anywhere")


def _segment(asked: Score) -> Scores:
    names = asked.classes
    if len(names) == 1 and Path(names[0]).is_file():
        names = tuple(line for line in Path(names[0]).read_text("utf-8").splitlines() if line.strip())
    if not names:
        raise InputError("classes: expected the names of classes by number, or a text file of them, got none")
    found = segmentations(asked.truth, asked.predictions, names, asked.first, asked.void)
    check_missing(found.missing, asked.missing)
    scores = score_segmentation(found.pairs())
    scores = _told(scores, found.missing, found.extra, "none of the classes")
    numbers = f"classes from {asked.first} on"
    void = f", not counted: {', '.join(map(str, asked.void))}" if asked.void else ""
    return replace(scores, protocol=(*scores.protocol, numbers + void))


def _boxes(asked: Score) -> Scores:
    truth = read_json(asked.truth, "truth")
    results, missing = coco_results(truth, read_json(asked.predictions, "predictions"))
    check_missing(missing, asked.missing)
    scores = score_coco(truth, results, "bbox" if asked.task == "detect" else "segm")
    empty = {image["id"] for image in truth["images"]} - {entry["image_id"] for entry in results}
    silent = (f"{len(empty)} pictures in which nothing was predicted",) if empty else ()
    scores = replace(scores, protocol=(*scores.protocol, *silent))
    return _told(scores, missing, (), "pictures in which nothing was predicted")


def _classify(asked: Score) -> Scores:
    from dit_heads.loras.tasks.class_folder import ClassFolder

    folder = ClassFolder(asked.truth)
    right = {path.relative_to(folder.root).as_posix(): name for path, name in folder.files}
    found = labels_of(asked.predictions, right, folder.classes)
    check_missing(found.missing, asked.missing)
    scores = score_labels(found.pairs())
    return _told(scores, found.missing, found.extra, "wrong answers")


def _edit(asked: Score) -> Scores:
    from dit_heads.cli.score_edits import score_edit_folder

    if asked.missing == "count":
        raise InputError("missing: expected refuse for edits, since no picture stands for none, got count")
    return score_edit_folder(asked)


SCORERS: dict[str, Callable[[Score], Scores]] = {
    "depth": _depth,
    "segment": _segment,
    "detect": _boxes,
    "instances": _boxes,
    "classify": _classify,
    "edit": _edit,
}
