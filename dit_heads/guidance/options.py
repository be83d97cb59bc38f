"""How a model is guided: settings that check themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dit_heads.errors import InputError, finite_number
from dit_heads.guidance.perturb import Perturbation
from dit_heads.guidance.perturbed_heads import PerturbedHeads
from dit_heads.guidance.runs import Plan

TRUNKS = ("auto", "shared", "two_pass")
Conditional = slice | Callable[[int], slice]


@dataclass(frozen=True)
class GuidanceOptions:
    """How a model is guided. The fields are those of `HeadGuidance`, which describes them.

    Raises:
        InputError: for numbers outside their range and for an unknown trunk.
    """

    heads: PerturbedHeads
    perturbation: Perturbation
    plan: Plan
    scale: float
    rescale: float
    trunk: str
    conditional: Conditional | None

    def __post_init__(self) -> None:
        finite_number("scale", self.scale)
        finite_number("rescale", self.rescale, 0, 1)
        if self.trunk not in TRUNKS:
            raise InputError(f"trunk: expected {', '.join(TRUNKS)}, got {self.trunk!r}")

    @property
    def add_nothing(self) -> bool:
        """Whether guided pictures are the unguided ones."""
        return self.scale == 0 or self.heads.all_zero
