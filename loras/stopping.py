"""A run that is asked to stop while its models encode or draw: it does so before their next call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

Stop = Callable[[], bool]


class Stopped(Exception):
    """Ends what a run encodes or draws, once it was asked to stop."""


@contextmanager
def stopping(pipe: Any, stop: Stop | None) -> Iterator[None]:
    """Ask before each call of one of a pipeline's models whether to stop.

    Args:
        pipe: the pipeline. An autoencoder is asked through its two halves, as it is not called itself.
        stop: whether to stop; None never does.

    Raises:
        Stopped: in the block, if `stop` says so.
    """

    def ask(*_: object) -> None:
        if stop is not None and stop():
            raise Stopped

    parts = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    with ExitStack() as undo:
        if stop is not None:
            for module in [each for part in parts for each in (part, *part.children())]:
                undo.callback(module.register_forward_pre_hook(ask).remove)
        yield
