"""Head sets with names and sources, as JSON: those that a paper names, and those that were measured here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dit_heads.heads import HeadSet

FOLDER = Path(__file__).with_suffix("")


@dataclass(frozen=True)
class NamedHeads:
    """Heads of a model that somebody found to have an effect. `verified`: seen by us on the real weights."""

    effect: str
    heads: HeadSet
    model: str
    source: str
    verified: bool
    note: str = ""


def named_heads() -> Iterator[NamedHeads]:
    """Every named head set that ships, model by model."""
    for path in sorted(FOLDER.glob("paper-*.json")):
        data = json.loads(path.read_text())
        for entry in data["presets"]:
            heads = HeadSet.from_json(entry)
            note = entry.get("note", "")
            yield NamedHeads(entry["effect"], heads, data["model"], data["source"], entry["verified"], note)
