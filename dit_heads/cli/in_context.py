"""The `in-context` command: a set of pictures of one joint caption, with all settings stored in the file."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from PIL import Image

from dit_heads import __version__
from dit_heads.cli.generate import MAX_SEED, check_out, numbered
from dit_heads.cli.loras import lora_file, parsed_lora
from dit_heads.errors import InputError
from dit_heads.io.pictures import read_image, read_settings, write_png
from dit_heads.settings import Field, as_mapping, from_mapping, settings

Flag = tyro.conf.arg
Count = Annotated[int, Field(ge=1, le=9)]
Side = Annotated[int, Field(ge=16, le=8192, multiple_of=16)]
MISSING = "none"
GIVEN = "given"  # in a picture's file: numbers of the panels that were given


@settings
class SetSettings:
    """Everything that a set of pictures depends on, but for the panels that are given."""

    prompt: tyro.conf.Positional[Annotated[str, Flag(metavar="CAPTION")]] = ""
    """Joint caption: a summary, then a description of each panel behind its marker, such as [LEFT]."""
    rows: Count = 1
    """Number of rows of panels."""
    columns: Count = 2
    """Number of columns of panels."""
    loras: tuple[str, ...] = ()
    """LoRAs, each a shipped one (sky, grounds, turntable) or a .safetensors file, with a scale if it is not
    1: sky=0.8."""
    negative_prompt: str = ""
    """Description of what the pictures should not show. FLUX does not support it."""
    model: str = "embedded"
    """Model: embedded, embedded/flux, a folder in diffusers' format, or a model id on the hub."""
    guidance_scale: Annotated[float, Field(ge=0)] = 4.0
    """Classifier-free guidance scale. 1 turns it off. For FLUX: scale of its distilled guidance."""
    steps: Annotated[int, Field(ge=1, le=1000)] = 28
    """Number of denoising steps."""
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = 0
    """Seed of the noise."""
    width: Annotated[Side | None, Flag(metavar="PIXELS")] = None
    """Width of a panel in pixels. Default: the model's, at most 512."""
    height: Annotated[Side | None, Flag(metavar="PIXELS")] = None
    """Height of a panel in pixels. Default: the model's, at most 512."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of weights and computation."""

    def __post_init__(self) -> None:
        for name in ("prompt", "negative_prompt"):
            try:
                getattr(self, name).encode()
            except UnicodeEncodeError as error:
                raise InputError(f"{name}: expected text in UTF-8, got {getattr(self, name)!r}") from error
        for each in self.loras:
            parsed_lora(each)


@dataclass(frozen=True)
class InContext:
    """Generate a set of pictures from one joint caption (In-Context LoRA), or fill in its missing panels."""

    settings: Annotated[SetSettings, Flag(name="")] = field(default_factory=SetSettings)
    out: Annotated[Path, Flag(metavar="FILE.png")] = Path("out/set.png")
    """Output file, a picture of all panels."""
    given: tuple[str, ...] = ()
    """Pictures to keep, one a panel row by row, with `none` for each panel to generate."""
    separate: bool = False
    """Also write each panel into a file of its own: set-1.png, set-2.png and so on."""
    device: str = "auto"
    """Device of the model: auto, cpu, cuda, cuda:1, mps and so on."""
    file: Annotated[Path | None, Flag(name="from", metavar="FILE.png")] = None
    """PNG file written by this command whose settings are used, and whose given panels are kept. Other flags
    take precedence."""

    @classmethod
    def of_file(cls, file: Path) -> InContext:
        """The command with the settings of a picture as its defaults."""
        return cls(set_of(read_settings(file), file)[0], file=file)

    def run(self) -> None:
        """Check the settings, load the model, then generate and write the set."""
        check_set(self.settings)
        check_out(self.out)
        files = [(lora_file(name), scale) for name, scale in map(parsed_lora, self.settings.loras)]
        # Slow to import, so only now.
        from dit_heads.cli.draw_set import draw_set, grid_of
        from dit_heads.cli.loras import add_loras, read_loras
        from dit_heads.loras.sets.panels import split
        from dit_heads.models import empty_transformer, load_pipeline

        transformer = empty_transformer(self.settings.model)
        grid = grid_of(self.settings, transformer)
        read_loras(files, transformer)
        given = self._given(grid)
        pipe = load_pipeline(self.settings.model, self.settings.dtype, self.device)
        add_loras(pipe, files)
        began = time.perf_counter()
        image = draw_set(pipe, self.settings, given)
        kept = stored_set(self.settings, given)
        write_png(image, self.out, kept)
        panels = numbered(self.out, len(grid)) if self.separate else []
        for path, panel in zip(panels, split(image, grid) if panels else [], strict=True):
            write_png(panel, path, kept)
        written = ", ".join(map(str, [self.out, *panels]))
        print(f"{written}  ({time.perf_counter() - began:.1f} s)")

    def _given(self, grid: Any) -> dict[int, Image.Image]:
        if self.given:
            if len(self.given) != len(grid):
                raise InputError(
                    f"given: expected {len(grid)} entries, `{MISSING}` for a panel to generate, got "
                    f"{len(self.given)}"
                )
            return {n: read_image(Path(name)) for n, name in enumerate(self.given) if name != MISSING}
        if self.file is None:
            return {}
        _, numbers = set_of(read_settings(self.file), self.file)
        return panels_in(read_image(self.file), grid, numbers)


def check_set(settings: SetSettings) -> None:
    """What can be known of settings without the model.

    Raises:
        InputError: for a caption that does not describe each panel, behind markers that fit.
    """
    from dit_heads.loras.sets.captions import check_caption
    from dit_heads.tasks.markers import families

    if check_caption(settings.prompt, settings.rows, settings.columns) is None:
        markers = " ".join(families(settings.rows, settings.columns)[-1])
        raise InputError(f"prompt: expected a summary, and words behind each of {markers}; got no marker")


def stored_set(settings: SetSettings, given: Mapping[int, Any]) -> dict[str, Any]:
    """The settings in the form that is written into a picture's file."""
    return {**as_mapping(settings), GIVEN: sorted(given), "version": __version__}


def set_of(stored: Mapping[str, Any], file: Path) -> tuple[SetSettings, tuple[int, ...]]:
    """The settings that a picture's file holds, and the numbers of the panels that were given.

    Args:
        stored: what `stored_set` wrote into the file.
        file: the file, for the error message.

    Raises:
        InputError: for unknown settings and values that do not fit.
    """
    numbers = stored.get(GIVEN, [])
    if not isinstance(numbers, list) or not all(type(number) is int for number in numbers):
        raise InputError(f"from: '{file}' names given panels that are no numbers")
    names = {name: value for name, value in stored.items() if name not in ("version", GIVEN)}
    try:
        return from_mapping(SetSettings, names, "settings"), tuple(numbers)
    except InputError as error:
        raise InputError(f"from: '{file}' holds settings that cannot be followed: {error}") from error


def panels_in(image: Image.Image, grid: Any, numbers: Sequence[int]) -> dict[int, Image.Image]:
    """Some panels of a composite.

    Raises:
        InputError: unless it has the grid's size and the panels.
    """
    from dit_heads.loras.sets.panels import split

    panels = dict(enumerate(split(image, grid)))
    if not set(numbers) <= panels.keys():
        raise InputError(f"{GIVEN}: expected panels from 0 to {len(panels) - 1}, got {list(numbers)}")
    return {number: panels[number] for number in numbers}
