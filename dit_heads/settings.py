"""Settings as frozen dataclasses whose fields carry their ranges, and the one way to them from files.

    @settings
    class HuntConfig:
        rounds: Annotated[int, Field(ge=1)] = 1
        \"\"\"Number of rounds in which heads are chosen.\"\"\"

Flags (tyro), JSON, YAML and Python all end in the same checks. What does not fit is an `InputError` with one
problem a line: the setting's name as the user wrote it, what was expected, and what came.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import field, fields, is_dataclass
from difflib import get_close_matches
from itertools import takewhile
from pathlib import Path
from reprlib import Repr
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    TypeVar,
    Union,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

import pydantic
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from dit_heads.errors import InputError

__all__ = ["Field", "as_mapping", "from_json", "from_mapping", "from_yaml", "settings"]

Kind = TypeVar("Kind")
_CONFIG = ConfigDict(extra="forbid", allow_inf_nan=False)
_MAX_PARTS = 100_000  # of settings and their items; a few aliases of YAML can stand for a billion
_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = 80
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 8


@dataclass_transform(frozen_default=True, field_specifiers=(Field, field))
def settings(kind: type[Kind]) -> type[Kind]:
    """Make a class a frozen dataclass that checks its fields whenever one is made.

    A check of several fields stands in `__post_init__` and raises an `InputError` that names them.
    """
    made: Any = dataclass(kind, frozen=True, config=_CONFIG)
    validate = made.__init__

    @functools.wraps(validate)
    def __init__(self: Any, *args: Any, **values: Any) -> None:
        try:
            validate(self, *args, **values)
        except ValidationError as error:
            raise _problems(error, made, values, made.__name__) from error

    made.__init__ = __init__
    return made


# --- from files and back ---


def from_mapping(kind: type[Kind], found: object, label: str) -> Kind:
    """The settings that nested mappings hold, as JSON and YAML read them; what is left out has its default.

    Types are exact: `true` is no number and `3` no text, but a whole number will do for any number.

    Args:
        kind: a class made by `settings`.
        found: what was read; anything else than a mapping is refused.
        label: what `found` is to the user, such as "config"; it stands before an unknown name.

    Raises:
        InputError: one line for each setting that is unknown or does not fit.
    """
    try:
        return TypeAdapter(kind).validate_json(_as_json(found, label), strict=True)
    except ValidationError as error:
        raise _problems(error, kind, found, label) from error


def from_json(kind: type[Kind], path: Path, label: str) -> Kind:
    """The settings of a JSON file. Arguments as of `from_mapping`.

    Raises:
        InputError: as `from_mapping`, and for what is not JSON.
    """
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{label}: cannot read '{path}': {error}") from error
    return from_mapping(kind, found, label)


def from_yaml(kind: type[Kind], path: Path, label: str) -> Kind:
    """The settings of a YAML file; an empty one is all defaults. Arguments as of `from_mapping`.

    Raises:
        InputError: as `from_mapping`, and for a name given twice, of which YAML's parser takes the last.
    """
    try:
        import yaml
    except ImportError as error:
        raise InputError(f"{label}: PyYAML is missing: pip install 'dit-heads[train]'") from error
    try:
        text = path.read_text("utf-8")
        _refuse_twins(yaml.compose(text, yaml.SafeLoader))
        found = yaml.load(text, _loader(yaml.SafeLoader))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{label}: cannot read '{path}': {error}") from error
    return from_mapping(kind, {} if found is None else found, label)


def as_mapping(values: Any) -> dict[str, Any]:
    """Settings as JSON and YAML hold them; `from_mapping` takes them back."""
    return TypeAdapter(type(values)).dump_python(values, mode="json")


def _loader(safe: Any) -> Any:
    """YAML 1.1 reads 1e-4, which has no dot, as text; YAML 1.2 and everybody else as a number."""
    loader = type("Loader", (safe,), {})
    number = re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+$")
    loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+0123456789"))
    return loader


def _refuse_twins(node: Any) -> None:
    if isinstance(getattr(node, "value", None), list):
        pairs = [pair for pair in node.value if isinstance(pair, tuple)]
        names = [str(key.value) for key, _ in pairs]
        if twins := {name for name in names if names.count(name) > 1}:
            raise InputError(f"{', '.join(sorted(twins))}: expected once, got twice")
        for _, part in pairs:
            _refuse_twins(part)


def _as_json(found: object, label: str) -> str:
    """JSON tells a list from a tuple and text from a path no more than files do, but `true` from 1."""
    parts: list[str] = []
    try:
        for part in json.JSONEncoder(default=str).iterencode(found):
            parts.append(part)
            if len(parts) > _MAX_PARTS:
                break
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{label}: expected a mapping of settings, got {_SHORT.repr(found)}") from error
    if len(parts) > _MAX_PARTS:
        raise InputError(f"{label}: expected at most {_MAX_PARTS} settings and items, got more")
    return "".join(parts)


# --- what does not fit ---


def _problems(error: ValidationError, kind: Any, found: object, label: str) -> InputError:
    """All that pydantic found, one line a setting."""
    lines: dict[tuple[Any, ...], str] = {}
    for problem in error.errors(include_url=False):
        where = tuple(takewhile(lambda part: isinstance(part, str), problem["loc"]))
        cause = problem.get("ctx", {}).get("error")
        if isinstance(cause, Exception) and not isinstance(cause, InputError):
            raise cause  # a bug in a check, not a problem of the input
        lines.setdefault(where, str(cause or _line(problem, kind, where, found, label)))
    return InputError("\n".join(lines.values()))


def _line(problem: Any, kind: Any, where: Sequence[Any], found: object, label: str) -> str:
    owner = functools.reduce(lambda part, name: _types(part)[name], where[:-1], kind)
    if problem["type"] in ("unexpected_keyword_argument", "no_such_attribute"):
        return f"{where[-2] if len(where) > 1 else label}: {_unknown(where[-1], owner, kind)}"
    name, hint = (where[-1], _types(owner)[where[-1]]) if where else (label, kind)
    wanted = _phrase(hint)
    if problem["type"] == "finite_number" and "from" not in wanted:
        wanted = wanted.replace("number", "finite number", 1)
    return f"{name}: expected {wanted}, got {_came(problem, where, found)}"


def _unknown(name: str, owner: Any, kind: Any) -> str:
    """An unknown setting, and the nearest one that there is."""
    sections = [each for each, part in _types(kind).items() if name in _types(part)]
    if sections:
        return f"unknown setting '{name}'; it belongs to the section '{sections[0]}'"
    if near := get_close_matches(name, _types(owner), 1):
        return f"unknown setting '{name}'; did you mean '{near[0]}'?"
    return f"unknown setting '{name}'; there are {', '.join(_types(owner))}"


def _came(problem: Any, where: Sequence[Any], found: object) -> str:
    """The whole value of a setting where it is short, else the item that does not fit."""
    if problem["type"].startswith("missing"):
        return "nothing"
    for name in where:
        found = found.get(name, problem["input"]) if isinstance(found, Mapping) else problem["input"]
    whole = found if where else problem["input"]
    text = _shown(whole)
    return text if "..." not in text or whole == problem["input"] else f"{_shown(problem['input'])} in it"


def _shown(value: object) -> str:
    return _SHORT.repr(str(value) if isinstance(value, Path) else value)


def _types(kind: Any) -> dict[str, Any]:
    """Names and types of a class's settings, with their ranges; none of anything else."""
    kind = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    if not is_dataclass(kind):
        return {}
    hints = get_type_hints(kind, include_extras=True)
    return {each.name: hints[each.name] for each in fields(kind)}


# --- what is expected, in words ---

_WORDS = {
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    bool: ("true or false", "true or false"),
    str: ("text", "text"),
    Path: ("a path", "paths"),
}


def _phrase(hint: Any, several: bool = False) -> str:
    """What a type and its range ask for, such as "a whole number of at least 1"."""
    limits: dict[str, Any] = {}
    while get_origin(hint) is Annotated:
        hint, *extras = get_args(hint)
        limits |= {key: value for extra in extras for key, value in _limits(extra)}
    origin, inner = get_origin(hint), [each for each in get_args(hint) if each is not NoneType]
    if origin in (Union, UnionType):
        return " or ".join(_phrase(each, several) for each in inner) + _range(limits)
    if origin is Literal:
        return " or ".join(repr(each) for each in inner)
    if origin is tuple:
        return _list(inner, several, "one or more " if limits.pop("min_length", 0) else "") + _range(limits)
    if is_dataclass(hint):
        return "a mapping of settings"
    return _WORDS.get(hint, (str(hint),) * 2)[several] + _range(limits)


def _list(inner: list[Any], several: bool, least: str) -> str:
    items = _phrase(inner[0], several=True)
    if inner[-1] is not Ellipsis and len(inner) == 2:
        return f"{'pairs' if several else 'a pair'} of {items}"
    count = least if inner[-1] is Ellipsis else f"{len(inner)} "
    return f"{'lists' if several else 'a list'} of {count}{items}"


def _limits(extra: Any) -> Iterator[tuple[str, Any]]:
    """Name and value of each bound that an annotation carries."""
    for each in extra.metadata if isinstance(extra, pydantic.fields.FieldInfo) else [extra]:
        for name in ("ge", "gt", "le", "lt", "multiple_of", "min_length", "max_length"):
            if getattr(each, name, None) is not None:
                yield name, getattr(each, name)


_BOUNDS: dict[str, Callable[[Any], str]] = {
    "gt": lambda value: f"above {value:g}",
    "ge": lambda value: f"of at least {value:g}",
    "lt": lambda value: f"below {value:g}",
    "le": lambda value: f"of at most {value:g}",
    "multiple_of": lambda value: f"divisible by {value}",
    "min_length": lambda value: "that is not empty" if value == 1 else f"of at least {value}",
    "max_length": lambda value: f"of at most {value}",
}


def _range(limits: Mapping[str, Any]) -> str:
    if "ge" in limits and "le" in limits:
        rest = {name: value for name, value in limits.items() if name not in ("ge", "le")}
        more = _range(rest)
        return f" from {limits['ge']:g} to {limits['le']:g}" + (more and f" and{more}")
    words = [_BOUNDS[name](limits[name]) for name in _BOUNDS if name in limits]
    return f" {' and '.join(words)}".replace(" and of ", " and ") if words else ""
