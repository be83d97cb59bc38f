"""The errors of our own checks, told apart from bugs, and the checks of single numbers.

Only the standard library is needed here, so that every module can use it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real


class InputError(ValueError):
    """What the user gave cannot be honoured: it names the argument, what was expected and what came.

    The command shows it as one line and ends with exit code 2; any other exception is a bug, and shows its
    traceback.
    """


class FileError(InputError, OSError):
    """A file that cannot be written, as on a full disk: it names the file."""


def whole_number(name: str, value: object, least: int, most: int | None = None) -> int:
    """An argument that has to be a whole number.

    Args:
        name: of the argument, for the message.
        value: what came. True and False are not numbers.
        least: the smallest number that will do.
        most: the largest number that will do, None for any.

    Returns:
        The number.

    Raises:
        InputError: it is something else, or out of range.
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or not _within(int(value), least, most):
        raise InputError(f"{name}: expected a whole number{_range(least, most)}, got {value!r}")
    return int(value)


def finite_number(name: str, value: object, least: float | None = None, most: float | None = None) -> float:
    """An argument that has to be a finite number. Arguments, result and errors as of `whole_number`; with
    `least` at None, any number down to `most` will do."""
    number = math.nan if isinstance(value, bool) or not isinstance(value, Real) else float(value)
    if not math.isfinite(number) or not _within(number, least, most):
        kind = "finite number" if least is None or most is None else "number"
        raise InputError(f"{name}: expected a {kind}{_range(least, most)}, got {value!r}")
    return number


def _within(value: float, least: float | None, most: float | None) -> bool:
    return (least is None or value >= least) and (most is None or value <= most)


def _range(least: float | None, most: float | None) -> str:
    if least is not None and most is not None:
        return f" from {least} to {most}"
    return "" if least is None else f" of at least {least}"


def listed(names: Sequence[str], most: int = 5) -> str:
    """The first of some names, and how many more there are, for a message."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
