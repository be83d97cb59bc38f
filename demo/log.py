"""The server's log: what went wrong and where, and no word of what visitors typed or brought."""

from __future__ import annotations

import io
import logging
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr

LOG = logging.getLogger("dit_heads.demo")


def log_error(text: str, error: BaseException) -> None:
    """Log an error once, however often it is told."""
    if not getattr(error, "dit_heads_logged", False):
        error.dit_heads_logged = True  # pyright: ignore[reportAttributeAccessIssue]
        LOG.error("%s\n%s", text, place_of(error))


def place_of(error: BaseException) -> str:
    """A traceback without the messages, which may quote what a visitor typed; causes come first."""
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    before = f"{place_of(cause)}\nand then\n" if cause is not None else ""
    kind = type(error)
    return f"{before}{''.join(traceback.format_tb(error.__traceback__))}{kind.__module__}.{kind.__qualname__}"


@contextmanager
def private_log() -> Iterator[None]:
    """While the block runs, all that the process writes to stderr is this log.

    Libraries write there what prompts are too long for them, what values are none of a menu's, which files
    they read. Of that the tracebacks are kept, without their messages.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    propagate = LOG.propagate
    LOG.addHandler(handler)
    LOG.propagate = False
    try:
        with redirect_stderr(_Tracebacks()):
            yield
    finally:
        LOG.propagate = propagate
        LOG.removeHandler(handler)


class _Tracebacks(io.StringIO):
    """A stream that logs the error being handled when its traceback is written, and drops everything else."""

    def write(self, text: str, /) -> int:
        error = sys.exc_info()[1]
        if error is not None and text.startswith("Traceback"):
            log_error("a handler failed", error)
        return len(text)
