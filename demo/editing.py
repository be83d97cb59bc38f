"""The work of the Edit tab: a picture painted by an instruction with pictures in it, and where an instruction
would change one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dit_heads.cli.draw import unread_end
from dit_heads.cli.edit import EditSettings, call_arguments
from dit_heads.demo.adapted import adapted
from dit_heads.demo.jobs import Job
from dit_heads.demo.limits import MAX_SEED, Limits, check_most, check_text
from dit_heads.demo.preview import Previews
from dit_heads.demo.seeing import bounded
from dit_heads.errors import InputError
from dit_heads.models import EMBEDDED
from dit_heads.pipelines import MultimodalInstructPipeline, with_multimodal_lora
from dit_heads.pipelines.masking import EditMask
from dit_heads.pipelines.multimodal import movement
from dit_heads.pipelines.sources import pictures_of
from dit_heads.tasks.multimodal import MOST, PLACEHOLDER, MultimodalInstruction, References

RESULT, MASK, RECORD = "result.png", "mask.png", "edit.json"
"""What command lines, scripts and files call the result, its mask and its settings."""
UNNAMED = PLACEHOLDER.strip("<>")
_PLACEHOLDERS = re.compile(r"<([^<>\s]+)>")
_NAME = re.compile(r"[\w-]+")


@dataclass(frozen=True)
class Asked:
    """What a visitor asks for.

    Attributes:
        text: the instruction.
        references: the pictures of its placeholders, by name, or for `<imagehere>` in order.
        picture: what is edited; None for a blank canvas.
        mask: white where the picture may change; None for all of it.
        settings: what the result depends on beside these.
        lora: the file of the LoRA.
    """

    text: str
    references: References
    picture: Image.Image | None
    mask: Image.Image | None
    settings: EditSettings
    lora: Path

    @property
    def files(self) -> dict[str, str]:
        """The files of the references: by name, or by number for those without names."""
        names = (
            self.references if isinstance(self.references, Mapping) else range(1, len(self.references) + 1)
        )
        return {str(name): reference_file(number) for number, name in enumerate(names, 1)}

    @property
    def pictures(self) -> list[Image.Image]:
        """The pictures of the references, in the order of `files`."""
        return list(self.references.values() if isinstance(self.references, Mapping) else self.references)


def reference_file(number: int) -> str:
    """The name of the file of a reference."""
    return f"reference-{number}.png"


@dataclass(frozen=True)
class Edited:
    """A result, and words of its instruction that the model has never read."""

    image: Image.Image
    asked: Asked
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True)
class Editing:
    """Paint what is asked for."""

    asked: Asked

    def __call__(self, pipe: Any, job: Job) -> Edited:
        asked, steps = self.asked, self.asked.settings.steps
        job.update(steps=steps)
        with adapted(pipe, asked.lora, with_multimodal_lora) as paint:
            check_length(paint, asked)
            call = {**call_arguments(asked.settings), "callback_on_step_end": _previews(paint, asked, job)}
            pixels = paint(
                asked.text, asked.references, asked.picture, mask=asked.mask, output_type="np", **call
            ).images
        if not np.isfinite(pixels).all():
            raise InputError("picture: the model gave numbers that are not finite; expected less guidance")
        return Edited(pipe.image_processor.numpy_to_pil(pixels)[0], asked, unknown_words(asked))


@dataclass(frozen=True)
class Finding:
    """Find where the picture would change: a grey picture, white where it would change most."""

    asked: Asked

    def __call__(self, pipe: Any, job: Job) -> Image.Image:
        asked = self.asked
        job.update(note="Comparing predictions with and without the instruction")
        with adapted(pipe, asked.lora, with_multimodal_lora) as paint:
            check_length(paint, asked)
            call = call_arguments(asked.settings)
            options = {name: call[name] for name in ("generator", "processing_resolution")}
            (found,) = movement(paint, asked.text, asked.references, asked.picture, **options)
        if not found.isfinite().all() or not found.any():
            raise InputError(
                "mask: expected the instruction to change something, got no change; paint a mask"
            )
        return Image.fromarray((255 * found).round().byte().numpy())


def asked(
    text: object,
    given: Mapping[str, Image.Image],
    picture: Image.Image | None,
    mask: Image.Image | None,
    settings: EditSettings,
    lora: Path | None,
    limits: Limits,
) -> Asked:
    """An instruction once all is checked that can be known without the model.

    Args:
        text: the instruction.
        given: pictures by the slots of `slots_of`.
        picture, mask: of `Asked`.
        settings: of the result.
        lora: the file of the LoRA.
        limits: of the page.

    Raises:
        InputError: for no instruction, pictures that do not fit its placeholders, a mask without a picture,
            of another size, or all black, settings beyond the limits, and a model without a LoRA that paints.
    """
    words = text if isinstance(text, str) else ""
    check_text(limits, instruction=words)
    if not words.strip():
        raise InputError('instruction: expected one, such as "make the sky orange", got nothing')
    check_most(limits.steps, steps=settings.steps)
    check_most(MAX_SEED, seed=settings.seed)
    scales = {name: getattr(settings, name) for name in ("guidance_scale", "image_guidance_scale")}
    check_most(limits.scale, **scales)
    if lora is None:
        raise InputError("model: expected one with a LoRA of the task multimodal, got one without")
    references = bound(words, {name: bounded(each, limits) for name, each in given.items()})
    picture = None if picture is None else bounded(picture, limits)
    if mask is not None:
        if picture is None:
            raise InputError("mask: expected a picture to edit beside it, got none")
        EditMask.of(mask, (picture.height, picture.width), settings.mask_feather)
    return Asked(words.strip(), references, picture, mask, settings, lora)


def slots_of(text: str) -> tuple[str, ...]:
    """The pictures that an instruction asks for: its names in angle brackets, each once; or, if each of them
    is `<imagehere>`, "imagehere 1", "imagehere 2" and so on."""
    names = _PLACEHOLDERS.findall(text)
    if set(names) == {UNNAMED}:
        return tuple(f"{UNNAMED} {number}" for number in range(1, len(names) + 1))
    return tuple(dict.fromkeys(names))


def bound(text: str, given: Mapping[str, Image.Image]) -> References:
    """The references of an instruction, as the pipeline takes them.

    Args:
        text: the instruction.
        given: pictures by slots.

    Raises:
        InputError: for too many placeholders, names of other signs than letters, digits, - and _, a
            placeholder without a picture, and a picture without a placeholder.
    """
    slots = slots_of(text)
    if len(slots) > MOST:
        raise InputError(f"instruction: expected at most {MOST} pictures in it, got {len(slots)}")
    for name in _PLACEHOLDERS.findall(text):
        if not _NAME.fullmatch(name):
            raise InputError(f"instruction: expected names of letters, digits, - and _, got <{name}>")
    if missing := [slot for slot in slots if slot not in given]:
        raise InputError(
            f"references: expected a picture for {_shown(missing[0])}, got none; please give one"
        )
    if unused := [slot for slot in given if slot not in slots]:
        raise InputError(
            f"instruction: expected {_shown(unused[0])} in it, since there is a picture for it; please write "
            "it, or remove that picture"
        )
    if slots and slots[0] == f"{UNNAMED} 1":
        return [given[slot] for slot in slots]
    return {slot: given[slot] for slot in slots}


def _shown(slot: str) -> str:
    """A slot in words: <cube>, or <imagehere> number 2."""
    name, _, number = slot.partition(" ")
    return f"<{name}> number {number}" if number else f"<{name}>"


def check_length(paint: MultimodalInstructPipeline, asked: Asked) -> None:
    """Raise InputError for an instruction whose end nothing would read."""
    words = MultimodalInstruction.of(asked.text, asked.references).text
    each = 0 if paint.encoder is None else paint.encoder.config.tokens
    room = paint.tokens_read({}) - len(asked.references) * each
    if lost := unread_end(paint.pipe, words, max(room, 1)):
        raise InputError(f"instruction: expected a shorter one; the model would not read: {lost}")


def unknown_words(asked: Asked) -> tuple[str, ...]:
    """Words that an embedded model has never read."""
    if asked.settings.model not in EMBEDDED:
        return ()
    from dit_heads.embedded.world.text import unknown_words as unknown

    return tuple(unknown(" ".join(MultimodalInstruction.of(asked.text, asked.references).words)))


def _previews(paint: MultimodalInstructPipeline, asked: Asked, job: Job) -> Previews:
    size = shown = (paint.pipe.default_sample_size * paint.pipe.vae_scale_factor,) * 2
    if asked.picture is not None:
        frame = paint.frame(pictures_of(asked.picture), asked.settings.processing_resolution)
        size, shown = frame.padded, frame.scaled
    return Previews(job, asked.settings.steps, size=size, show=partial(_cropped, size=shown))


def _cropped(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image.crop((0, 0, size[1], size[0]))


def resolution(picture: Image.Image | None, side: int) -> int:
    """The longest side that a model works at: the one it is made for where the picture is larger, else 0 for
    the picture's own."""
    return side if picture is not None and max(picture.size) > side else 0
