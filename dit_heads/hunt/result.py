"""What a search found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

import diffusers
import torch

from dit_heads import __version__
from dit_heads.heads import HeadId, HeadSet
from dit_heads.hunt.config import HuntConfig


@dataclass(frozen=True)
class Round:
    """What a round found.

    Attributes:
        chosen: the heads that it added, best first.
        scores: of each candidate, a score for each (prompt, seed) pair, of pictures guided by the heads
            chosen before and the candidate. A fast round scores some heads, some of them on the first pairs
            only.
        slopes: of every head, in a fast round.
    """

    chosen: tuple[HeadId, ...]
    scores: Mapping[HeadId, Sequence[float]]
    slopes: Mapping[HeadId, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """The outcome of a search.

    Attributes:
        rounds: in order.
        unguided: scores without heads, one for each pair.
        pictures: number of pictures that the search takes.
        provenance: its settings, and all else that scores depend on.
    """

    rounds: tuple[Round, ...]
    unguided: Sequence[float]
    pictures: int
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def chosen(self) -> tuple[HeadId, ...]:
        """Every chosen head, in the order of choice."""
        return tuple(head for found in self.rounds for head in found.chosen)

    @property
    def heads(self) -> HeadSet:
        """Every chosen head as a set."""
        return HeadSet(self.chosen)

    def __str__(self) -> str:
        lines = [f"without heads {fmean(self.unguided):.4f}, mean of {len(self.unguided)} pictures"]
        for number, found in enumerate(self.rounds, 1):
            best = ", ".join(f"{head} {fmean(found.scores[head]):.4f}" for head in found.chosen)
            lines.append(f"round {number}: {best}")
        return "\n".join([*lines, f"heads: {self.heads}", f"{self.pictures} pictures in all"])

    def to_json(self) -> dict[str, Any]:
        """The heads as `HeadSet.load` reads them, and every mean score."""
        means = [{str(h): fmean(s) for h, s in found.scores.items()} for found in self.rounds]
        chosen = [[str(h) for h in found.chosen] for found in self.rounds]
        return {
            **self.heads.to_json(),
            "order": chosen,
            "unguided": fmean(self.unguided),
            "scores": means,
            "slopes": [{str(h): slope for h, slope in found.slopes.items()} for found in self.rounds],
            "pictures": self.pictures,
            "provenance": dict(self.provenance),
        }


def provenance_of(
    header: Mapping[str, Any], config: HuntConfig, prompts: Sequence[str], candidates: Sequence[HeadId]
) -> dict[str, Any]:
    """All that a result depends on, as JSON: the header of the log, settings, prompts, candidates, and
    versions of libraries."""
    versions = {"dit_heads": __version__, "torch": torch.__version__, "diffusers": diffusers.__version__}
    return {
        **header,
        **asdict(config),
        "prompts": list(prompts),
        "candidates": str(HeadSet(candidates)),
        "versions": versions,
    }
