"""Captions in files: text files beside pictures, and lists of them as JSON lines or CSV, in the dialects that
people's tools write."""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dit_heads.errors import InputError

CAPTION_KEYS = ("text", "caption", "prompt")
"""Names of the column with the caption."""


def caption_in(row: Mapping[str, Any]) -> str:
    """The caption of a row, "" for none."""
    found = next((row[key] for key in CAPTION_KEYS if row.get(key)), "")
    return found if isinstance(found, str) else ""


def caption_beside(folder: Mapping[str, Path], names: Sequence[str]) -> str:
    """The text of the first of `names` that a folder holds, whatever the case of its letters.

    Args:
        folder: Its files by name, in lower case.

    Raises:
        InputError: if there is none, or it is empty, or no text; says which.
    """
    path = next((folder[name.casefold()] for name in names if name.casefold() in folder), None)
    if path is None:
        raise InputError(f"no caption: looked for {' and '.join(names)}")
    text = _text(path)
    if not text.strip():
        raise InputError(f"an empty caption in {path.name}")
    return text


def _text(path: Path) -> str:
    try:
        return decoded(path.read_bytes())
    except OSError as error:
        raise InputError(f"no caption that can be read: {path.name}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"a caption that is not UTF-8 in {path.name}") from error


def decoded(data: bytes) -> str:
    """UTF-8, or UTF-16 that says so. Raises UnicodeDecodeError for anything else."""
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return data.decode("utf-16" if utf16 else "utf-8-sig")


def rows_of(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a list as dictionaries, with their places; {} for one that is none.

    Raises:
        InputError: if the file cannot be read as text.
    """
    try:
        data = path.read_bytes()
        rows = _csv(data) if path.suffix == ".csv" else map(_json, _lines(decoded(data)))
        for number, row in enumerate(rows, 1):
            yield f"{path.name}, entry {number}", row if isinstance(row, dict) else {}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"data: cannot read '{path}': {error}") from error


def _lines(text: str) -> list[str]:
    return [line for line in text.split("\n") if line.strip()]


def _json(line: str) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _csv(data: bytes) -> list[dict[str, Any]]:
    """Columns between commas, semicolons or tabs, in UTF-8 or Western European, as spreadsheets write."""
    try:
        text = decoded(data)
    except UnicodeDecodeError:
        text = data.decode("cp1252")
        _check_western(text, data)
    header = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=header.count)
    reader = csv.DictReader(io.StringIO(text), restkey="", delimiter=delimiter)
    reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
    return list(reader)


def _check_western(text: str, data: bytes) -> None:
    """Any bytes can be read as Western European: text of mostly accented letters was something else."""
    letters = [letter for letter in text if letter.isalpha()]
    if 3 * sum(not letter.isascii() for letter in letters) > len(letters):
        raise UnicodeDecodeError("utf-8", data, 0, 1, "neither UTF-8 nor Western European")
