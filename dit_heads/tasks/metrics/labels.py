"""Accuracy of classification."""

from __future__ import annotations

from collections.abc import Iterable

from dit_heads.errors import InputError
from dit_heads.tasks.annotations import Labels
from dit_heads.tasks.metrics.scores import Scores


def score_labels(pairs: Iterable[tuple[str, str, Labels]]) -> Scores:
    """Accuracy, and the mean probability of the right answer.

    Args:
        pairs: Name, right answer and prediction of each picture.

    Raises:
        InputError: for no pictures, and for a right answer that the prediction could not choose.
    """
    rows = {}
    for name, right, found in pairs:
        if right not in found.answers:
            answers = ", ".join(found.answers)
            raise InputError(f"prediction: expected {right!r} among its answers, got {answers} ({name})")
        probability = float(found.probabilities[found.answers.index(right)])
        rows[name] = {"accuracy": float(found.best == right), "probability of the right answer": probability}
    return Scores.of("classification", ["of equal probabilities, the first answer counts"], rows)
