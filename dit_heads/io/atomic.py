"""The one writer of files: readers find the old file or the new one, never half of it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from dit_heads.errors import FileError

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file open for writing that takes its name once it is complete. After an error nothing is left behind.

    Several threads and processes may write the same path at once: the last one to finish wins.

    Args:
        path: the final name. Missing folders are created; an existing file is replaced.

    Raises:
        FileError: if the file cannot be written, for instance on a full disk. An existing file is unchanged.
    """
    try:
        with _renamed_at_its_end(path) as file:
            yield file
    except OSError as error:
        raise FileError(f"cannot write '{path}': {error.strerror or error}") from error


@contextmanager
def _renamed_at_its_end(path: Path) -> Iterator[BinaryIO]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("wb", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        unfinished = Path(file.name)
        try:
            yield file  # pyright: ignore[reportReturnType]
            file.close()
            unfinished.chmod(0o666 & ~_umask())  # a temporary file is for its owner alone
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file (UTF-8), completely or not at all.

    Args:
        path: the file; an existing one is replaced.
        text: its content.
    """
    with atomic_file(path) as file:
        file.write(text.encode())


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, completely or not at all.

    Args:
        path: the file; an existing one is replaced.
        tensors: the tensors by name, of any shape.
        metadata: text for the file's header.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with atomic_file(path) as file:
        try:
            save_file({name: t.contiguous() for name, t in tensors.items()}, file.name, dict(metadata))
        except SafetensorError as error:  # its way to say that the disk is full
            raise OSError(str(error)) from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
