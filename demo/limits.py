"""What a stranger may ask of the demo; the engine and the uploads hold to it, whoever calls them."""

from __future__ import annotations

from typing import Annotated

from dit_heads.errors import InputError
from dit_heads.settings import Field, settings

Count = Annotated[int, Field(ge=1)]
MAX_SEED = 2**32 - 1  # a browser's numbers are exact far beyond it


@settings
class Limits:
    """The most of everything."""

    queue: Count = 32
    """Jobs that wait for one model."""
    per_visitor: Count = 4
    """Jobs of one visitor that wait or run."""
    seconds: Annotated[float, Field(gt=0)] = 900.0
    """Time that a job may run."""
    kept: Count = 64
    """Finished jobs that can still be asked for."""
    characters: Count = 1000
    """Length of a prompt."""
    steps: Count = 60
    """Denoising steps of a picture."""
    pixels: Count = 1024 * 1024
    """Size of a picture that is drawn."""
    scale: Annotated[float, Field(gt=0)] = 30.0
    """Guidance scales."""
    loras: Count = 3
    """LoRAs at once."""
    lora_bytes: Count = 256 * 2**20
    """Size of a LoRA file."""
    upload_bytes: Count = 20 * 2**20
    """Size of a picture that is given."""
    upload_pixels: Count = 24 * 10**6
    """Pixels of a picture that is given."""
    text_bytes: Count = 256 * 2**10
    """Size of a file of heads."""
    request_bytes: Count = 68 * 2**20
    """Size of an event of the page, its files as base64 text among it."""


def check_text(limits: Limits, **texts: str) -> None:
    """Raise InputError for a text that is not a string, too long, or not storable as UTF-8."""
    for name, text in texts.items():
        if not isinstance(text, str):
            raise InputError(f"{name}: expected text, got {type(text).__name__}")
        if len(text) > limits.characters:
            raise InputError(f"{name}: expected at most {limits.characters} characters, got {len(text)}")


def check_most(most: float, **numbers: float) -> None:
    """Raise InputError for a number above `most`."""
    for name, number in numbers.items():
        if number > most:
            raise InputError(f"{name}: expected at most {most:g} here, got {number:g}")
