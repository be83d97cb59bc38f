"""Warnings of the command, one line each on stderr."""

import sys


def warn(message: str) -> None:
    print(f"dit-heads: warning: {message}", file=sys.stderr)
