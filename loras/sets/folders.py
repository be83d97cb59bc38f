"""Folders of sets of images: which sets there are, and what is wrong with each.

A data set is one of
- sets: a folder each (`set01/1.jpg`, `set01/2.jpg`, in the order of their numbers) with a `caption.txt`, or
  with a line such as `{"set": "set01", "caption": "..."}` in a `captions.jsonl` beside the folders;
- ready composites with captions: `name.jpg` and `name.txt` side by side, as the paper publishes them;
- a Hugging Face image folder: `metadata.jsonl` or `metadata.csv`, whose `file_name` is a ready composite, or
  (JSON lines only) whose `file_names` or, say, `images_file_names` lists the panels of a set; `text` or
  `caption` holds the caption. Parquet is not read.

Pictures (PNG, JPEG, WebP) are turned as their EXIF says and become RGB: transparent parts on white, grey
repeated.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from dit_heads.errors import InputError
from dit_heads.io.pictures import FORMATS, MAX_BYTES, MAX_PIXELS
from dit_heads.loras.sets.captions import check_panels, markers_in
from dit_heads.loras.sets.panels import cut, to_rgb

Cell = tuple[int, int]  # height and width of a panel, in pixels
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Found:
    """A set as a folder names it, not yet looked at. `problem` is what kept it from being read."""

    source: str
    files: tuple[Path, ...] = ()
    caption: str = ""
    ready: bool = False
    problem: str = ""


def read_sets(root: Path) -> list[Found]:
    """Every set under `root`, in one of the three forms above. Raises ValueError if it is no folder, holds
    nothing, or holds both sets and ready composites."""
    if not root.is_dir():
        raise InputError(f"data: expected a folder, got '{root}'")
    for name in ("metadata.jsonl", "metadata.csv"):
        if (root / name).is_file():
            return list(_listed_sets(root, name))
    folders = sorted((p for p in root.iterdir() if p.is_dir() and not _hidden(p)), key=_natural)
    pictures = _pictures(root)
    if bool(folders) == bool(pictures):
        what = "both" if folders else "neither"
        raise InputError(
            f"data: expected folders with a set each, or pictures with captions, in '{root}', got {what}"
        )
    return list(_foldered_sets(root, folders)) if folders else [_ready(path) for path in pictures]


def _foldered_sets(root: Path, folders: Sequence[Path]) -> Iterator[Found]:
    captions: dict[str, str] = {}
    for source, row in _rows(root / "captions.jsonl") if (root / "captions.jsonl").is_file() else ():
        name = row.get("set")
        if not isinstance(name, str) or name in captions or name not in {f.name for f in folders}:
            yield Found(source, problem=f'expected {{"set": a folder, once, "caption": ...}}, got {row}')
        else:
            captions[name] = _caption(row)
    for folder in folders:
        caption = captions.get(folder.name) or _text(folder / "caption.txt")
        yield Found(folder.name, _pictures(folder), caption)


def _ready(path: Path) -> Found:
    return Found(path.name, (path,), _text(path.with_suffix(".txt")), ready=True)


def _listed_sets(root: Path, name: str) -> Iterator[Found]:
    for source, row in _rows(root / name):
        ready = "file_name" in row
        lists = [value for key, value in row.items() if f"_{key}".endswith("_file_names")]
        names = [row["file_name"]] if ready else next(iter(lists), None)
        if not isinstance(names, list) or not all(_inside(each) for each in names):
            yield Found(source, problem=f"expected file_name or file_names, inside the folder, got {row}")
        else:
            files = tuple(root / each for each in names)
            yield Found(source, files, _caption(row), ready)


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The lines of a JSONL or CSV file, as dictionaries, with their places; {} for one that is none."""
    try:
        text = path.read_text("utf-8-sig")
        if path.suffix == ".csv":
            rows: list[Any] = list(csv.DictReader(io.StringIO(text), restkey=""))
        else:
            rows = [_json(line) for line in text.split("\n") if line.strip()]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"data: cannot read '{path}': {error}") from error
    for number, row in enumerate(rows, 1):
        yield f"{path.name}, entry {number}", row if isinstance(row, dict) else {}


def _json(line: str) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _caption(row: Mapping[str, Any]) -> str:
    caption = row.get("text") or row.get("caption")
    return caption if isinstance(caption, str) else ""


def _text(path: Path) -> str:
    """The text of a file; "" if there is none, or none that is UTF-8."""
    try:
        return path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError):
        return ""


def _pictures(folder: Path) -> tuple[Path, ...]:
    paths = (path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not _hidden(path))
    return tuple(sorted(paths, key=_natural))


def _hidden(path: Path) -> bool:
    return path.name.startswith(".")


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sorts 2.jpg before 10.jpg."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]+)", path.name)]


def _inside(name: object) -> bool:
    return isinstance(name, str) and not Path(name).is_absolute() and ".." not in Path(name).parts


# --- what is wrong with it ---


def examine(found: Found, rows: int, columns: int, min_side: int) -> tuple[list[Cell], str, list[str]]:
    """Height and width of every panel, the digest of the files, and the problems, all of them."""
    problems = [found.problem] if found.problem else _wrong_caption(found, rows, columns)
    if not found.problem and not found.ready and len(found.files) != rows * columns:
        problems.append(f"expected {rows * columns} pictures ({rows} x {columns}), got {len(found.files)}")
    shapes: list[Cell] = []
    contents: list[bytes] = []
    for path in found.files:
        try:
            contents.append(_bounded(path))
            picture = decode(contents[-1])
            parts = cut(picture, rows, columns) if found.ready else [picture]
            shapes += [(part.height, part.width) for part in parts]
            if min(shapes[-1]) < min_side:
                size = f"{shapes[-1][1]} x {shapes[-1][0]}"
                raise InputError(f"a panel is {size} pixels, expected sides of at least {min_side}")
        except ValueError as error:
            problems.append(str(error) if found.source == path.name else f"{path.name}: {error}")
    return shapes, content_hash(*contents), problems


def _wrong_caption(found: Found, rows: int, columns: int) -> list[str]:
    """A caption without any markers will do; one with markers must be what the pipeline takes, too."""
    if not found.caption.strip():
        return ["no caption, or an empty one, or one that is not UTF-8"]
    marked, panels = markers_in(found.caption, any_case=True), rows * columns
    if panels == 1 or not marked:
        return []
    if len(set(marked)) != panels:
        return [f"the caption has markers of {len(set(marked))} panels, expected {panels}"]
    try:
        check_panels(found.caption, rows, columns)
    except InputError as error:
        return [str(error)]
    return []


def _bounded(path: Path) -> bytes:
    """The bytes of a file, unless there are too many."""
    if not path.is_file():
        raise InputError("there is no such file")
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise InputError(f"{size} bytes, expected at most {MAX_BYTES}")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}") from error


def decode(data: bytes) -> Image.Image:
    """A picture as RGB, the right way up; its size is known to be within the limits before it is decoded."""
    try:
        with warnings.catch_warnings():
            # Pillow warns of what the pixel limit refuses a moment later.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height <= MAX_PIXELS:
            return to_rgb(ImageOps.exif_transpose(image))
    except Exception as error:  # a damaged file makes Pillow's decoders raise almost anything
        raise InputError(f"is not a picture that can be read: {error}") from error
    raise InputError(f"is {image.width} x {image.height}, expected at most {MAX_PIXELS} pixels")


def content_hash(*parts: str | bytes) -> str:
    """SHA-256 of parts, which cannot run into each other."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(hashlib.sha256(part.encode() if isinstance(part, str) else part).digest())
    return whole.hexdigest()
