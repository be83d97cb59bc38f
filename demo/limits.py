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
    pages: Count = 100
    """Pages, and calls of programs, whose state Gradio keeps; each takes a fifth of a megabyte."""
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
    lora_upload_bytes: Count = 48 * 2**20
    """Size of a LoRA file that a visitor brings."""
    lora_scale: Annotated[float, Field(gt=0)] = 4.0
    """Scale of a LoRA, up and down."""
    shelf: Count = 64
    """LoRAs of visitors that are kept."""
    shelf_bytes: Count = 512 * 2**20
    """Size of all of them."""
    trainings: Count = 4
    """Trainings that wait."""
    training_seconds: Annotated[float, Field(gt=0)] = 1800.0
    """Time that a training may run; what is learned by then is kept."""
    training_steps: Count = 600
    """Steps of a training."""
    rank: Count = 32
    """Rank of a LoRA that is trained."""
    trained_parameters: Count = 100 * 10**6
    """Size of a model that can be trained here."""
    sets: Count = 60
    """Sets to learn from."""
    sets_files: Count = 400
    """Files of all sets."""
    sets_bytes: Count = 32 * 2**20
    """Size of all of them, unpacked."""
    sets_pixels: Count = 100 * 10**6
    """Pixels of all their pictures."""
    uploads: Count = 16
    """Visitors' sets that are kept."""
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
