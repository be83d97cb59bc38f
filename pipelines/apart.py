"""Questions about several names, one name at a time, and their answers as one.

To bind a colour to each of several names in one instruction asks much of a text encoder. A question about one
name does not, and any number of names can be asked for (as in InstructCV, arXiv 2310.00390)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dit_heads.tasks.annotations import Annotation, Boxes, Labels, Segmentation
from dit_heads.tasks.query import OTHER, Query


def apart(query: Query) -> list[Query]:
    """A question about each name of a query. One with a single name, with `OTHER` or with colours of its own
    stays as it is."""
    if len(query.names) < 2 or OTHER in query.names or query.colours:
        return [query]
    others = (OTHER,) if query.task == "classify" else ()
    return [Query(query.task, (name, *others)) for name in query.names]


def together(query: Query, answers: Sequence[Annotation]) -> Annotation:
    """The answer to a query, from those to the questions of `apart`.

    A pixel that several classes claim is of the one named last, as in the training data. The probabilities of
    answers are their shares of all.
    """
    return answers[0] if len(answers) == 1 else _JOINED[query.task](query, answers)


def _segmented(query: Query, answers: Sequence[Segmentation]) -> Segmentation:
    labels = np.zeros_like(answers[0].labels)
    for k, answer in enumerate(answers, 1):
        labels[answer.labels > 0] = k
    return Segmentation(labels, query.names)


def _detected(_: Query, answers: Sequence[Boxes]) -> Boxes:
    classes = tuple(name for answer in answers for name in answer.classes)
    boxes, scores = (np.concatenate([getattr(a, part) for a in answers]) for part in ("boxes", "scores"))
    return Boxes(boxes, classes, answers[0].size, scores)


def _classified(query: Query, answers: Sequence[Labels]) -> Labels:
    chances = np.array([answer.probabilities[0] for answer in answers])
    return Labels(query.names, chances / chances.sum())


_JOINED: dict[str, Callable[[Query, Any], Annotation]] = {
    "segment": _segmented,
    "detect": _detected,
    "classify": _classified,
}
