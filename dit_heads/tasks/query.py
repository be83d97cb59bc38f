"""What is asked of a picture: a task, the names it is about, and the colours that stand for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from dit_heads.errors import InputError
from dit_heads.tasks.palette import FRAMES, distinct, rgb

Task = Literal["segment", "instances", "detect", "depth", "classify"]
TASKS: tuple[Task, ...] = get_args(Task)
ANYTHING = "object"
"""The name that asks for objects of every class."""
OTHER = "other"
"""The answer that stands for all that a question does not name."""
BETWEEN = " and "
"""Joins the names of colours that stand side by side for one answer, from left to right."""
_COUNTS = {"depth": (0, 0, "none"), "instances": (1, 1, "one"), "classify": (2, None, "two or more")}
_ANY_COUNT = (1, None, "one or more")


@dataclass(frozen=True)
class Query:
    """A question about a picture.

    Args:
        task: segment (which pixels), instances (each object's pixels), detect (boxes), depth, classify.
        names: Classes to find, or answers to choose from; none for depth, one for instances.
        colours: The colour of each name, from `palette.COLOURS`; without any, `colours_of` chooses.
    """

    task: Task
    names: tuple[str, ...] = ()
    colours: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise InputError(f"task: expected one of {', '.join(TASKS)}, got {self.task!r}")
        self._check_names()
        if self.colours:
            self._check_colours()

    def _check_names(self) -> None:
        least, most, wanted = _COUNTS.get(self.task, _ANY_COUNT)
        if len(self.names) < least or (most is not None and len(self.names) > most):
            raise InputError(f"names: expected {wanted} for {self.task}, got {list(self.names)}")
        if not all(isinstance(name, str) and name.strip() for name in self.names):
            raise InputError(f"names: expected none of them empty, got {list(self.names)}")
        if len(set(self.names)) < len(self.names):
            raise InputError(f"names: expected each once, got {list(self.names)}")

    def _check_colours(self) -> None:
        if len(self.colours) != len(self.names):
            raise InputError(f"colours: expected {len(self.names)}, one a name, got {list(self.colours)}")
        for colour in self.colours:
            for part in colour.split(BETWEEN):
                rgb(part)
        if len(set(self.colours)) < len(self.colours):
            raise InputError(f"colours: expected another for each name, got {list(self.colours)}")


def colours_of(query: Query) -> tuple[str, ...]:
    """The colours that stand for the query's names: its own, or such as are easily told apart.

    Raises:
        InputError: if there are more names than the task has colours.
    """
    if query.colours:
        return query.colours
    count = len(query.names)
    if query.task == "classify":
        return _answers(count)
    if query.task == "segment" and count == 1:
        return ("white",)
    choice = tuple(FRAMES) if query.task == "detect" else distinct(("black",))[1:]
    if count > len(choice):
        raise InputError(
            f"names: expected at most {len(choice)} at once for {query.task}, as many as there are colours, "
            f"got {count}; ask in several queries"
        )
    return choice[:count]


def _answers(count: int) -> tuple[str, ...]:
    """One colour an answer; where they do not suffice, as many bands of colours as are needed."""
    single = words = distinct(("red",))
    while len(words) < count:
        words = tuple(f"{a}{BETWEEN}{b}" for a in words for b in single if not a.endswith(b))
    return words[:count]
