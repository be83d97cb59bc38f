"""The slopes of a round: from the gradient screen, or from the disk, so that an interrupted search need not
screen again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dit_heads.errors import InputError
from dit_heads.heads import HeadId, HeadSet
from dit_heads.heads.names import every_head
from dit_heads.hunt.evaluator import Done, Evaluator
from dit_heads.hunt.screen import Screening, Slopes
from dit_heads.hunt.trials import Trial, TrialBatch, batches_of
from dit_heads.io.atomic import write_text
from dit_heads.io.fingerprints import content_hash


def slopes_of_round(
    evaluator: Evaluator, chosen: Sequence[HeadId], path: Path, header: Mapping[str, Any], done: Done
) -> Slopes:
    """Slopes of every head on the pictures of a search under the heads chosen so far.

    Args:
        evaluator: of the search.
        chosen: heads of earlier rounds.
        path: a file of slopes. Those that it holds are taken if they are of the same pictures; otherwise it
            is written.
        header: what scores depend on beside the settings of each picture.
        done: told the number of pictures. Those without heads count when their scores are asked for.

    Raises:
        InputError: for a file of something else, and for an objective without a gradient.
    """
    trials = [evaluator.trial(HeadSet(chosen) if chosen else None, pair) for pair in evaluator.pairs]
    evaluator.used.update(trials)
    scale = evaluator.config.scale
    subject = {"header": header, "scale": scale, "of": [asdict(trial) for trial in trials]}
    every = every_head(*evaluator.backend.head_counts)
    if (stored := read_slopes(path, subject, every)) is not None:
        done(len(trials) if chosen else 0)
        return stored
    slopes = _screened(evaluator, trials, chosen, done)
    write_slopes(path, subject, slopes)
    return slopes


def _screened(evaluator: Evaluator, trials: Sequence[Trial], chosen: Sequence[HeadId], done: Done) -> Slopes:
    """The mean of slopes over all pictures, added up in the same order whichever batch was first."""
    config, found = evaluator.config, dict[TrialBatch, Slopes]()
    screening = Screening(config.scale, dict.fromkeys(chosen, config.softness), config.micro_batch)
    batches = batches_of(trials, config.batch)
    for batch, (scores, slopes) in evaluator.backend.screen(batches, screening):
        evaluator.log.add(batch, scores)
        found[batch] = slopes
        done(len(batch) if chosen else 0)
    every = found[batches[0]]
    return {head: sum(found[b][head] * len(b) for b in batches) / len(trials) for head in every}


def read_slopes(path: Path, subject: Mapping[str, Any], heads: Sequence[HeadId]) -> Slopes | None:
    """Read the slopes of all `heads`.

    Args:
        path: of the file.
        subject: all that the slopes depend on, as JSON.
        heads: every head of the model.

    Returns:
        None if there is no such file, or if it holds slopes of something other than `subject`.

    Raises:
        InputError: for a file that `write_slopes` did not write.
    """
    if not path.exists():
        return None
    try:
        stored = json.loads(path.read_text("utf-8"))
        slopes: Mapping[str, float] = dict(stored["slopes"])
        same = stored["asked"] == _key(subject) and slopes.keys() == set(map(str, heads))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"folder: '{path}' does not hold the slopes of a search; move it away") from error
    return {head: slopes[str(head)] for head in heads} if same else None


def write_slopes(path: Path, subject: Mapping[str, Any], slopes: Mapping[HeadId, float]) -> None:
    """Write slopes with a hash of all that they depend on."""
    named = {str(head): slope for head, slope in slopes.items()}
    write_text(path, json.dumps({"asked": _key(subject), "slopes": named}) + "\n")


def _key(subject: Mapping[str, Any]) -> str:
    return content_hash(json.dumps(subject, sort_keys=True))
