"""Objectives made of other objectives: weighted sums, and scores that count only above a threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dit_heads.errors import InputError, finite_number
from dit_heads.objectives.objective import Objective, checked_scores, name_of, parts_of


class WeightedSum:
    """A weighted sum of objectives.

    Args:
        weights: the weight of each objective.

    Raises:
        InputError: for no objectives, and for a weight that is not finite.
    """

    def __init__(self, weights: Mapping[Objective, float]) -> None:
        if not weights:
            raise InputError("weights: expected an objective or more, got none")
        for objective, weight in weights.items():
            finite_number(f"weights: {_part(objective)}", weight)
        self.weights = dict(weights)
        self.name = " + ".join(f"{w:.12g} {_part(o)}" for o, w in weights.items())

    def __call__(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[str]) -> Float[Tensor, " b"]:
        """The score of each picture.

        Args:
            images: pictures in [0, 1].
            prompts: one prompt per picture.
        """
        return torch.stack([w * checked_scores(o, images, prompts) for o, w in self.weights.items()]).sum(0)

    @property
    def parts(self) -> dict[str, Any]:
        """Everything that the scores depend on."""
        return _parts(*self.weights)


class Threshold:
    """An objective that counts only where another one, the gate, reaches a threshold.

    Args:
        objective: gives the score of pictures that pass.
        gate: decides which pictures pass.
        at_least: the gate's score from which a picture passes.
        otherwise: score of pictures that do not pass.

    Raises:
        InputError: for a threshold or a score that is not finite.
    """

    def __init__(
        self, objective: Objective, gate: Objective, at_least: float, otherwise: float = 0.0
    ) -> None:
        finite_number("at_least", at_least)
        finite_number("otherwise", otherwise)
        self.objective, self.gate, self.at_least, self.otherwise = objective, gate, at_least, otherwise
        self.name = f"{_part(objective)} if {_part(gate)} >= {at_least:.12g} else {otherwise:.12g}"

    def __call__(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[str]) -> Float[Tensor, " b"]:
        """The score of each picture.

        Args:
            images: pictures in [0, 1].
            prompts: one prompt per picture.
        """
        scores = checked_scores(self.objective, images, prompts)
        passed = checked_scores(self.gate, images, prompts) >= self.at_least
        return torch.where(passed, scores, self.otherwise)

    @property
    def parts(self) -> dict[str, Any]:
        """Everything that the scores depend on."""
        return _parts(self.objective, self.gate)


def _part(objective: Objective) -> str:
    name = name_of(objective)
    return f"({name})" if " " in name else name


def _parts(*objectives: Objective) -> dict[str, Any]:
    return {
        f"{number}.{name}": part
        for number, objective in enumerate(objectives)
        for name, part in parts_of(objective).items()
    }
