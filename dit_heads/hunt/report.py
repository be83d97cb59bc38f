"""The files that show what a search found."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from PIL import Image

from dit_heads.errors import InputError
from dit_heads.heads import HeadSet
from dit_heads.hunt.log import differences
from dit_heads.hunt.plots import draw_curve, draw_head_map
from dit_heads.hunt.result import Result
from dit_heads.hunt.trials import Pair
from dit_heads.io.atomic import write_text
from dit_heads.io.pictures import write_png
from dit_heads.io.sheets import Column, contact_sheet

# Of a result's provenance, what another result in the same folder has to share: more rounds, or another
# method, go on with the same search.
_SAME = ("prompts", "candidates", "seeds", "scale", "softness", "steps", "guidance_scale")


def check_folder(folder: Path, provenance: Mapping[str, Any]) -> None:
    """Check that the folder of a search may be written to.

    Args:
        folder: of the search.
        provenance: of the search.

    Raises:
        InputError: if it holds the result of a search of other prompts, seeds or strength, or something else
            under the name of a result.
    """
    path = folder / "heads.json"
    if not path.exists():
        return
    try:
        stored = json.loads(path.read_text("utf-8"))["provenance"]
        there = {name: stored[name] for name in _SAME}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"folder: '{path}' is not the result of a search; choose another folder") from error
    here = json.loads(json.dumps({name: provenance[name] for name in _SAME}))
    if differing := "; ".join(differences(there, here)):
        raise InputError(f"folder: '{path}' is of another search ({differing}); choose another folder")


def write_result(
    folder: Path, result: Result, pairs: Sequence[Pair], curve: Sequence[Sequence[float]], sheet: Image.Image
) -> list[Path]:
    """Write what shows a result: the head set with its scores (`heads.json`, `scores.csv`), `curve.png`,
    `sheet.png`, and maps of each round.

    Args:
        folder: of the search.
        result: its outcome.
        pairs: its (prompt, seed) pairs.
        curve: scores of the first 0, 1, 2 ... chosen heads, one for each pair.
        sheet: the contact sheet.

    Returns:
        The paths of the files.
    """
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
    """A contact sheet.

    Args:
        result: of a search.
        pairs: prompts and seeds of the rows.
        cells: for each column (no heads, then each round) the pictures of these pairs.
        footer: a line below.
    """
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
