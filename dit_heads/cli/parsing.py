"""From arguments to a command, in two steps: the file of settings that they name, then the arguments."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, field, fields, is_dataclass, make_dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import tyro

from dit_heads.errors import InputError

Kind = TypeVar("Kind")
# Flags are named after fields alone: --steps, whatever its section.
_CONFIG = (tyro.conf.OmitArgPrefixes,)


def parsed(kind: type[Kind], arguments: Sequence[str], prog: str) -> Kind:
    """A command filled from its arguments.

    Args:
        kind: a dataclass. If it has a method `of_file`, the file that its field `file` names provides the
            defaults of all other fields.
        arguments: the arguments after the command's name.
        prog: name of the command in its help.

    Raises:
        InputError: for unknown arguments, and for values that do not fit.
    """
    file = _file_of(kind, arguments, prog) if hasattr(kind, "of_file") else None
    given: dict[str, Any] = {} if file is None else {"default": kind.of_file(file)}  # pyright: ignore
    return _parsed(kind, arguments, prog, **given)


def _parsed(kind: type[Kind], arguments: Sequence[str], prog: str, **given: Any) -> Kind:
    with _plain_errors():
        return tyro.cli(kind, prog=prog, args=arguments, config=_CONFIG, **given)


def _file_of(kind: type, arguments: Sequence[str], prog: str) -> Path | None:
    """The file of settings that the arguments name, if any."""
    if {"--help", "-h"} & set(arguments):
        return None
    return _parsed(_unchecked(kind), arguments, prog).file


def _unchecked(kind: type) -> Any:
    """A class with the same flags but without checks: a value may be wrong beside the defaults and right
    beside the settings of a file that has yet to be found."""
    hints = get_type_hints(kind, include_extras=True)
    return make_dataclass(kind.__name__, [_unchecked_field(each, hints[each.name]) for each in fields(kind)])


def _unchecked_field(each: Any, hint: Any) -> tuple[str, Any, Any]:
    inner, extras = (get_args(hint)[0], get_args(hint)[1:]) if get_origin(hint) is Annotated else (hint, ())
    if is_dataclass(inner):
        section = _unchecked(inner)  # pyright: ignore[reportArgumentType]
        return each.name, Annotated[section, *extras] if extras else section, field(default_factory=section)
    if each.default_factory is not MISSING:
        return each.name, hint, field(default_factory=each.default_factory)
    return each.name, hint, field() if each.default is MISSING else field(default=each.default)


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Turn errors of tyro into ours. Its hook is experimental; without it, tyro prints a box and exits."""
    try:
        from tyro._errors import on_parse_error
    except ImportError:
        yield
        return
    with on_parse_error(_refuse):
        yield


def _refuse(event: Any) -> None:
    """Raise the error that tyro is about to print, if we know its kind."""
    what = type(event).__name__
    if what == "UnrecognizedArgs":
        raise InputError(f"arguments: not understood: {' '.join(event.tokens)} (see {event.prog} --help)")
    if what == "InvalidChoice":
        choices = ", ".join(event.choices)
        raise InputError(f"{_name(event.argument)}: expected {choices}, got '{event.value}'")
    if what == "MissingArgs":
        missing = ", ".join(_name(each.arg) for each in event.missing_arguments)
        raise InputError(f"arguments: expected {missing}, got none (see {event.prog} --help)")
    if what == "BadValue":
        raise InputError(f"{_name(event.argument)}: expected more values (see {event.prog} --help)")
    if what == "InstantiationFailure" and event.argument is not None:
        raise InputError(
            f"{_name(event.argument)}: expected {event.argument.lowered.metavar}: {event.message}"
        )
    if what == "InstantiationFailure":
        raise _cause(sys.exception())


def _name(argument: Any) -> str:
    """The name of a flag as users write it, or of a positional argument as in the help."""
    lowered = argument.lowered
    return str(lowered.metavar) if argument.is_positional() else lowered.name_or_flags[0]


def _cause(error: BaseException | None) -> BaseException:
    """The error inside of tyro's own: an `InputError` of a settings class, or a bug."""
    chain = []
    while error is not None:
        chain.append(error)
        error = error.__context__
    return next((each for each in chain if isinstance(each, InputError)), chain[-1])
