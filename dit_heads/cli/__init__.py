"""The `dit-heads` command, one module a command."""

from dit_heads.cli.command import main

__all__ = ["main"]
