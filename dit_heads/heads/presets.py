"""Head sets with names and sources, as JSON: those that a paper names, and those that we measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any

from dit_heads.errors import InputError
from dit_heads.heads import HeadSet
from dit_heads.settings import Field, from_json, settings

FOLDER = Path(__file__).with_suffix("")


@settings
class Preset:
    """Heads that have an effect, and how strongly they guide."""

    effect: str
    """What the heads do to a picture, which is the preset's name."""
    heads: Annotated[tuple[str, ...], Field(min_length=1)]
    """Names of the heads, as `HeadSet` reads them."""
    verified: bool
    """Whether we have seen the effect on the real weights."""
    scale: Annotated[float, Field(ge=0)] = 3.0
    """Head guidance scale w."""
    softness: Annotated[float, Field(ge=0, le=1)] = 1.0
    """How far the heads are perturbed, u."""
    note: str = ""
    """What else there is to know."""

    @property
    def head_set(self) -> HeadSet:
        return HeadSet.parse(", ".join(self.heads))


@settings
class PresetFile:
    """The presets of one model from one source."""

    model: str
    """The model's name, as `--model` takes it."""
    source: str
    """A paper, or the command that measured them."""
    presets: tuple[Preset, ...]
    """The presets, whose effects differ."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """On what they were measured, and with which scores."""

    def __post_init__(self) -> None:
        effects = [preset.effect for preset in self.presets]
        if twice := {effect for effect in effects if effects.count(effect) > 1}:
            raise InputError(f"presets: expected each effect once, got {', '.join(sorted(twice))} twice")
        for preset in self.presets:
            HeadSet.parse(", ".join(preset.heads))

    def __getitem__(self, effect: str) -> Preset:
        found = {preset.effect: preset for preset in self.presets}
        if effect not in found:
            raise InputError(f"effect: expected one of {', '.join(found)}, got '{effect}'")
        return found[effect]


def read_presets(path: Path) -> PresetFile:
    """The presets of a JSON file.

    Raises:
        InputError: naming the file and what is missing or wrong.
    """
    try:
        return from_json(PresetFile, path, "presets")
    except InputError as error:
        raise InputError(f"'{path}' is no file of presets: {error}") from error


def shipped_presets() -> Iterator[PresetFile]:
    """Every file of presets that ships, the embedded model's first."""
    for path in sorted(FOLDER.glob("*.json")):
        yield read_presets(path)
