"""Average precision of boxes and masks, by COCO's protocol. It needs `pip install 'dit-heads[eval]'`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from dit_heads.errors import InputError
from dit_heads.tasks.annotations import Boxes, Instances
from dit_heads.tasks.coco import checked_truth, coco_file
from dit_heads.tasks.metrics.scores import Scores

Kind = Literal["bbox", "segm"]
KINDS = {"bbox": "boxes", "segm": "masks"}
FIGURES = ("AP", "AP50", "AP75", "AP small", "AP medium", "AP large", "AR 1", "AR 10", "AR 100")
PROTOCOL = "COCO: IoU 0.50 to 0.95 by 0.05, 101 recalls, the 100 surest predictions of a class in a picture"


def score_detection(pairs: Iterable[tuple[str, Boxes | Instances, Boxes | Instances]]) -> Scores:
    """Average precision of boxes, or of masks. Every prediction counts, false ones too.

    Args:
        pairs: Name, truth and predictions of each picture, either boxes or instances.

    Raises:
        InputError: for no pictures, boxes and instances mixed, predictions of another size, and a missing
            faster-coco-eval.
    """
    known = list(pairs)
    kinds = {type(part) for _, *parts in known for part in parts}
    if len(kinds) != 1:
        found = ", ".join(sorted(kind.__name__ for kind in kinds)) or "none"
        raise InputError(f"pairs: expected boxes alone or instances alone, got {found}")
    for name, truth, found in known:
        if truth.size != found.size:
            raise InputError(f"prediction: expected the size {truth.size}, got {found.size} ({name})")
    names = sorted({kind for _, *parts in known for part in parts for kind in part.classes})
    truth = coco_file([(name, part) for name, part, _ in known], names)
    results = coco_file([(name, part) for name, _, part in known], names)["annotations"]
    return score_coco(truth, results, "bbox" if kinds == {Boxes} else "segm")


def score_coco(truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], kind: Kind) -> Scores:
    """Average precision of results in COCO's form.

    Args:
        truth: The contents of an annotation file: images, categories, annotations.
        results: The contents of a result file, each with image_id, category_id, score, and bbox or
            segmentation.
        kind: "bbox" for boxes, "segm" for masks.

    Raises:
        InputError: for no pictures, results about pictures or classes that the truth does not have or
            without a score, and a missing faster-coco-eval.
    """
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError as error:
        raise InputError("faster-coco-eval: expected it, `pip install 'dit-heads[eval]'`") from error
    _check(truth, results, kind)
    known = COCO(dict(truth))
    run = COCOeval_faster(known, known.loadRes([dict(entry) for entry in results]), kind)
    run.evaluate()
    run.accumulate()
    run.summarize()
    values = [float(value) if value >= 0 else float("nan") for value in run.stats[: len(FIGURES)]]
    about = (
        f"{len(truth['images'])} pictures, {len(truth['annotations'])} {KINDS[kind]}, "
        f"{len(results)} predictions, all of them counted",
        PROTOCOL,
    )
    return Scores(f"detection by {KINDS[kind]}", about, dict(zip(FIGURES, values, strict=True)), {})


def _check(truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], kind: Kind) -> None:
    if kind not in KINDS:
        raise InputError(f"kind: expected {', '.join(KINDS)}, got {kind!r}")
    checked_truth(truth, "truth")
    if not truth["images"]:
        raise InputError("truth: expected a picture or more, got none")
    pictures = {image["id"] for image in truth["images"]}
    classes = {category["id"] for category in truth["categories"]}
    what = "bbox" if kind == "bbox" else "segmentation"
    for number, entry in enumerate(results):
        if lacking := [key for key in ("image_id", "category_id", "score", what) if key not in entry]:
            raise InputError(f"results: expected {', '.join(lacking)} in each entry, got none in {number}")
        for key, known in (("image_id", pictures), ("category_id", classes)):
            if entry[key] not in known:
                raise InputError(f"results: expected a {key} of the truth, got {entry[key]!r} in {number}")
        if not np.isfinite(entry["score"]):
            raise InputError(f"results: expected finite scores, got {entry['score']} in {number}")
