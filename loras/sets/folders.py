"""Folders of sets of images: which sets there are.

A data set is one of
- sets: a folder each (`set01/1.jpg`, `set01/2.jpg`, in the order of their numbers) with a `caption.txt`, or
  with a line such as `{"set": "set01", "caption": "..."}` in a `captions.jsonl` beside the folders;
- ready composites with captions: `name.jpg` and `name.txt` side by side, as the paper publishes them;
- a Hugging Face image folder: `metadata.jsonl` or `metadata.csv`, whose `file_name` is a ready composite, or
  (JSON lines only) whose `file_names` or, say, `images_file_names` lists the panels of a set; `text`,
  `caption` or `prompt` holds the caption. Parquet is not read.

The folder of a training run, which may lie among the sets, is none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from dit_heads.errors import InputError
from dit_heads.io.formats import PICTURE_SUFFIXES
from dit_heads.loras.sets.order import natural
from dit_heads.loras.sets.tables import CAPTION_KEYS, caption_beside, caption_in, rows_of

CAPTIONS = "captions.jsonl"


@dataclass(frozen=True)
class ListedSet:
    """A set as a folder lists it, no picture opened yet.

    Attributes:
        source: Where it stands: the name of a folder or a picture, or a row of a list.
        files: Its panels row by row, or one ready composite.
        ready: Whether it is a ready composite.
        listed: Whether a list says the order of the panels; otherwise their names have to.
        problems: What kept it from being read.
    """

    source: str
    files: tuple[Path, ...] = ()
    caption: str = ""
    ready: bool = False
    listed: bool = True
    problems: tuple[str, ...] = ()


def read_sets(root: Path) -> list[ListedSet]:
    """List every set in a folder.

    Args:
        root: in one of the three forms above.

    Returns:
        The sets; what is wrong with one stands in its `problems`.

    Raises:
        InputError: it is no folder, holds nothing, or holds both sets and ready composites.
    """
    if not root.is_dir():
        raise InputError(f"data: expected a folder, got '{root}'")
    for name in ("metadata.jsonl", "metadata.csv"):
        if (root / name).is_file():
            return [_row(root, source, row) for source, row in rows_of(root / name)]
    inside = _visible(root)
    folders = sorted((p for p in inside if p.is_dir() and not _is_run(p)), key=natural)
    pictures = _pictures(inside)
    if bool(folders) == bool(pictures):
        what = "both" if folders else "neither"
        raise InputError(
            f"data: expected folders with a set each, or pictures with captions, in '{root}', got {what}"
        )
    if folders:
        return list(_foldered_sets(root, folders))
    by_name = {path.name.casefold(): path for path in inside}
    return [_composite(path, by_name) for path in pictures]


def _foldered_sets(root: Path, folders: Sequence[Path]) -> Iterator[ListedSet]:
    captions: dict[str, str] = {}
    names = {folder.name for folder in folders}
    for source, row in rows_of(root / CAPTIONS) if (root / CAPTIONS).is_file() else ():
        name = row.get("set")
        if not isinstance(name, str) or name in captions or name not in names:
            wrong = f'expected {{"set": a folder, once, "caption": ...}}, got {row}'
            yield ListedSet(source, problems=(wrong,))
        else:
            captions[name] = caption_in(row)
    for folder in folders:
        yield _foldered_set(folder, captions.get(folder.name, ""))


def _foldered_set(folder: Path, caption: str) -> ListedSet:
    inside = _visible(folder)
    problems: tuple[str, ...] = ()
    if not caption:
        caption, problems = _beside({path.name.casefold(): path for path in inside}, ("caption.txt",))
        if problems and not problems[0].startswith("an empty") and (folder.parent / CAPTIONS).is_file():
            problems = (f"{problems[0]} and '{folder.name}' in {CAPTIONS}",)
    return ListedSet(folder.name, _pictures(inside), caption, listed=False, problems=problems)


def _composite(path: Path, by_name: Mapping[str, Path]) -> ListedSet:
    caption, problems = _beside(by_name, (f"{path.stem}.txt", f"{path.name}.txt", f"{path.stem}.caption"))
    return ListedSet(path.name, (path,), caption, ready=True, problems=problems)


def _beside(by_name: Mapping[str, Path], names: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    try:
        return caption_beside(by_name, names), ()
    except InputError as error:
        return "", (str(error),)


def _row(root: Path, source: str, row: Mapping[str, Any]) -> ListedSet:
    ready = "file_name" in row
    lists = [value for key, value in row.items() if f"_{key}".endswith("_file_names")]
    names = [row["file_name"]] if ready else next(iter(lists), None)
    if not isinstance(names, list) or not all(_is_inside(name) for name in names):
        wrong = f"expected file_name or file_names, inside the folder, got {row}"
        return ListedSet(source, problems=(wrong,))
    caption = caption_in(row)
    problems = (
        () if caption.strip() else (f"no caption, or an empty one: looked for {' and '.join(CAPTION_KEYS)}",)
    )
    return ListedSet(source, tuple(_path(root, name) for name in names), caption, ready, problems=problems)


def _is_inside(name: object) -> bool:
    """Whether a path of either system stays inside of its folder."""
    if not isinstance(name, str) or not name:
        return False
    path = PureWindowsPath(name)
    return not path.anchor and ".." not in path.parts


def _path(root: Path, name: str) -> Path:
    return root / name if (root / name).exists() else root / name.replace("\\", "/")


def _visible(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if not path.name.startswith(".")]


def _pictures(paths: Sequence[Path]) -> tuple[Path, ...]:
    """Pictures of any format: one that is not read is a problem to tell, not a file to pass over."""
    return tuple(sorted((path for path in paths if path.suffix.lower() in PICTURE_SUFFIXES), key=natural))


def _is_run(folder: Path) -> bool:
    """Whether a folder holds a training run, or folders of them."""
    inside = _visible(folder)
    if any(path.name == "config.json" for path in inside) and not _pictures(inside):
        return True
    folders = [path for path in inside if path.is_dir()]
    return bool(folders) and len(folders) == len(inside) and all(map(_is_run, folders))
