"""One picture of a search and its score; batches of them, and the log that makes a search resumable.

What is computed in one batch is part of the plan: rounding depends on it, so a search that was killed and
started again, or spread over other workers, gives the same scores.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dit_heads.errors import InputError
from dit_heads.guidance import HeadGuidance
from dit_heads.objectives import Objective, checked_scores


@dataclass(frozen=True)
class Trial:
    """A picture: `heads` as `HeadSet` prints them, or "" for one without head guidance."""

    heads: str
    prompt: str
    seed: int
    steps: int
    scale: float
    softness: float

    @property
    def setting(self) -> tuple[bool, int, float, float]:
        """What all pictures of a batch have in common."""
        return bool(self.heads), self.steps, self.scale, self.softness


Batch = tuple[Trial, ...]
Execute = Callable[[Sequence[Batch]], Iterable[tuple[Batch, list[float]]]]


def batches_of(trials: Sequence[Trial], size: int) -> list[Batch]:
    """Neighbours that share a setting, at most `size` a batch, in order."""
    runs = (list(run) for _, run in groupby(trials, key=lambda trial: trial.setting))
    return [tuple(run[at : at + size]) for run in runs for at in range(0, len(run), size)]


class Scorer:
    """Paints the pictures of a batch side by side, each with heads and a seed of its own, and scores them.

    `call` goes to the pipeline: CFG (`guidance_scale`), size, text length. A picture's noise depends on its
    seed alone (common random numbers)."""

    def __init__(
        self,
        pipe: Any,
        objective: Objective,
        call: Mapping[str, Any],
        *,
        perturbation: str = "identity",
        region: str = "joint",
    ) -> None:
        self.pipe, self.objective, self.call = pipe, objective, dict(call)
        self.options: dict[str, Any] = {"perturbation": perturbation, "region": region}

    def __call__(self, batch: Batch) -> list[float]:
        """A score a picture. Raises ValueError if the objective gives anything else."""
        images = self.paint(batch)
        with torch.no_grad():
            return checked_scores(self.objective, images, [trial.prompt for trial in batch]).tolist()

    def paint(self, batch: Batch) -> Float[Tensor, "b 3 h w"]:
        """The pictures in [0, 1]."""
        first = batch[0]
        heads = [trial.heads for trial in batch]
        options: dict[str, Any] = {**self.options, "scale": first.scale, "softness": first.softness}
        with HeadGuidance(self.pipe, heads, **options) if first.heads else nullcontext():
            return self.pipe(
                [trial.prompt for trial in batch],
                num_inference_steps=first.steps,
                generator=[torch.Generator().manual_seed(trial.seed) for trial in batch],
                output_type="pt",
                **self.call,
            ).images.float()


def fingerprint(model: nn.Module) -> str:
    """Tells models apart: a hash of every weight's name and shape and of eight of its values."""
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        some = weight.detach().flatten()[:: max(1, weight.numel() // 8)]
        digest.update(f"{name} {tuple(weight.shape)} {some.double().tolist()}".encode())
    return digest.hexdigest()[:16]


class TrialLog:
    """Scores on disk, one JSON line a picture behind a line that says what was searched.

    A batch is written at once and flushed to the disk; a last line that was cut is dropped. Raises ValueError
    for a log of something else, naming the difference, and for a file that is no log."""

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self.path, self._scores = path, dict[Trial, float]()
        path.parent.mkdir(parents=True, exist_ok=True)
        wanted = json.loads(json.dumps(header))
        rows = _whole_rows(path)
        if rows:
            _check_same(path, rows[0], wanted)
            scores = [row.pop("score") for row in rows[1:]]
            self._scores.update(zip((Trial(**row) for row in rows[1:]), scores, strict=True))
        else:
            self._append([wanted])

    def __contains__(self, batch: Batch) -> bool:
        """Whether every picture of a batch is there: half a batch is computed again as a whole."""
        return all(trial in self._scores for trial in batch)

    def __getitem__(self, trial: Trial) -> float:
        return self._scores[trial]

    def __len__(self) -> int:
        return len(self._scores)

    def add(self, batch: Batch, scores: Sequence[float]) -> None:
        """Keep the scores of a batch; a picture that is known keeps its first one, as another batch rounds
        otherwise. Raises OSError if they cannot be written."""
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


def _whole_rows(path: Path) -> list[Any]:
    """The lines of a log; what follows the last line's end is cut off the file."""
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    try:
        rows = [json.loads(line) for line in whole.splitlines()]
    except ValueError as error:
        raise InputError(f"log: '{path}' is not the log of a search") from error
    if len(whole) < len(data):
        os.truncate(path, len(whole))
    return rows


def _check_same(path: Path, found: Any, wanted: Mapping[str, Any]) -> None:
    if not isinstance(found, dict):
        raise InputError(f"log: '{path}' is not the log of a search")
    differing = [k for k in wanted.keys() | found.keys() if found.get(k) != wanted.get(k)]
    if differing:
        what = "; ".join(f"{k}: {found.get(k)!r} there, {wanted.get(k)!r} here" for k in sorted(differing))
        raise InputError(f"log: '{path}' is of another search ({what}); choose another folder")


def evaluate(
    trials: Sequence[Trial],
    log: TrialLog,
    execute: Execute,
    *,
    size: int,
    done: Callable[[int], object] = lambda pictures: None,
) -> dict[Trial, float]:
    """The score of every trial, from the log or from `execute`, which may finish batches in any order."""
    batches = batches_of(trials, size)
    missing = [batch for batch in batches if batch not in log]
    done(sum(map(len, batches)) - sum(map(len, missing)))
    for batch, scores in execute(missing):
        log.add(batch, scores)
        done(len(batch))
    return {trial: log[trial] for trial in trials}


def in_process(scorer: Scorer) -> Execute:
    """Batch after batch, here."""

    def execute(batches: Sequence[Batch]) -> Iterator[tuple[Batch, list[float]]]:
        for batch in batches:
            yield batch, scorer(batch)

    return execute
