"""Silence of the libraries below, where our own words say it all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import diffusers
import transformers


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Without the progress bars and warnings of diffusers and transformers, where ours say it all.

    What diffusers and transformers say is as before once the block is left.
    """
    libraries: Any = [diffusers.utils.logging, transformers.utils.logging]
    before = [(library, library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    try:
        for library in libraries:
            library.set_verbosity_error()
            library.disable_progress_bar()
        yield
    finally:
        for library, verbosity, bars in before:
            library.set_verbosity(verbosity)
            (library.enable_progress_bar if bars else library.disable_progress_bar)()
