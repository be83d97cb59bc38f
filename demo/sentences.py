"""Errors as a stranger may read them: a sentence that says what to do, and nothing about this machine."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from dit_heads.demo.log import log_error
from dit_heads.errors import InputError

if TYPE_CHECKING:
    from dit_heads.demo.jobs import View

BUG = "Something went wrong inside the demo, not in what you entered. It is in the log; please try again."
FULL = "The model ran out of memory for this request. Please ask for a smaller picture or fewer heads."
_QUOTED = re.compile(r"(['\"])/[^'\"]*/([^'\"/]+)\1")
_BARE = re.compile(r"(?<![\w./])/(?:[^/\s'\":,;]+/)*([^/\s'\":,;]+)")


def sentence(error: BaseException) -> str:
    """What is shown of an error. A bug is written to the log and shown as `BUG`."""
    if isinstance(error, InputError):
        return without_paths(str(error))
    if isinstance(error, MemoryError) or "out of memory" in str(error):
        return FULL
    log_error("a job failed", error)
    return BUG


def without_paths(text: str) -> str:
    """The text with the names of files alone, where it has absolute paths."""
    return _BARE.sub(r"\1", _QUOTED.sub(r"\1\2\1", text))


def note_of(view: View, doing: str = "Drawing") -> str:
    """What is told of a job that is not done."""
    if view.state == "waiting":
        return "Starting" if not view.position else f"Waiting: {view.position} before you in the queue"
    if view.state == "running":
        count = f" \u00b7 step {view.step} of {view.steps}" if view.step else ""
        return f"{view.note or doing}{count}"
    return "Cancelled." if view.state == "cancelled" else view.note
