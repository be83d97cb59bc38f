"""The one writer of files: all of a file, or the one that was there before."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dit_heads.errors import InputError
from dit_heads.io.atomic import atomic_file, write_tensors, write_text


@contextmanager
def full_disk() -> Iterator[None]:
    """No file may grow beyond 1,000 bytes, which the system tells as it tells of a full disk. The limit is
    the whole process's, so it has to be gone before pytest reports to a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_told_with_the_file_and_keeps_the_earlier_one(tmp_path: Path):
    text, tensors = tmp_path / "log.csv", tmp_path / "checkpoint.safetensors"
    write_text(text, "before")
    write_tensors(tensors, {"a": torch.ones(3)}, {"step": "1"})
    with full_disk(), pytest.raises(InputError, match=r"^cannot write '.*log\.csv': "):
        write_text(text, "x" * 100_000)
    with full_disk(), pytest.raises(InputError, match=r"^cannot write '.*checkpoint\.safetensors': "):
        write_tensors(tensors, {"a": torch.ones(10_000)}, {"step": "2"})
    assert text.read_text() == "before"
    assert torch.equal(load_file(tensors)["a"], torch.ones(3))
    assert {path.name for path in tmp_path.iterdir()} == {"log.csv", "checkpoint.safetensors"}


def test_an_error_of_the_caller_stays_what_it_is(tmp_path: Path):
    with pytest.raises(KeyError), atomic_file(tmp_path / "a") as file:
        file.write(b"x")
        raise KeyError
    assert not list(tmp_path.iterdir())
