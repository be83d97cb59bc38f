"""The `edit` command: a picture by an instruction in which pictures may stand for words."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from dit_heads import __version__
from dit_heads.cli.generate import MAX_SEED, check_out
from dit_heads.cli.see import lora_of
from dit_heads.cli.warn import warnings_told
from dit_heads.errors import InputError
from dit_heads.io.formats import PICTURE_SUFFIXES
from dit_heads.io.pictures import read_image, write_png
from dit_heads.settings import Field, as_mapping, settings
from dit_heads.tasks.multimodal import MultimodalInstruction, References

if TYPE_CHECKING:
    from PIL import Image

    from dit_heads.pipelines.multimodal import MultimodalInstructPipeline

Flag = tyro.conf.arg
Scale = Annotated[float, Field(ge=0)]
Side = Annotated[int, Field(ge=16, le=8192)]
Share = Annotated[float, Field(gt=0, lt=1)]


@settings
class EditSettings:
    """How a picture is painted."""

    model: str = "embedded"
    """Model: embedded, embedded/flux, a folder in diffusers' format, or a model id on the hub."""
    lora: Annotated[str | None, Flag(metavar="FILE.safetensors")] = None
    """LoRA of the task multimodal, written by `dit-heads train`, with `references.safetensors` beside it.
    Default: the one that ships for the model."""
    steps: Annotated[int, Field(ge=1, le=1000)] = 20
    """Number of denoising steps."""
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = 0
    """Seed of the noise."""
    guidance_scale: Annotated[Scale, Flag(aliases=["--guidance"])] = 1.0
    """Guidance towards the instruction. 1 turns it off."""
    image_guidance_scale: Annotated[Scale, Flag(aliases=["--image-guidance"])] = 1.0
    """Guidance towards the picture that is edited. 1 turns it off."""
    mask_feather: Annotated[Annotated[int, Field(ge=0, le=1000)], Flag(metavar="PIXELS")] = 8
    """Pixels over which the edit fades into the picture, outside of the mask."""
    mask_threshold: Share = 0.5
    """--find-mask: share of the largest change from which on a place belongs to the mask."""
    width: Annotated[Side | None, Flag(metavar="PIXELS")] = None
    """Width of a picture that is painted from nothing. Default: the model's."""
    height: Annotated[Side | None, Flag(metavar="PIXELS")] = None
    """Its height."""
    processing_resolution: Annotated[Annotated[int, Field(ge=0, le=8192)], Flag(metavar="PIXELS")] = 0
    """Longest side that the model works at, 0 for the picture's own."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of weights and computation."""


@dataclass(frozen=True)
class Edit:
    """Edit a picture, or paint a new one, by an instruction in which pictures may stand for words."""

    words: tyro.conf.Positional[Annotated[tuple[str, ...], Flag(metavar="[PICTURE] INSTRUCTION")]] = ()
    """The picture, if one is edited, and the instruction, such as `photo.png "make the <cube> blue"`; the
    picture may come last too."""
    ref: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, Flag(metavar="NAME=FILE|FILE")] = ()
    """The picture of <NAME> in the instruction, or without a name that of the next <imagehere>. Once for
    each."""
    references: Literal["encoder", "tokens"] = "encoder"
    """How the pictures of --ref are read: by the encoder of the LoRA, or with the picture that is edited as
    tokens of the sequence, by a FLUX model alone that was trained for it, such as FLUX.1 Kontext."""
    mask: Annotated[Path | None, Flag(metavar="FILE")] = None
    """Picture of the same size, white where the picture may change. Everything else stays as it is."""
    find_mask: bool = False
    """Find where the instruction changes the picture, write that as a mask beside the result, and change
    nothing else. Adjust the file and give it to --mask."""
    settings: Annotated[EditSettings, Flag(name="")] = field(default_factory=EditSettings)
    out: Annotated[Path, Flag(metavar="FOLDER|FILE.png")] = Path("out")
    """Folder for the result, or its file."""
    device: str = "auto"
    """Device of the model: auto, cpu, cuda, cuda:1, mps and so on."""

    def run(self) -> None:
        """Understand the instruction, read its pictures, load the model, then paint and write."""
        picture, text = canvas_and_text(self.words)
        named = named_references(self.ref)
        instruction = MultimodalInstruction.of(text, named)
        file = file_of(self.out, picture, [*instruction.pictures, *([self.mask] if self.mask else [])])
        self._check_canvas(picture)
        references = read_references(named)
        image = None if picture is None else read_image(picture)
        mask = None if self.mask is None else read_image(self.mask)
        lora = self._lora()
        # Slow to import, so only now.
        from dit_heads.models import load_pipeline
        from dit_heads.pipelines import MultimodalInstructPipeline, with_multimodal_lora

        if lora is None:
            check_holds_tokens(self.settings.model)
            instruction = instruction.in_words
        check_fits(self.settings, instruction, image, mask)
        pipe = load_pipeline(self.settings.model, self.settings.dtype, self.device)
        began = time.perf_counter()
        with warnings_told():
            if lora is None:
                paint = MultimodalInstructPipeline(pipe, references="tokens")
            else:
                paint = with_multimodal_lora(pipe, lora)
            made: dict[Path, Image.Image] = {}
            if self.find_mask:
                mask = found_mask(paint, text, references, image, self.settings)
                made[file.with_name(f"{file.stem}-mask.png")] = mask
            made = {file: painted(paint, text, references, image, mask, self.settings), **made}
        kept = {**as_mapping(self.settings), "instruction": text, "references": self.references}
        kept |= {"version": __version__}
        for path, each in made.items():
            write_png(each, path, kept)
        print(f"{', '.join(map(str, made))}  ({time.perf_counter() - began:.1f} s)")

    def _lora(self) -> Path | None:
        """The LoRA that paints; None for references as tokens, which need none."""
        if self.references == "encoder":
            return lora_of(self.settings, "multimodal")
        if self.settings.lora is not None:
            raise InputError(f"lora: expected none for --references tokens, got '{self.settings.lora}'")
        return None

    def _check_canvas(self, picture: Path | None) -> None:
        """Raise InputError for what contradicts the picture, or needs one."""
        chosen = self.settings
        if self.find_mask and self.mask is not None:
            raise InputError("mask: expected none beside --find-mask, which makes one")
        if picture is None and (self.find_mask or self.mask is not None):
            given = "find_mask" if self.find_mask else "mask"
            raise InputError(f"{given}: expected a picture to edit, such as photo.png, got none")
        if picture is not None and (chosen.width or chosen.height):
            given = "width" if chosen.width else "height"
            raise InputError(f"{given}: expected none, since the picture has the size of the result")


def canvas_and_text(words: Sequence[str]) -> tuple[Path | None, str]:
    """The picture and the instruction in a command's words; None where only the latter is there.

    Raises:
        InputError: without an instruction.
    """
    ends = list(dict.fromkeys((0, len(words) - 1))) if words else []
    there = [at for at in ends if _is_file(words[at])]
    named = [at for at in ends if Path(words[at]).suffix.lower() in PICTURE_SUFFIXES]
    at = next(iter([*there, *named]), None)
    rest = " ".join(word for k, word in enumerate(words) if k != at).strip()
    if not rest:
        raise InputError(
            'arguments: expected an instruction, such as photo.png "make the cube blue" or "<it> on snow" '
            f"--ref it=c.png, got {' '.join(words) or 'none'}"
        )
    return (None if at is None else Path(words[at])), rest


def _is_file(word: str) -> bool:
    try:
        return Path(word).is_file()
    except (OSError, ValueError):  # text that no file can be named
        return False


def named_references(given: Sequence[str]) -> References:
    """The files of `NAME=FILE` by name, or those without names in their order.

    Raises:
        InputError: for some with a name and some without, and a name that comes twice.
    """
    pairs = [_reference(each) for each in given]
    names = [name for name, _ in pairs]
    if not any(names):
        return [path for _, path in pairs]
    if not all(names):
        raise InputError("ref: expected all with a name, NAME=FILE, or all without, got both")
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"ref: expected one picture for <{twice[0]}>, got {names.count(twice[0])}")
    return dict(pairs)


def _reference(text: str) -> tuple[str, Path]:
    name, mark, file = text.partition("=")
    if not mark or _is_file(text):
        return "", Path(text)
    if not name or not file:
        raise InputError(f"ref: expected NAME=FILE or FILE, got '{text}'")
    return name.removeprefix("<").removesuffix(">"), Path(file)


def read_references(named: References) -> Any:
    """The pictures of references, by name or in their order. Raises InputError for those that cannot be
    read."""
    try:
        if isinstance(named, Mapping):
            return {name: read_image(path) for name, path in named.items()}
        return [read_image(path) for path in named]
    except InputError as error:
        raise InputError(str(error).replace("image:", "ref:", 1)) from error


def file_of(out: Path, picture: Path | None, others: Sequence[Path] = ()) -> Path:
    """The file of a result.

    Raises:
        InputError: for another format than PNG, a file that cannot be written, and one that is read.
    """
    is_file = bool(out.suffix) and not out.is_dir()
    file = out if is_file else out / ("picture.png" if picture is None else f"{picture.stem}-edit.png")
    check_out(file)
    read = [*others, *([] if picture is None else [picture])]
    if file.resolve() in [each.resolve() for each in read]:
        raise InputError(f"out: expected another file than the pictures that are read, got '{file}'")
    return file


def check_holds_tokens(model: str) -> None:
    """Raise InputError for a model in whose sequence several pictures cannot be told apart."""
    from dit_heads.models import empty_transformer
    from dit_heads.pipelines.reference_tokens import check_room

    check_room(empty_transformer(model))


def check_fits(
    chosen: EditSettings,
    instruction: MultimodalInstruction,
    image: Image.Image | None,
    mask: Image.Image | None,
) -> None:
    """Check what can be known before weights are read, and warn of words that the model cannot know.

    Raises:
        InputError: for a size that the model cannot paint, and a mask that does not fit the picture.
    """
    from dit_heads.cli.draw import warn_of_unknown_words
    from dit_heads.models import EMBEDDED, check_size, empty_transformer
    from dit_heads.pipelines.masking import EditMask

    if image is None:
        transformer = empty_transformer(chosen.model)
        check_size(chosen.model, transformer, width=chosen.width, height=chosen.height)
    elif mask is not None:
        EditMask.of(mask, (image.height, image.width), chosen.mask_feather)
    if chosen.model in EMBEDDED:
        warn_of_unknown_words(" ".join(instruction.words))


def found_mask(
    paint: MultimodalInstructPipeline, text: str, references: Any, image: Any, chosen: EditSettings
) -> Image.Image:
    """Where an instruction changes a picture."""
    options: Any = {"processing_resolution": chosen.processing_resolution, "generator": _noise(chosen.seed)}
    return paint.find_mask(text, references, image, threshold=chosen.mask_threshold, **options)[0]


def painted(
    paint: MultimodalInstructPipeline, text: str, references: Any, image: Any, mask: Any, chosen: EditSettings
) -> Image.Image:
    """The result of an instruction."""
    return paint(text, references, image, mask=mask, **call_arguments(chosen)).images[0]


def call_arguments(chosen: EditSettings) -> dict[str, Any]:
    """What `MultimodalInstructPipeline` is given beside instruction and pictures."""
    names = ("guidance_scale", "image_guidance_scale", "mask_feather", "processing_resolution")
    call = {name: getattr(chosen, name) for name in (*names, "height", "width")}
    return {**call, "num_inference_steps": chosen.steps, "generator": _noise(chosen.seed)}


def _noise(seed: int) -> Any:
    import torch

    return torch.Generator("cpu").manual_seed(seed)
