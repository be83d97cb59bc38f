"""The log that makes a search resumable: scores on disk, one JSON line a picture."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dit_heads.errors import InputError
from dit_heads.hunt.trials import Trial, TrialBatch

_NUMBER = (int, float)
_TYPES = dict(heads=str, prompt=str, seed=int, steps=int, scale=_NUMBER, softness=_NUMBER, score=_NUMBER)


class TrialLog:
    """Scores on disk. The first line, the header, says what they depend on.

    A batch is written at once and flushed to the disk. An incomplete last line is dropped, once the file is
    known to be a log of this search.

    Args:
        path: of the log; its folder is made if needed.
        header: all that scores depend on beside the settings of each picture, as JSON.

    Raises:
        InputError: for the log of another search, naming the differences, and for a file that is no log.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self.path, self._scores = path, dict[Trial, float]()
        path.parent.mkdir(parents=True, exist_ok=True)
        header = json.loads(json.dumps(header))
        data = path.read_bytes() if path.exists() else b""
        lines = data[: data.rfind(b"\n") + 1].splitlines()
        if lines:
            self._check_header(lines[0], header)
            self._scores.update(self._read(number, line) for number, line in enumerate(lines[1:], 2))
        elif data and not json.dumps(header).encode().startswith(data):
            raise InputError(f"log: '{path}' is not the log of a search")
        if not data.endswith(b"\n") and path.exists():
            os.truncate(path, data.rfind(b"\n") + 1)
        if not lines:
            self._append([header])

    def __contains__(self, batch: TrialBatch) -> bool:
        """Whether every picture of a batch has a score. Half a batch is computed again as a whole."""
        return all(trial in self._scores for trial in batch)

    def __getitem__(self, trial: Trial) -> float:
        return self._scores[trial]

    def __len__(self) -> int:
        return len(self._scores)

    def add(self, batch: TrialBatch, scores: Sequence[float]) -> None:
        """Add the scores of a batch. Existing scores are kept: batches differ in the last bits.

        Args:
            batch: the pictures.
            scores: one for each of them.

        Raises:
            OSError: if they cannot be written. The log is then as it was.
        """
        new = {t: s for t, s in zip(batch, scores, strict=True) if t not in self._scores}
        self._append([{**asdict(trial), "score": score} for trial, score in new.items()])
        self._scores.update(new)

    def _append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        with self.path.open("ab") as file:
            end = file.tell()
            try:
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                file.truncate(end)
                raise

    def _check_header(self, line: bytes, header: Mapping[str, Any]) -> None:
        found = self._json(line, 1)
        if not isinstance(found, dict):
            raise InputError(f"log: '{self.path}' is not the log of a search")
        if listed := "; ".join(differences(found, header)):
            raise InputError(f"log: '{self.path}' is of another search ({listed}); choose another folder")

    def _read(self, number: int, line: bytes) -> tuple[Trial, float]:
        row = self._json(line, number)
        if not isinstance(row, dict) or row.keys() != _TYPES.keys():
            came = ", ".join(row) if isinstance(row, dict) else repr(row)
            raise self._damaged(number, f"expected {', '.join(_TYPES)}, got {came}")
        for name, kind in _TYPES.items():
            if isinstance(row[name], bool) or not isinstance(row[name], kind):
                raise self._damaged(number, f"{name} is {row[name]!r}")
        score = row.pop("score")
        return Trial(**row), score

    def _damaged(self, number: int, why: str) -> InputError:
        return InputError(f"log: '{self.path}', line {number} is damaged: {why}")

    def _json(self, line: bytes, number: int) -> Any:
        try:
            return json.loads(line)
        except ValueError as error:
            if number > 1:
                raise self._damaged(number, str(error)) from error
            raise InputError(f"log: '{self.path}' is not the log of a search") from error


def differences(there: Mapping[str, Any], here: Mapping[str, Any], within: str = "") -> Iterator[str]:
    """Where two nested mappings differ.

    Returns:
        A text for each entry that differs: its path and both values.
    """
    for key in sorted(there.keys() | here.keys()):
        old, new = there.get(key), here.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from differences(old, new, f"{within}{key}.")
        elif old != new:
            yield f"{within}{key}: {_shown(old)} there, {_shown(new)} here"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."
