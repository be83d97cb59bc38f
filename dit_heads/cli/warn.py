"""Warnings of the command, each as one line on stderr."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


def warn(message: str) -> None:
    print(f"dit-heads: warning: {message}", file=sys.stderr)


@contextmanager
def warnings_told() -> Iterator[None]:
    """Warnings that the package's own code raises become the command's."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UserWarning)
        yield
    for each in told:
        if each.category is UserWarning:
            warn(str(each.message))
