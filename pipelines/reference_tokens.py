"""References of instructions as pictures in a transformer's sequence, after the source (FLUX.1 Kontext)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from dit_heads.errors import InputError
from dit_heads.families import family_of
from dit_heads.families.conditioning import conditioning_of
from dit_heads.pipelines.instruct import InstructPipeline
from dit_heads.pipelines.sources import Pixels, named_pictures
from dit_heads.tasks.multimodal import MultimodalInstruction

WAYS = ("encoder", "tokens")


def check_way(way: Any, encoder: Any, tower: Any) -> None:
    """Raise InputError for an unknown way to read references, and for an encoder and a tower that it lacks or
    has no use for."""
    if way not in WAYS:
        raise InputError(f"references: expected {' or '.join(WAYS)}, got {way!r}")
    given = [name for name, part in (("encoder", encoder), ("tower", tower)) if part is not None]
    if way == "tokens" and given:
        raise InputError(f"{given[0]}: expected none for references='tokens', got one")
    if way == "encoder" and len(given) < 2:
        raise InputError("encoder, tower: expected both, or references='tokens', got " + (*given, "none")[0])


def check_room(transformer: nn.Module) -> None:
    """Raise InputError for a transformer in whose sequence several pictures cannot be told apart."""
    if not conditioning_of(transformer, "tokens").several:
        name = family_of(transformer).name
        raise InputError(f"references: expected a FLUX pipeline for 'tokens', got one of {name}")


def reference_latents(
    paint: InstructPipeline, asked: Sequence[MultimodalInstruction], longest: int
) -> list[Tensor]:
    """The latents of the references of instructions that are answered at once.

    Args:
        paint: The pipeline.
        asked: The instructions.
        longest: The longest side in pixels of a reference as the model reads it, 0 for its own.

    Returns:
        [n, C, h, w] for the first reference of each instruction, for the second, and so on.

    Raises:
        InputError: for another number of references, or other sizes, in one instruction than in another.
    """
    rows = [one.distinct for one in asked]
    if len(counts := dict.fromkeys(map(len, rows))) > 1:
        raise InputError(
            "references: expected as many for each instruction of a call, since they ride as tokens, got "
            f"{' and '.join(map(str, counts))}; call once for each"
        )
    each = enumerate(zip(*rows, strict=True), 1)
    return [_encoded(paint, [reference_pixels(one) for one in same], n, longest) for n, same in each]


def _encoded(paint: InstructPipeline, pictures: list[Pixels], number: int, longest: int) -> Tensor:
    try:
        frame = paint.frame(pictures, longest)
    except InputError as error:
        where = f"references: picture {number} of each instruction:"
        raise InputError(str(error).replace("image:", where, 1)) from error
    return paint.latents([frame.framed(one) for one in pictures])


def reference_pixels(picture: Any) -> Pixels:
    """The pixels of a reference. Raises InputError for what is no picture, or several."""
    pixels = named_pictures("references", picture)
    if len(pixels) != 1:
        raise InputError(f"references: expected one picture for a placeholder, got {len(pixels)}")
    return pixels[0]
