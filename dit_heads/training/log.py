"""The log of a run: a CSV with a line of mean figures every few steps."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from dit_heads.errors import InputError
from dit_heads.io.atomic import write_text
from dit_heads.training.processes import number

Means = dict[str, tuple[float, int]]
"""Of each figure, its sum over some steps and the number of these steps."""


class Log:
    """A CSV file with a column for each figure.

    Args:
        path: the file. Its lines of steps from `start` on are dropped, because the run repeats them.
        start: the first step of this start of the run.
        begun: figures of steps since the last line, as `begun` was at the checkpoint.
        save: whether this process writes the file.

    Raises:
        InputError: the file is not a log of a run.
    """

    def __init__(self, path: Path, start: int, begun: Means | None = None, *, save: bool = True) -> None:
        self.path, self.save = path, save
        self._rows = [row for row in _read_rows(path) if int(row["step"]) < start]
        self.begun: Means = dict(begun or {})
        self._step = 0
        if path.exists():
            self._save()

    def add(self, step: int, figures: Mapping[str, float | Tensor]) -> None:
        """Take in the figures of a step, by name. A step may lack some."""
        self._step = step
        for name, value in figures.items():
            total, count = self.begun.get(name, (0.0, 0))
            self.begun[name] = total + number(value), count + 1

    def means(self) -> dict[str, float]:
        """The mean of each figure over the steps since the last line that had it."""
        return {name: total / count for name, (total, count) in self.begun.items()}

    def write(self, means: Mapping[str, float], seconds: float) -> None:
        """Add a line to the log.

        Args:
            means: figures by name, written with six significant digits.
            seconds: of training so far, in all.
        """
        figures = {name: float(f"{value:.6g}") for name, value in means.items()}
        self._rows.append({"step": self._step, "seconds": round(seconds, 1), **figures})
        self._save()
        self.begun = {}

    def _save(self) -> None:
        if not self.save:
            return
        text = io.StringIO()
        names = dict.fromkeys(name for row in self._rows for name in row)
        writer = csv.DictWriter(text, list(names), restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows)
        write_text(self.path, text.getvalue())


def _read_rows(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = [{k: v for k, v in row.items() if k and v} for row in csv.DictReader(file)]
    if not all(str(row.get("step", "")).isdecimal() for row in rows):
        raise InputError(f"'{path}': expected a log with a column 'step' and commas between columns")
    return rows
