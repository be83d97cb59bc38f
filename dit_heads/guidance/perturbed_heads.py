"""Which heads are perturbed and how far, and the weights U [R, H] that carry this to each block."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dit_heads.errors import InputError, finite_number
from dit_heads.families import HeadLayout
from dit_heads.heads import HeadId, HeadSet

Softness = float | Mapping[HeadId | str, float]
# U of each perturbed block: attention name -> [R, H].
Weights = Mapping[int, Mapping[str, Float[Tensor, "r h"]]]


@dataclass(frozen=True)
class PerturbedHeads:
    """The perturbed heads of a model, each with its softness u in [0, 1] (arXiv 2506.10978).

    Attributes:
        layout: of the model.
        softness: u of every perturbed head; one mapping for all pictures, or one for each of them.
        per_sample: whether each picture has a mapping of its own.
    """

    layout: HeadLayout
    softness: tuple[Mapping[HeadId, float], ...]
    per_sample: bool = False

    @classmethod
    def of(cls, layout: HeadLayout, heads: Any, softness: Softness) -> PerturbedHeads:
        """Read what a caller gave.

        Args:
            layout: of the model.
            heads: a HeadSet or its text; a list of them gives each picture its own.
            softness: u of all heads, or a mapping that names exactly the heads of each set.

        Raises:
            InputError: for anything else, for heads that the model lacks, and for u outside [0, 1].
        """
        per_sample = isinstance(heads, Sequence) and not isinstance(heads, str)
        sets = _head_sets(list(heads) if per_sample else [heads], heads)
        found = tuple(_softness_of(layout.resolve(each), softness, layout.resolve) for each in sets)
        return cls(layout, found, per_sample)

    @property
    def blocks(self) -> list[int]:
        """The blocks with perturbed heads, in order."""
        return sorted({head.block for of_set in self.softness for head in of_set})

    @property
    def all_zero(self) -> bool:
        """Whether no head moves at all."""
        return not any(u for of_set in self.softness for u in of_set.values())

    def weights(self, latents: Float[Tensor, "r ..."] | Sequence[Tensor]) -> Weights:
        """U of every perturbed attention for R pictures, on the device and in the dtype of their latents.

        Args:
            latents: one entry a picture, in a tensor or, for families whose pictures differ in size, a list.

        Raises:
            InputError: if each picture is to have heads of its own, and there are not R sets of them.
        """
        pictures = len(latents)
        if self.per_sample and len(self.softness) != pictures:
            raise InputError(
                f"heads: expected one head set for each of {pictures} pictures, got {len(self.softness)}"
            )
        # Filled on the CPU: a write for each head would be as many launches on a GPU, at every step.
        weights: dict[int, dict[str, Tensor]] = {}
        for row, of_row in enumerate(self.softness if self.per_sample else self.softness * pictures):
            for head, u in of_row.items():
                of_block = weights.setdefault(head.block, {})
                name = self.layout.attention(head)
                if name not in of_block:
                    of_block[name] = torch.zeros(pictures, self.layout.count(head), dtype=torch.float64)
                of_block[name][row, head.head] = u
        return {
            block: {name: u.to(latents[0].device, latents[0].dtype) for name, u in of_block.items()}
            for block, of_block in weights.items()
        }


def _head_sets(listed: Sequence[Any], given: object) -> list[HeadSet]:
    if not listed or not all(isinstance(item, HeadSet | str) for item in listed):
        raise InputError(f"heads: expected a HeadSet, its text, or a list of these, got {given!r}")
    return [HeadSet.parse(item) if isinstance(item, str) else item for item in listed]


def _softness_of(
    heads: Sequence[HeadId], softness: Softness, resolve: Callable[[HeadSet], tuple[HeadId, ...]]
) -> dict[HeadId, float]:
    """u of every head. In a mapping whole blocks may stand for their heads."""
    if not isinstance(softness, Mapping):
        return dict.fromkeys(heads, finite_number("softness", softness, 0, 1))
    found = {
        head: finite_number("softness", u, 0, 1)
        for name, u in softness.items()
        for head in resolve(HeadSet.parse(str(name)))
    }
    if found.keys() != set(heads):
        differing = ", ".join(map(str, sorted(found.keys() ^ set(heads))))
        raise InputError(
            f"softness: expected a number for each head of the set and no other, these differ: {differing}"
        )
    return found
