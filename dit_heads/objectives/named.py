"""Objectives by the names that commands take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import cast

from dit_heads.errors import InputError
from dit_heads.objectives.clip import aesthetic, clip, hpsv2, pickscore
from dit_heads.objectives.objective import Objective, name_of

_NAMED: dict[str, Callable[[], Objective]] = {"pickscore": pickscore}
_LOADED: dict[str, Callable[[str], Objective]] = {"clip": clip, "hpsv2": hpsv2, "aesthetic": aesthetic}
CHOICES = "clip:MODEL, pickscore, hpsv2:FOLDER, aesthetic:FILE.safetensors or MODULE:FUNCTION"


def load_objective(spec: str, more: Mapping[str, Callable[[], Objective]] | None = None) -> Objective:
    """An objective by its name, which is the one that `name_of` returns.

    Args:
        spec: clip:MODEL, pickscore, hpsv2:FOLDER, aesthetic:FILE.safetensors, or MODULE:FUNCTION for any
            callable that can be imported.
        more: further names, each with a function that loads its objective.

    Raises:
        InputError: for unknown names, and for objectives that cannot be loaded.
    """
    named = {**(more or {}), **_NAMED}
    choices = ", ".join([*(more or {}), CHOICES])
    kind, _, rest = spec.partition(":")
    try:
        if spec in named:
            return named[spec]()
        if rest:
            return _LOADED[kind](rest) if kind in _LOADED else _imported(kind, rest)
    # A damaged file or a foreign module can raise anything.
    except Exception as error:
        why = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(f"objective: cannot load '{spec}': {why}; expected {choices}") from error
    raise InputError(f"objective: expected {choices}, got '{spec}'")


def _imported(module: str, function: str) -> Objective:
    found = getattr(import_module(module), function, None)
    if not callable(found) or isinstance(found, type):
        raise InputError(f"{module} has no function '{function}'")
    objective = cast(Objective, found)
    name_of(objective)
    return objective
