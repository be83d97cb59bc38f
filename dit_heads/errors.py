"""Errors that our own checks raise, as opposed to bugs, and the checks of single numbers.

This module needs the standard library only, so every module can use it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real


class InputError(ValueError):
    """Input that cannot be honoured. The message names the argument, what was expected and what came.

    The command prints the message alone and exits with code 2. Any other exception is a bug and is shown with
    its traceback.
    """


class FileError(InputError, OSError):
    """A file that cannot be written, for instance because the disk is full. The message names the file."""


def whole_number(name: str, value: object, least: int, most: int | None = None) -> int:
    """An argument that has to be a whole number.

    Args:
        name: name of the argument, for the message.
        value: the value that came. True and False do not count as numbers.
        least: the smallest allowed number.
        most: the largest allowed number, or None for no limit.

    Returns:
        The number.

    Raises:
        InputError: for anything else, and for a number out of range.
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or not _within(int(value), least, most):
        raise InputError(f"{name}: expected a whole number{_range(least, most)}, got {value!r}")
    return int(value)


def finite_number(name: str, value: object, least: float | None = None, most: float | None = None) -> float:
    """An argument that has to be a finite number.

    Args:
        name: name of the argument, for the message.
        value: the value that came. True and False do not count as numbers.
        least: the smallest allowed number, or None for no limit.
        most: the largest allowed number, or None for no limit.

    Returns:
        The number.

    Raises:
        InputError: for anything else, and for a number out of range.
    """
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
    """The first few names and the number of the others, for a message."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
