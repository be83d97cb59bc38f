"""The `dit-heads` command: generate pictures, list, search and tune heads, train LoRAs, run the main job.

Bad input ends with exit code 2 and one line on stderr. Nothing heavy is imported before the arguments, the
output path among them, are known to be right.
"""

import io
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, field, replace
from itertools import groupby, pairwise
from pathlib import Path
from typing import Annotated, Any

import tyro

from dit_heads.cli.generate import (
    Settings,
    checked,
    draw,
    from_file_settings,
    stored_settings,
)
from dit_heads.cli.hunt import Hunt, Tune
from dit_heads.errors import InputError
from dit_heads.io.pictures import check_writable, read_settings, write_png
from dit_heads.io.sheets import plain_grid
from dit_heads.loras.config import TrainConfig, read_config


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

        layout = head_layout(settings.model)
        if heads is not None:
            layout.resolve(heads)
        drawn = layout.family.pipelines
        if settings.negative_prompt and drawn and drawn.distilled:
            raise InputError(
                f"negative_prompt: expected none for {layout.model}, whose guidance is distilled into it: it "
                f"makes no call that would read '{settings.negative_prompt}'"
            )
        if settings.model in EMBEDDED:
            _warn_of_unknown_words(settings)
        pipe = load_pipeline(settings.model, settings.dtype, self.device)
        _draw_into(files, pipe, settings, heads)


@dataclass(frozen=True)
class Heads:
    """List the blocks and heads of a model, by the names that --heads takes."""

    model: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="MODEL")]] = "embedded"
    """embedded, embedded/flux, a folder in diffusers' format, or a model id of the hub"""

    def run(self) -> None:
        from dit_heads.models import head_layout

        print("\n".join(_listing(self.model, head_layout(self.model))))


@dataclass(frozen=True)
class Presets:
    """List head sets that have a name: what each does, to which model, and who says so."""

    def run(self) -> None:
        from dit_heads.heads.presets import named_heads

        for model, group in groupby(named_heads(), key=lambda named: (named.model, named.source)):
            print(f"{model[0]} ({model[1]})")
            for named in group:
                doubt = "" if named.verified else "  (not verified)"
                print(f"  {named.effect:<32}{named.heads}{doubt}")


@dataclass(frozen=True)
class Train:
    """Train a LoRA on sets of images (In-Context LoRA); flags win over the file."""

    file: tyro.conf.Positional[Annotated[Path | None, tyro.conf.arg(metavar="CONFIG.yaml")]] = None
    """settings, in sections; without, flags alone"""
    config: Annotated[TrainConfig, tyro.conf.arg(name="")] = field(default_factory=TrainConfig)

    def run(self) -> None:
        from dit_heads.models import quiet_loading

        quiet_loading()  # what `train` imports has something to say already
        from accelerate import PartialState

        from dit_heads.loras.train import train

        path = train(self.config)
        if PartialState().is_main_process:
            print(f"wrote {path}")


@dataclass(frozen=True)
class Run:
    """The main job: the same prompts and seeds, unguided and guided, side by side in one picture."""

    out: Annotated[Path, tyro.conf.arg(metavar="FILE.png")] = Path("out/showcase.png")
    """where the picture goes"""
    seed: int = 0
    """of the first row; the next ones count up from it"""

    def run(self) -> None:
        _check_out(self.out)
        from dit_heads.cli.showcase import run_showcase

        run_showcase(self.out, self.seed)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit code is 0, 2 with one line on stderr for bad input, 1 where nobody reads on."""
    try:
        _parsed(list(sys.argv[1:] if argv is None else argv)).run()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has had enough: `dit-heads presets | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains of it at exit
        return 1
    except (ValueError, OSError) as error:
        print(f"dit-heads: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("dit-heads: interrupted", file=sys.stderr)
        return 130
    return 0


def _parsed(argv: list[str]) -> Generate | Heads | Hunt | Presets | Run | Train | Tune:
    """The command that the arguments ask for, filled with the settings of `--from` before they apply."""
    generate = tyro.conf.subcommand("generate", default=Generate(_settings_of_from(argv)))
    commands = (
        Annotated[Generate, generate]
        | Annotated[Heads, tyro.conf.subcommand("heads")]
        | Annotated[Hunt, tyro.conf.subcommand("hunt")]
        | Annotated[Presets, tyro.conf.subcommand("presets")]
        | Annotated[Train, tyro.conf.subcommand("train", default=_train_of_file(argv))]
        | Annotated[Tune, tyro.conf.subcommand("tune")]
        | Annotated[Run, tyro.conf.subcommand("run")]
    )
    complaint = io.StringIO()
    try:
        with redirect_stderr(complaint):
            command: Any = tyro.cli(
                commands, prog="dit-heads", args=argv, config=(tyro.conf.OmitArgPrefixes,)
            )  # pyright: ignore[reportArgumentType]
    except SystemExit as end:
        if end.code == 0:
            raise
        raise InputError(_gist(complaint.getvalue())) from end
    if isinstance(command, Train) and command.file is not None and Path(argv[1]) != command.file:
        raise InputError(f"{command.file}: expected right after `train`, got it after other arguments")
    return command


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


def _train_of_file(argv: list[str]) -> Train:
    """The settings of the file that `train` names; they are defaults, which any flag given replaces."""
    if argv[:1] != ["train"] or len(argv) < 2 or argv[1].startswith("-"):
        return Train()
    return Train(Path(argv[1]), read_config(Path(argv[1])))


def _listing(model: str, layout: Any) -> list[str]:
    """The heads of a model by name, one line for each run of blocks that are alike."""
    total, blocks = sum(layout.heads), len(layout.heads)
    lines = [f"{model}: {layout.model}, {blocks} blocks, {total} heads of joint attention"]
    lines += [f"  {_span(first, last)}H0-{heads - 1}" for first, last, heads in _alike(layout.heads)]
    if any(layout.image_only_heads):
        lines.append(f"and {sum(layout.image_only_heads)} heads of image-only attention")
        alike = [row for row in _alike(layout.image_only_heads) if row[2]]
        lines += [f"  {_span(first, last)}H0-{heads - 1}i" for first, last, heads in alike]
    return [*lines, "names: L0H1 (a head), L0 (a block), L0H0-3 (a range), L0-1H2 (of several blocks)"]


def _alike(counts: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """(first block, last block, heads) of each run of blocks with as many heads."""
    for heads, run in groupby(enumerate(counts), key=lambda pair: pair[1]):
        numbers = [block for block, _ in run]
        yield numbers[0], numbers[-1], heads


def _span(first: int, last: int) -> str:
    return f"L{first}" if first == last else f"L{first}-{last}"


def _check_out(out: Path) -> None:
    if out.suffix.lower() != ".png":
        raise InputError(f"out: expected a file name that ends in .png, got '{out}'")
    check_writable(out)


def _files(out: Path, number: int) -> list[Path]:
    """One file name a picture: `out` itself, or numbered ones beside it."""
    if number == 1:
        return [out]
    digits = len(str(number))
    return [out.with_name(f"{out.stem}-{i:0{digits}}{out.suffix}") for i in range(1, number + 1)]


def _warn_of_unknown_words(settings: Settings) -> None:
    from dit_heads.embedded.world.text import unknown_words

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

