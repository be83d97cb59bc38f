"""After a search: how strongly should the heads guide? Scale w and softness u as a grid of real pictures.

The paper searches at u = 1 and advises to lower it afterwards (arXiv 2506.10978)."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from dit_heads.errors import InputError
from dit_heads.heads import HeadSet
from dit_heads.hunt.hunter import HeadHunter
from dit_heads.hunt.plots import draw_grid
from dit_heads.hunt.trials import Strength
from dit_heads.io.atomic import write_text
from dit_heads.io.pictures import write_png
from dit_heads.io.sheets import Column, contact_sheet


@dataclass(frozen=True)
class Tuning:
    """How well one head set does at each strength.

    Attributes:
        heads: the set.
        scores: at each strength, a score for each (prompt, seed) pair.
        unguided: scores without heads.
    """

    heads: HeadSet
    scores: Mapping[Strength, Sequence[float]]
    unguided: Sequence[float]

    @property
    def best(self) -> Strength:
        """The strength of the highest mean score; among equals the weakest."""
        return max(self.scores, key=lambda strength: (fmean(self.scores[strength]), [-s for s in strength]))

    def gain(self, strength: Strength) -> float:
        """Mean score minus that without heads."""
        return fmean(self.scores[strength]) - fmean(self.unguided)

    def __str__(self) -> str:
        scale, softness = self.best
        return (
            f"heads {self.heads}: best at scale {scale:g}, softness {softness:g}, "
            f"{self.gain(self.best):+.4f} over {fmean(self.unguided):.4f} without heads"
        )


def tune(hunter: HeadHunter, heads: HeadSet, scales: Sequence[float], softnesses: Sequence[float]) -> Tuning:
    """Score heads at every scale and softness on the pairs of a search. Call it again to resume.

    Args:
        hunter: the search.
        heads: the head set.
        scales: head guidance scales w.
        softnesses: u, in (0, 1].

    Raises:
        InputError: for a scale that is not positive or a softness outside (0, 1].
    """
    check_grid(scales, softnesses)
    found = {
        Strength(scale, softness): hunter.scores([heads], scale=scale, softness=softness)[0]
        for scale, softness in itertools.product(scales, softnesses)
    }
    return Tuning(heads, found, hunter.scores([None])[0])


def check_grid(scales: Sequence[float], softnesses: Sequence[float]) -> None:
    """Raise InputError for a scale that is not positive or a softness outside (0, 1]."""
    if not scales or not all(0 < scale < math.inf for scale in scales):
        raise InputError(f"scales: expected positive numbers, got {tuple(scales)}")
    if not softnesses or not all(0 < u <= 1 for u in softnesses):
        raise InputError(f"softnesses: expected numbers above 0 and up to 1, got {tuple(softnesses)}")


def write_tuning(hunter: HeadHunter, tuning: Tuning, folder: Path) -> list[Path]:
    """Write scores (`tune.json`), a map of gains (`tune.png`) and pictures of a pair (`tune-sheet.png`).

    Args:
        hunter: the search.
        tuning: what was measured.
        folder: where to write.

    Returns:
        The paths of the files.
    """
    paths = [folder / name for name in ("tune.json", "tune.png", "tune-sheet.png")]
    scales, softnesses = ([*dict.fromkeys(s[i] for s in tuning.scores)] for i in (0, 1))
    scale, softness = tuning.best
    rows = [{"scale": w, "softness": u, "mean": fmean(s)} for (w, u), s in tuning.scores.items()]
    stored = {
        **tuning.heads.to_json(),
        "scale": scale,
        "softness": softness,
        "unguided": fmean(tuning.unguided),
        "grid": rows,
        "provenance": hunter.provenance,
    }
    write_text(paths[0], json.dumps(stored, indent=1) + "\n")
    draw_grid(
        [[tuning.gain(Strength(w, u)) for w in scales] for u in softnesses],
        paths[1],
        rows=("softness u", [f"{u:g}" for u in softnesses]),
        columns=("scale w", [f"{w:g}" for w in scales]),
        title=f"{tuning.heads}: gain over no heads",
    )
    pair = hunter.pairs[0]
    draw = hunter.evaluator.pictures
    cells = [[draw(tuning.heads, [pair], Strength(w, u))[0] for w in scales] for u in softnesses]
    sheet = contact_sheet(
        cells,
        [Column(f"scale {w:g}") for w in scales],
        [f"softness {u:g}" for u in softnesses],
        title=str(tuning.heads),
        footer=f"{pair[0]}, seed {pair[1]}. AI-generated.",
    )
    write_png(sheet, paths[2], {"heads": str(tuning.heads), **hunter.provenance})
    return paths
