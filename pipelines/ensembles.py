"""Several answers to one question as one, with how much they differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from dit_heads.tasks.annotations import Annotation, Boxes, Depth, Labels, Segmentation, box_iou

Answer = tuple[Annotation, "np.ndarray | None"]
SAME = 0.5  # intersection over union from which on two boxes are of one object


def joined(answers: Sequence[Annotation]) -> Answer:
    """One answer of several, with its uncertainty; one alone has none.

    A segmentation is the vote of each pixel, and its uncertainty the share of other votes. Depth is the
    median of each pixel, and its uncertainty the median distance from it in metres. Classes have the mean of
    their probabilities, with the standard deviation. Boxes of one object are averaged by their scores, with
    the share of answers that have none.
    """
    first = answers[0]
    if len(answers) == 1:
        return first, None
    return JOINED[type(first)](answers)


def _vote(answers: Sequence[Segmentation]) -> Answer:
    labels = np.stack([answer.labels for answer in answers])
    votes = np.stack([(labels == k).sum(0) for k in range(len(answers[0].classes) + 1)])
    chosen = votes.argmax(0)
    return replace(answers[0], labels=chosen), 1 - votes.max(0) / len(answers)


def _median(answers: Sequence[Depth]) -> Answer:
    """Where most answers have a distance. Sky is sky in most of the others."""
    metres = np.stack([np.where(a.valid, a.metres, np.nan) for a in answers])
    valid, sky = (np.stack([getattr(a, name) for a in answers]).sum(0) for name in ("valid", "sky"))
    known = 2 * valid > len(answers)
    filled = np.where(known, metres, 1.0)  # the median of nothing would warn
    median = np.nanmedian(filled, 0)
    apart = np.nanmedian(np.abs(filled - median), 0)
    joint = Depth(median, known, ~known & (2 * sky >= len(answers)), answers[0].metric)
    return joint, np.where(known, apart, np.nan)


def _mean(answers: Sequence[Labels]) -> Answer:
    chances = np.stack([answer.probabilities for answer in answers])
    return Labels(answers[0].answers, chances.mean(0)), chances.std(0)


def _clusters(answers: Sequence[Boxes]) -> Answer:
    """From the surest box on, each takes the best one of every other answer that is of the same object."""
    free = [(k, n) for k, answer in enumerate(answers) for n in range(len(answer))]
    free.sort(key=lambda at: -answers[at[0]].scores[at[1]])
    boxes, classes, scores, doubts = [], [], [], []
    while free:
        k, n = free[0]
        box, name = answers[k].boxes[n], answers[k].classes[n]
        own = {}
        for j, m in free:
            same = answers[j].classes[m] == name and box_iou(box, answers[j].boxes[m]) >= SAME
            if same and j not in own:
                own[j] = m
        members = list(own.items())
        weights = np.array([max(answers[j].scores[m], 1e-6) for j, m in members])
        boxes.append(np.average([answers[j].boxes[m] for j, m in members], 0, weights))
        classes.append(name)
        scores.append(sum(answers[j].scores[m] for j, m in members) / len(answers))
        doubts.append(1 - len(members) / len(answers))
        free = [at for at in free if at not in members]
    found = np.array(boxes, float).reshape(-1, 4)
    joint = Boxes(found, tuple(classes), answers[0].size, np.array(scores, float))
    return joint, np.array(doubts, float)


JOINED: dict[type, Callable[[Any], Answer]] = {
    Segmentation: _vote,
    Depth: _median,
    Labels: _mean,
    Boxes: _clusters,
}
