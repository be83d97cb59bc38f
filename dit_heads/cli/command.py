"""The `dit-heads` command: the list of its subcommands, and how their errors are shown.

Heavy packages are imported only once the arguments have been checked.
"""

import os
import sys
import traceback
from argparse import SUPPRESS, ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import NoReturn, Protocol

from dit_heads import __version__
from dit_heads.cli.parsing import parsed
from dit_heads.errors import InputError


class Command(Protocol):
    """A frozen dataclass whose fields are the command's arguments."""

    def run(self) -> None:
        """Do what the command is for."""
        ...


@dataclass(frozen=True)
class Entry:
    """The place of a command's class, and the command's line in the overview."""

    module: str
    name: str
    summary: str

    def load(self) -> type[Command]:
        """The command's class, imported now."""
        return getattr(import_module(f"dit_heads.cli.{self.module}"), self.name)


COMMANDS = {
    "showcase": Entry("showcase", "Showcase", "one sheet of unguided and guided pictures, side by side"),
    "generate": Entry("generate", "Generate", "generate pictures of a prompt, guided by chosen heads"),
    "heads": Entry("heads", "Heads", "list the blocks and heads of a model"),
    "presets": Entry("presets", "Presets", "list the named head sets"),
    "hunt": Entry("hunt", "Hunt", "search for the heads that raise an objective"),
    "tune": Entry("hunt", "Tune", "sweep the scale and softness of the heads that a search found"),
    "demo": Entry("demo", "Demo", "open the demo: a page in the browser"),
    "train": Entry("train", "Train", "train a LoRA on sets of images"),
    "in-context": Entry("in_context", "InContext", "generate a set of pictures, or fill in its panels"),
    "see": Entry("see", "See", "answer a question about a picture: masks, boxes, depth, classes"),
    "edit": Entry("edit", "Edit", "paint or edit a picture by words with pictures in them"),
    "score": Entry("score", "Score", "score predictions of any model against the truth"),
}
TRACEBACK = "--traceback"
REPORT = f"dit-heads {__version__}: this is a bug. Please report it with the command and the lines above."


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: the arguments after the program's name. Default: those of the process.

    Returns:
        The exit code: 0, 1 for a bug or a closed stdout, 2 for bad input, 130 for Ctrl-C.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        _command([each for each in arguments if each != TRACEBACK]).run()
        sys.stdout.flush()
    except BrokenPipeError:  # stdout was closed, as by `dit-heads presets | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # otherwise Python complains at exit
        return 1
    except KeyboardInterrupt:
        print("dit-heads: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        return _explained(error, with_traceback=TRACEBACK in arguments)
    return 0


def _command(arguments: list[str]) -> Command:
    """The command that the arguments ask for. `--help` and `--version` end the process."""
    name = arguments[0] if arguments else None
    if name not in COMMANDS:
        _overview().parse_args(arguments[:1])
        raise InputError(f"command: expected one of {', '.join(COMMANDS)}, got {name or 'none'}")
    return parsed(COMMANDS[name].load(), arguments[1:], prog=f"dit-heads {name}")


def _explained(error: Exception, *, with_traceback: bool) -> int:
    """Print an error, a bug with its traceback, and return the exit code."""
    message = _bad_input(error)
    if message is None or with_traceback:
        traceback.print_exception(error)
    print(REPORT if message is None else f"dit-heads: error: {message}", file=sys.stderr)
    return 1 if message is None else 2


def _bad_input(error: Exception) -> str | None:
    """The message of an error that bad input caused; None for a bug."""
    if isinstance(error, InputError):
        return str(error)
    # Errors of the operating system have a number. Libraries raise the same class without one.
    if isinstance(error, OSError) and error.errno is not None:
        return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
    return None


class _Parser(ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def _overview() -> ArgumentParser:
    commands = "\n".join(f"  {name:<12}{entry.summary}" for name, entry in COMMANDS.items())
    parser = _Parser(
        prog="dit-heads",
        usage="dit-heads COMMAND ...",
        description="Guide, search and train the attention heads of diffusion transformers.",
        epilog=f"commands (dit-heads COMMAND --help lists the settings of one):\n{commands}",
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"dit-heads {__version__}")
    # `main` removes it from the arguments, since it may stand anywhere.
    parser.add_argument(
        TRACEBACK, action="store_true", help="show the traceback of an error; works with every command"
    )
    parser.add_argument("command", nargs="?", help=SUPPRESS)
    return parser
