"""Named head sets with their sources, stored as JSON: some are from papers, some we measured ourselves."""

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
    """Heads that have a known effect, and the strength to guide them with."""

    effect: str
    """The effect of the heads on a picture; also the preset's name."""
    heads: Annotated[tuple[str, ...], Field(min_length=1)]
    """Names of the heads, as `HeadSet` reads them."""
    verified: bool
    """Whether we have seen the effect on the real weights."""
    scale: Annotated[float, Field(ge=0)] = 3.0
    """Head guidance scale w."""
    softness: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Softness u: how far the heads are perturbed, from 0 to 1."""
    note: str = ""
    """Remarks."""

    @property
    def head_set(self) -> HeadSet:
        """The heads as a set."""
        return HeadSet.parse(", ".join(self.heads))


@settings
class PresetFile:
    """The presets of one model from one source."""

    model: str
    """The model's name, as `--model` takes it."""
    source: str
    """The paper that names the heads, or the command that measured them."""
    presets: tuple[Preset, ...]
    """The presets, each with an effect of its own."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Models, prompts and scores of the measurement."""

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

    Args:
        path: the file.

    Raises:
        InputError: for a file that cannot be read, and for missing or wrong entries.
    """
    try:
        return from_json(PresetFile, path, "presets")
    except InputError as error:
        raise InputError(f"'{path}' is no file of presets: {error}") from error


def shipped_presets() -> Iterator[PresetFile]:
    """The presets that ship with the package, one file at a time, those of the embedded model first."""
    for path in sorted(FOLDER.glob("*.json")):
        yield read_presets(path)
