"""The slopes of a round on disk, so that an interrupted search need not screen again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dit_heads.errors import InputError
from dit_heads.heads import HeadId
from dit_heads.io.atomic import write_text
from dit_heads.io.fingerprints import content_hash


def read_slopes(path: Path, asked: Mapping[str, Any], heads: Sequence[HeadId]) -> dict[HeadId, float] | None:
    """Slopes of all `heads`, if `path` holds those of just what is asked; None if it holds others or is not
    there.

    Raises:
        InputError: for a file that `write_slopes` did not write.
    """
    if not path.exists():
        return None
    try:
        stored = json.loads(path.read_text("utf-8"))
        slopes: Mapping[str, float] = dict(stored["slopes"])
        same = stored["asked"] == _key(asked) and slopes.keys() == set(map(str, heads))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"folder: '{path}' does not hold the slopes of a search; move it away") from error
    return {head: slopes[str(head)] for head in heads} if same else None


def write_slopes(path: Path, asked: Mapping[str, Any], slopes: Mapping[HeadId, float]) -> None:
    named = {str(head): slope for head, slope in slopes.items()}
    write_text(path, json.dumps({"asked": _key(asked), "slopes": named}) + "\n")


def _key(asked: Mapping[str, Any]) -> str:
    return content_hash(json.dumps(asked, sort_keys=True))
