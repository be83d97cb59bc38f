"""LoRAs as commands name them: `sky`, `mine.safetensors`, or either with a scale, `sky=0.8`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dit_heads.errors import InputError, finite_number

SUFFIX = ".safetensors"


def parsed_lora(text: str) -> tuple[str, float]:
    """A LoRA's name and scale. Raises InputError for a scale that is no number."""
    name, mark, scale = text.rpartition("=")
    if not mark:
        return text, 1.0
    try:
        return name, finite_number("loras", float(scale))
    except ValueError as error:
        raise InputError(f"loras: expected NAME or NAME=SCALE, such as sky=0.8, got '{text}'") from error


def lora_text(name: str, scale: float) -> str:
    """What `parsed_lora` reads."""
    return f"{name}={scale:g}"


def lora_file(name: str) -> Path:
    """The file of a LoRA: one that ships, by its name, or a path. Raises InputError for one that is not
    there."""
    if not name.endswith(SUFFIX):
        from dit_heads.embedded import embedded_lora

        try:
            return embedded_lora(name)
        except InputError as error:
            raise InputError(f"loras: expected a {SUFFIX} file or a shipped LoRA, but {error}") from error
    if not Path(name).is_file():
        raise InputError(f"loras: there is no file '{name}'")
    return Path(name)


def read_loras(files: Sequence[tuple[Path, float]], transformer: Any) -> list[tuple[Any, float]]:
    """Each LoRA and its scale, those at scale 0 left out.

    Args:
        files: the file of each LoRA, and its scale.
        transformer: the model that they are for. The `meta` device will do.

    Raises:
        InputError: for a file that does not fit, or one that reads a second picture beside the noise.
    """
    from dit_heads.loras import read_lora
    from dit_heads.loras.weights.low_rank import missing_channels

    parts = [(path, read_lora(path, transformer), scale) for path, scale in files if scale]
    for path, read, _ in parts:
        if missing_channels(read, transformer):
            raise InputError(f"lora: '{path.name}' reads a second picture beside the noise; not here")
    return [(read, scale) for _, read, scale in parts]


def add_loras(pipe: Any, files: Sequence[tuple[Path, float]]) -> None:
    """Give a pipeline's transformer LoRAs, each at its scale, as one adapter. Arguments and errors as of
    `read_loras`."""
    from dit_heads.loras import add_lora, compose

    if parts := read_loras(files, pipe.transformer):
        add_lora(pipe, compose(pipe.transformer, parts), "loras")
