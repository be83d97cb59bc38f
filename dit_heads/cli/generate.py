"""The `generate` command: pictures of a prompt, with all settings stored in the file."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from dit_heads import HeadSet, __version__
from dit_heads.cli.warn import warn
from dit_heads.errors import InputError
from dit_heads.io.pictures import check_writable, read_settings, write_png
from dit_heads.io.sheets import plain_grid
from dit_heads.settings import Field, as_mapping, from_mapping, settings

Flag = tyro.conf.arg
Share = Annotated[float, Field(ge=0, le=1)]
Side = Annotated[int, Field(ge=16, le=8192)]
MAX_SEED = 2**63 - 1
GUIDANCE = ("scale", "softness", "perturbation", "region", "temperature", "start", "stop")
"""Settings that only head guidance follows, by the names that `HeadGuidance` gives them."""


@settings
class Settings:
    """Everything that a picture depends on. It is stored in the picture's file."""

    prompt: tyro.conf.Positional[Annotated[str, Flag(metavar="PROMPT")]] = ""
    """Description of the picture."""
    negative_prompt: str = ""
    """Description of what the picture should not show. FLUX does not support it."""
    model: str = "embedded"
    """Model: embedded, embedded/flux, a folder in diffusers' format, or a model id on the hub."""
    heads: Annotated[str | None, Flag(metavar="HEADS")] = None
    """Heads to guide by, such as "L1H10, L7, L12H0-5", or a JSON file with a head set. Default: none."""
    scale: Annotated[float, Field(ge=0)] = 3.0
    """Head guidance scale w. 0 turns head guidance off."""
    softness: Share = 1.0
    """Softness u: how far the heads are perturbed, from 0 to 1."""
    perturbation: Literal["identity", "uniform", "mean_query", "arg_max", "temperature"] = "identity"
    """What replaces the attention map of a perturbed head."""
    region: Literal["joint", "image", "image_to_image"] = "joint"
    """Tokens whose attention is perturbed: all, those of the image, or (identity only) those of the image
    among themselves."""
    temperature: Annotated[float | None, Field(gt=0), Flag(metavar="TAU")] = None
    """Temperature of the perturbation of that name."""
    start: Share = 0.0
    """Fraction of the steps after which head guidance starts."""
    stop: Share = 1.0
    """Fraction of the steps after which head guidance stops."""
    guidance_scale: Annotated[float, Field(ge=0)] = 4.0
    """Classifier-free guidance scale. 1 turns it off. For FLUX: scale of its distilled guidance."""
    steps: Annotated[int, Field(ge=1, le=1000)] = 28
    """Number of denoising steps."""
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = 0
    """Seed of the first picture. Each further picture takes the next seed."""
    num_images: Annotated[int, Field(ge=1, le=64)] = 1
    """Number of pictures, each with its own seed."""
    width: Annotated[Side | None, Flag(metavar="PIXELS")] = None
    """Width in pixels. Default: the model's default."""
    height: Annotated[Side | None, Flag(metavar="PIXELS")] = None
    """Height in pixels. Default: the model's default."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of weights and computation."""

    def __post_init__(self) -> None:
        for name in ("prompt", "negative_prompt"):
            _check_text(name, getattr(self, name))
        if (self.perturbation, self.region, self.temperature) != ("identity", "joint", None):
            from dit_heads.guidance.perturb import Perturbation  # imports torch

            Perturbation(self.perturbation, self.region, self.temperature)
        if self.start >= self.stop:
            raise InputError(f"start: expected less than stop = {self.stop}, got {self.start}")
        if self.seed + self.num_images - 1 > MAX_SEED:
            raise InputError(
                f"seed: expected at most {MAX_SEED - self.num_images + 1} for {self.num_images} pictures, "
                f"got {self.seed}"
            )


def _check_text(name: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:  # the command line held bytes that are not UTF-8
        raise InputError(f"{name}: expected text in UTF-8, got {text!r}") from error


@dataclass(frozen=True)
class Generate:
    """Generate pictures of a prompt, guided by chosen attention heads."""

    settings: Annotated[Settings, Flag(name="")] = field(default_factory=Settings)
    out: Annotated[Path, Flag(metavar="FILE.png")] = Path("out/picture.png")
    """Output file. Several pictures are numbered: picture-1.png, picture-2.png and so on."""
    grid: bool = False
    """Write several pictures into one file, as a grid."""
    device: str = "auto"
    """Device of the model: auto, cpu, cuda, cuda:1, mps and so on."""
    file: Annotated[Path | None, Flag(name="from", metavar="FILE.png")] = None
    """PNG file written by this command whose settings are used. Other flags take precedence."""

    @classmethod
    def of_file(cls, file: Path) -> Generate:
        """The command with the settings of a picture as its defaults."""
        return cls(settings_of(read_settings(file), file), file=file)

    def run(self) -> None:
        """Check the settings, load the model, then generate and write the pictures."""
        heads = checked_heads(self.settings)
        check_out(self.out)
        files = numbered(self.out, 1 if self.grid else self.settings.num_images)
        # Slow to import, so only now.
        from dit_heads.cli.draw import check_model, draw, warn_of_lost_words
        from dit_heads.models import load_pipeline

        # Judged by the model's configs, before its weights are read.
        followed = check_model(replace(self.settings, heads=heads and str(heads)), heads)
        pipe = load_pipeline(followed.model, followed.dtype, self.device)
        warn_of_lost_words(pipe, followed)
        began = time.perf_counter()
        _write(files, draw(pipe, followed, heads), followed)
        print(f"{', '.join(map(str, files))}  ({time.perf_counter() - began:.1f} s)")


def checked_heads(settings: Settings) -> HeadSet | None:
    """The heads that the settings name, or None.

    Raises:
        InputError: for an empty prompt, and for text that names no heads.
    """
    if not settings.prompt.strip():
        raise InputError("prompt: expected a description of the picture, got nothing")
    if settings.heads is None:
        return None
    return HeadSet.load(settings.heads) if settings.heads.endswith(".json") else HeadSet.parse(settings.heads)


def settings_of(stored: Mapping[str, Any], file: Path) -> Settings:
    """The settings that a picture's file holds.

    Args:
        stored: the result of `stored` that was written into the file.
        file: the file, for the error message.

    Raises:
        InputError: for unknown settings and values that do not fit.
    """
    try:
        return from_mapping(Settings, {k: v for k, v in stored.items() if k != "version"}, "settings")
    except InputError as error:
        raise InputError(f"from: '{file}' holds settings that cannot be followed: {error}") from error


def stored(settings: Settings) -> dict[str, Any]:
    """The settings in the form that is written into a picture's file."""
    return {**as_mapping(settings), "version": __version__}


def without_heads(settings: Settings) -> Settings:
    """The settings with those reset, and warned of, that have no effect without heads."""
    usual = {each.name: each.default for each in fields(Settings)}
    idle = [name for name in GUIDANCE if getattr(settings, name) != usual[name]]
    if idle:
        warn(f"{', '.join(idle)}: without --heads there is no head guidance that would follow")
    return replace(settings, **{name: usual[name] for name in idle})


def check_out(out: Path) -> None:
    """Check that a PNG can be written.

    Raises:
        InputError: for a name that does not end in .png, and for a file that could not be written.
    """
    if out.suffix.lower() != ".png":
        raise InputError(f"out: expected a file name that ends in .png, got '{out}'")
    check_writable(out)


def numbered(out: Path, count: int) -> list[Path]:
    """A file name for each picture: `out` itself, or numbered names beside it."""
    if count == 1:
        return [out]
    digits = len(str(count))
    return [out.with_name(f"{out.stem}-{i:0{digits}}{out.suffix}") for i in range(1, count + 1)]


def _write(files: list[Path], pictures: Any, settings: Settings) -> None:
    """Write each picture once it is generated, or all as one grid."""
    if len(files) == settings.num_images:
        for file, (single, image) in zip(files, pictures, strict=True):
            write_png(image, file, stored(single))
    else:
        write_png(plain_grid([image for _, image in pictures]), files[0], stored(settings))
