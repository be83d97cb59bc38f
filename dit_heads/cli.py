"""The `dit-heads` command: generate pictures, list a model's heads, run the main job.

Bad input ends with exit code 2 and one line on stderr. Nothing heavy is imported before the arguments, the
output path among them, are known to be right.
"""

import io
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import tyro

from dit_heads.generate import Settings, checked, draw, from_file_settings, stored_settings
from dit_heads.pictures import check_writable, read_settings, write_png
from dit_heads.sheets import plain_grid


@dataclass(frozen=True)
class Generate:
    """Draw pictures of a prompt, guided by chosen attention heads."""

    settings: Annotated[Settings, tyro.conf.arg(name="")] = field(default_factory=Settings)
    out: Annotated[Path, tyro.conf.arg(metavar="FILE.png")] = Path("out/picture.png")
    """where the picture goes; several are numbered: picture-1.png, picture-2.png, ..."""
    grid: bool = False
    """several pictures as one file"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps, ..."""
    from_file: Annotated[Path | None, tyro.conf.arg(name="from", metavar="FILE.png")] = None
    """take the settings from a picture that this command wrote; flags given here win"""

    def run(self) -> None:
        heads = checked(self.settings)
        _check_out(self.out)
        settings = replace(self.settings, heads=heads and str(heads))
        files = _files(self.out, 1 if self.grid else settings.num_images)
        # Slow to import, so only now; and the model's configs tell a wrong head before its weights are read.
        from dit_heads.models import EMBEDDED, head_layout, load_pipeline

        _check_heads(heads, head_layout(settings.model))
        if settings.model in EMBEDDED:
            _warn_of_unknown_words(settings)
        pipe = load_pipeline(settings.model, settings.dtype, self.device)
        _draw_into(files, pipe, settings, heads)


@dataclass(frozen=True)
class Heads:
    """List the blocks and heads of a model, by the names that --heads takes."""

    model: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="MODEL")]] = "embedded"
    """embedded, a folder in diffusers' format, or a model id of the hub"""

    def run(self) -> None:
        from dit_heads.models import head_layout

        print(describe(self.model, head_layout(self.model)))


@dataclass(frozen=True)
class Run:
    """The main job: the same prompts and seeds, unguided and guided, side by side in one picture."""

    out: Annotated[Path, tyro.conf.arg(metavar="FILE.png")] = Path("out/showcase.png")
    """where the picture goes"""
    seed: int = 0
    """of the first row; the next ones count up from it"""

    def run(self) -> None:
        _check_out(self.out)
        from dit_heads.showcase import run_showcase

        run_showcase(self.out, self.seed)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code: 0, or 2 with one line on stderr for bad input."""
    try:
        _parsed(list(sys.argv[1:] if argv is None else argv)).run()
    except (ValueError, OSError) as error:
        print(f"dit-heads: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("dit-heads: interrupted", file=sys.stderr)
        return 130
    return 0


def _parsed(argv: list[str]) -> Generate | Heads | Run:
    """The command that the arguments ask for, filled with the settings of `--from` before they apply."""
    generate = tyro.conf.subcommand("generate", default=Generate(_settings_of_from(argv)))
    commands = (
        Annotated[Generate, generate]
        | Annotated[Heads, tyro.conf.subcommand("heads")]
        | Annotated[Run, tyro.conf.subcommand("run")]
    )
    complaint = io.StringIO()
    try:
        with redirect_stderr(complaint):
            return tyro.cli(commands, prog="dit-heads", args=argv, config=(tyro.conf.OmitArgPrefixes,))  # pyright: ignore[reportArgumentType, reportReturnType]
    except SystemExit as end:
        if end.code == 0:
            raise
        raise ValueError(_gist(complaint.getvalue())) from end


def _gist(box: str) -> str:
    """The message in the box that tyro draws around it, without the help below."""
    rows = [row.strip("│╭╮╰╯ ") for row in box.splitlines()[1:]]
    end = next((i for i, row in enumerate(rows) if row.startswith("─")), len(rows))
    return " ".join(rows[:end])


def _settings_of_from(argv: list[str]) -> Settings:
    """The settings of the file that `--from` names; they are defaults, which any flag given replaces."""
    joined = [flag.removeprefix("--from=") for flag in argv if flag.startswith("--from=")]
    apart = [value for flag, value in pairwise(argv) if flag == "--from"]
    files = joined + apart
    return from_file_settings(read_settings(Path(files[0]))) if files else Settings()


def _check_out(out: Path) -> None:
    if out.suffix.lower() != ".png":
        raise ValueError(f"out: expected a file name that ends in .png, got '{out}'")
    check_writable(out)


def _files(out: Path, number: int) -> list[Path]:
    """One file name a picture: `out` itself, or numbered ones beside it."""
    if number == 1:
        return [out]
    digits = len(str(number))
    return [out.with_name(f"{out.stem}-{i:0{digits}}{out.suffix}") for i in range(1, number + 1)]


def _warn_of_unknown_words(settings: Settings) -> None:
    from dit_heads.embedded.text import unknown_words

    if words := unknown_words(f"{settings.prompt} {settings.negative_prompt}"):
        print(
            f"dit-heads: warning: words that the embedded model has never read: {', '.join(words)}",
            file=sys.stderr,
        )


def _draw_into(files: list[Path], pipe: Any, settings: Settings, heads: Any) -> None:
    began = time.perf_counter()
    pictures = []
    for single, image, _ in draw(pipe, settings, heads):
        pictures.append(image)
        if len(files) == settings.num_images:
            write_png(image, files[len(pictures) - 1], stored_settings(single))
    if len(files) != settings.num_images:
        write_png(plain_grid(pictures), files[0], stored_settings(settings))
    print(f"{', '.join(map(str, files))}  ({time.perf_counter() - began:.1f} s)")


if __name__ == "__main__":
    sys.exit(main())
