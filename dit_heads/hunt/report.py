"""What a search found, and the files that show it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from PIL import Image
from torch import Tensor

from dit_heads.errors import InputError
from dit_heads.heads import HeadId, HeadSet
from dit_heads.hunt.log import differences
from dit_heads.hunt.plots import draw_curve, draw_head_map
from dit_heads.io.atomic import write_text
from dit_heads.io.pictures import write_png
from dit_heads.io.sheets import Column, contact_sheet

Pair = tuple[str, int]
"""A prompt and a seed."""
# Of a result's provenance, what another result in the same folder has to share: more rounds, or another
# method, go on with the same search.
_SAME = ("prompts", "candidates", "seeds", "scale", "softness", "steps", "guidance_scale")


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
    """The outcome of a search: its rounds, the scores without heads, and the number of its pictures."""

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


def check_folder(folder: Path, provenance: Mapping[str, Any]) -> None:
    """Raise InputError if `folder` holds the result of a search of other prompts, seeds or strength."""
    path = folder / "heads.json"
    if not path.exists():
        return
    try:
        stored = json.loads(path.read_text("utf-8"))["provenance"]
        there = {name: stored[name] for name in _SAME}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"folder: '{path}' is not the result of a search; choose another folder") from error
    here = json.loads(json.dumps({name: provenance[name] for name in _SAME}))
    if odd := "; ".join(differences(there, here)):
        raise InputError(f"folder: '{path}' is of another search ({odd}); choose another folder")


def write_result(
    folder: Path, result: Result, pairs: Sequence[Pair], curve: Sequence[Sequence[float]], sheet: Image.Image
) -> list[Path]:
    """Write what shows a result: the head set with its scores (`heads.json`, `scores.csv`), `curve.png`,
    `sheet.png`, and maps of each round."""
    objective = result.provenance["objective"]
    heads, scores, curve_file, sheet_file = (
        folder / name for name in ("heads.json", "scores.csv", "curve.png", "sheet.png")
    )
    write_text(heads, json.dumps(result.to_json(), indent=1) + "\n")
    write_text(scores, _table(result, pairs))
    draw_curve([fmean(of_prefix) for of_prefix in curve], curve_file, title=objective)
    write_png(sheet, sheet_file, {"heads": str(result.heads), **result.provenance})
    maps = (path for number in range(len(result.rounds)) for path in _maps(folder, result, number))
    return [heads, scores, curve_file, sheet_file, *maps]


def result_sheet(
    result: Result, pairs: Sequence[Pair], cells: Sequence[Sequence[Image.Image]], footer: str
) -> Image.Image:
    """Pictures without heads and after each round (columns) of some pairs (rows)."""
    labels = [Column("no heads")]
    labels += [
        Column(f"round {number}", f"+ {HeadSet(found.chosen)}")
        for number, found in enumerate(result.rounds, 1)
    ]
    return contact_sheet(
        [list(line) for line in zip(*cells, strict=True)],
        labels,
        [f"{prompt}\nseed {seed}" for prompt, seed in pairs],
        title=f"Heads that raise {result.provenance['objective']}",
        footer=f"{footer}. AI-generated.",
    )


def pictures(images: Tensor) -> list[Image.Image]:
    """Pictures of tensors [B, 3, H, W] in [0, 1]."""
    arrays = (images.permute(0, 2, 3, 1).cpu().float().numpy() * 255).round().astype("uint8")
    return [Image.fromarray(array) for array in arrays]


def _maps(folder: Path, result: Result, number: int) -> list[Path]:
    """Heads x blocks: what each head gained in a round, and its slope if it was screened."""
    found, paths = result.rounds[number], [folder / f"round-{number + 1}.png"]
    gains = {head: fmean(s) - fmean(result.unguided[: len(s)]) for head, s in found.scores.items()}
    title = f"round {number + 1}: gain over no heads"
    draw_head_map(gains, paths[0], chosen=found.chosen, title=title)
    if found.slopes:
        paths.append(folder / f"screen-{number + 1}.png")
        draw_head_map(found.slopes, paths[1], chosen=found.chosen, title=f"round {number + 1}: slopes")
    return paths


def _table(result: Result, pairs: Sequence[Pair]) -> str:
    """Every score as CSV: a line for each round, head and pair."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("round", "head", "chosen", "prompt", "seed", "score"))
    for number, found in enumerate(result.rounds, 1):
        for head, scores in found.scores.items():
            for (prompt, seed), score in zip(pairs, scores, strict=False):  # fast: the first ones
                writer.writerow((number, head, int(head in found.chosen), prompt, seed, score))
    return text.getvalue()
