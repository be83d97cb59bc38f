"""Warnings of the command, each as one line on stderr."""

import sys


def warn(message: str) -> None:
    print(f"dit-heads: warning: {message}", file=sys.stderr)
