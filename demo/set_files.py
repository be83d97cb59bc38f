"""Sets that visitors bring to learn from: unpacked within bounds, and looked at as the trainer does."""

from __future__ import annotations

import io
import shutil
import stat
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from dit_heads.demo.files import received
from dit_heads.demo.limits import Limits
from dit_heads.demo.shelf import Entry, Shelf
from dit_heads.errors import InputError
from dit_heads.io.formats import PICTURE_SUFFIXES, open_header
from dit_heads.loras.sets.captions import check_caption
from dit_heads.loras.sets.dataset import MIN_SIDE
from dit_heads.loras.sets.examine import Examined, examined
from dit_heads.loras.sets.folders import read_sets
from dit_heads.loras.sets.panels import scaling_loss

TEXTS = (".txt", ".caption", ".jsonl", ".csv")
ROOT = "sets"  # a folder of this name holds the sets of an entry
DEPTH = 4  # folders in one another
SHOWN = 12  # problems that are told


@dataclass(frozen=True)
class Looked:
    """What the trainer thinks of sets.

    Attributes:
        count: sets.
        problems: why they cannot be used, a sentence each.
        notes: what to know about them.
        caption: the first one.
    """

    count: int
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    caption: str

    @property
    def usable(self) -> bool:
        return self.count > 0 and not self.problems


def bring_sets(shelf: Shelf, files: object, owner: str | None, limits: Limits) -> Entry:
    """Take in a visitor's files: one zip, or pictures and captions by their paths.

    Args:
        shelf: where they are kept.
        files: [{"name": ..., "data": base64 text}]; a name may be a path.
        owner: the session that brings them.
        limits: of their number, bytes and pixels.

    Raises:
        InputError: for what is no set of pictures, and for what is beyond the limits.
    """
    contents = list(_contents(files, limits))

    def fill(folder: Path) -> None:
        root = folder / ROOT
        root.mkdir()
        for path, data in contents:
            file = root / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)

    try:
        return shelf.put(fill, owner)
    except OSError as error:  # a file where another one has a folder, a name that is too long
        raise InputError("sets: the names of these files cannot be used; please rename them") from error


def _contents(files: object, limits: Limits) -> Iterator[tuple[PurePosixPath, bytes]]:
    """Path and bytes of every file that the trainer reads, below the folder that holds them all."""
    listed = [each for each in files if isinstance(each, dict)] if isinstance(files, list) else []
    if not listed:
        raise InputError("sets: expected a zip, or pictures with their captions, got nothing")
    total = sum(len(each["data"]) for each in listed if isinstance(each.get("data"), str))
    if total > limits.sets_bytes // 3 * 4 + 4 * len(listed):
        raise InputError(f"sets: expected at most {limits.sets_bytes / 2**20:.0f} MB, got more")
    found = {path: data for each in listed for path, data in _unpacked(each, limits)}
    if not any(path.suffix.lower() in PICTURE_SUFFIXES for path in found):
        raise InputError("sets: there is no picture among these files")
    _check_bounds(found, limits)
    top = _common(found)
    return ((path.relative_to(top), data) for path, data in found.items())


def _unpacked(file: Mapping[str, Any], limits: Limits) -> Iterable[tuple[PurePosixPath, bytes]]:
    name, data = str(file.get("name")), received(file.get("data"), limits.sets_bytes)
    if name.lower().endswith(".zip"):
        return _zipped(data, limits)
    return [(path, data)] if (path := _path(name)) else []


def _zipped(data: bytes, limits: Limits) -> Iterator[tuple[PurePosixPath, bytes]]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as packed:
            inside = packed.infolist()
            if len(inside) > 2 * limits.sets_files:
                raise InputError(f"sets: expected at most {limits.sets_files} files, got {len(inside)}")
            left = limits.sets_bytes
            for one in inside:
                path = _path(one.filename)
                if path is None or one.is_dir() or stat.S_ISLNK(one.external_attr >> 16):
                    continue
                with packed.open(one) as file:
                    content = file.read(left + 1)  # what a zip says of its sizes need not be true
                left -= len(content)
                if left < 0:
                    raise InputError(
                        f"sets: expected at most {limits.sets_bytes / 2**20:.0f} MB, unpacked, got more"
                    )
                yield path, content
    except InputError:
        raise
    except Exception as error:  # a damaged file makes the decoders raise almost anything
        raise InputError("sets: this zip is damaged, has a password, or is of an unusual kind") from error


def _path(name: str) -> PurePosixPath | None:
    """A path that stays inside, of a kind that the trainer reads; None for one to leave out.

    Raises:
        InputError: for a path that leads out of its folder.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in name or "\0" in name:
        raise InputError("sets: a file in it has a path that leads out of its folder")
    hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
    if hidden or path.suffix.lower() not in (*PICTURE_SUFFIXES, *TEXTS):
        return None
    if len(path.parts) > DEPTH or any(len(part.encode()) > 120 for part in path.parts):
        raise InputError(f"sets: expected names of at most 120 letters, at most {DEPTH} folders deep")
    return path


def _check_bounds(found: Mapping[PurePosixPath, bytes], limits: Limits) -> None:
    """Raise InputError for too many files or pixels, which headers tell before a picture is decoded."""
    if len(found) > limits.sets_files:
        raise InputError(f"sets: expected at most {limits.sets_files} files, got {len(found)}")
    pixels = 0
    for path, data in found.items():
        if path.suffix.lower() in PICTURE_SUFFIXES:
            pixels += _pixels(path, data, limits)
    if pixels > limits.sets_pixels:
        most, got = limits.sets_pixels / 1e6, pixels / 1e6
        raise InputError(f"sets: expected at most {most:.0f} million pixels in all, got {got:.0f}")


def _pixels(path: PurePosixPath, data: bytes, limits: Limits) -> int:
    try:
        with open_header(data) as image:
            pixels = image.width * image.height
    except Exception:  # damaged: the trainer's own check tells which one, and why
        return 0
    if pixels > limits.upload_pixels:
        raise InputError(f"sets: {path.name} has {pixels} pixels, expected at most {limits.upload_pixels}")
    return pixels


def _common(found: Iterable[PurePosixPath]) -> PurePosixPath:
    """The folder that holds the sets: a zip of a folder has one folder around all of them."""
    paths = list(found)
    top = PurePosixPath()
    while True:
        inside = [path.relative_to(top) for path in paths]
        names = {path.parts[0] for path in inside}
        # One folder with folders in it is around the sets; one with pictures is a set.
        if len(names) != 1 or not all(len(path.parts) > 2 for path in inside):
            return top
        top = top / names.pop()


# --- what the trainer thinks of them ---


def look(root: Path, rows: int, columns: int, side: int, limits: Limits) -> Looked:
    """Look at sets as the trainer does before it begins.

    Args:
        root: their folder.
        rows, columns: of a set's panels.
        side: of a panel in the composite, in pixels.
        limits: of their number.
    """
    try:
        listed = read_sets(root)
        if len(listed) > limits.sets:
            raise InputError(f"sets: expected at most {limits.sets}, got {len(listed)}")
        found = list(examined(listed, rows, columns, MIN_SIDE))
    except InputError as error:
        return Looked(0, (str(error).replace(str(root), "your files").removeprefix("data: "),), (), "")
    problems = [f"{one.listed.source}: {problem}" for one in found for problem in one.problems]
    captions = [one.listed.caption.strip() for one in found]
    return Looked(len(found), _shortened(problems), tuple(_notes(found, rows, columns, side)), captions[0])


def _shortened(problems: list[str]) -> tuple[str, ...]:
    more = len(problems) - SHOWN
    return tuple(problems) if more <= 0 else (*problems[:SHOWN], f"and {more} more of this kind")


def _notes(found: list[Examined], rows: int, columns: int, side: int) -> Iterator[str]:
    good = [one for one in found if not one.problems]
    lost = [
        f"{one.listed.source}: {words}"
        for one in good
        for words in [next(filter(None, (scaling_loss(*s, side, side, "crop") for s in one.shapes)), "")]
        if words
    ]
    if lost:
        more = f" (and {len(lost) - 1} more sets)" if len(lost) > 1 else ""
        yield f"{lost[0]}{more}"
    bare = [one for one in good if check_caption(one.listed.caption, rows, columns) is None]
    if bare:
        yield (
            f"{len(bare)} captions have no marker such as [LEFT] before what each panel shows; with them, "
            "sets follow their captions better"
        )
    if len(good) < 8:
        yield f"{len(good)} sets are few; 20 to 100 are usual"


def captions_of(root: Path) -> list[str]:
    """The captions of sets in a folder."""
    return [one.caption.strip() for one in read_sets(root) if one.caption.strip()]


def copied(entry: Entry, folder: Path, check: Callable[[], None] = lambda: None) -> None:
    """Make a folder of an entry's sets, unless `check` raises."""
    check()
    shutil.copytree(entry.folder / ROOT, folder)
