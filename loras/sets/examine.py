"""What is wrong with a set: every file is read and decoded once, by several threads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from tqdm import tqdm

from dit_heads.errors import InputError
from dit_heads.io.fingerprints import content_hash
from dit_heads.io.pictures import read_bytes, size_of
from dit_heads.loras.sets.captions import check_caption
from dit_heads.loras.sets.folders import ListedSet
from dit_heads.loras.sets.order import in_order
from dit_heads.loras.sets.panels import cuts

Cell = tuple[int, int]  # height and width of a panel, in pixels


@dataclass(frozen=True)
class Examined:
    """A set once its files have been read.

    Attributes:
        listed: The set, its panels in order.
        shapes: Height and width of every panel, in pixels.
        digest: The hash of the files' bytes.
        problems: All that is wrong; a set without any can be used.
    """

    listed: ListedSet
    shapes: tuple[Cell, ...]
    digest: str
    problems: tuple[str, ...]


def examined(sets: Sequence[ListedSet], rows: int, columns: int, min_side: int) -> Iterator[Examined]:
    """Read the files of sets by several threads. A bar shows the progress of what takes longer than a second.

    Args:
        sets: as folders list them.
        rows, columns: number of panels of a set.
        min_side: smallest side of a panel, in pixels.

    Returns:
        The sets in their order.
    """
    look = partial(examine, rows=rows, columns=columns, min_side=min_side)
    with ThreadPoolExecutor() as threads:  # reading, hashing and decoding let other threads run
        yield from tqdm(
            threads.map(look, sets), "reading sets", len(sets), leave=False, delay=1, disable=None
        )


def examine(listed: ListedSet, rows: int, columns: int, min_side: int) -> Examined:
    """Read the files of a set. Arguments as of `examined`."""
    problems = [*listed.problems, *_caption_problems(listed, rows, columns)]
    listed, wrong = _in_order(listed, rows * columns)
    problems += wrong
    shapes: list[Cell] = []
    contents: list[bytes] = []
    for path in listed.files:
        try:
            contents.append(read_bytes(path))
            shapes += _panel_shapes(size_of(contents[-1]), listed.ready, rows, columns, min_side)
        except InputError as error:
            problems.append(str(error) if listed.source == path.name else f"{path.name}: {error}")
    return Examined(listed, tuple(shapes), content_hash(*contents), tuple(problems))


def _caption_problems(listed: ListedSet, rows: int, columns: int) -> list[str]:
    if listed.problems or rows * columns == 1:
        return []
    try:
        check_caption(listed.caption, rows, columns)
    except InputError as error:
        return [str(error)]
    return []


def _in_order(listed: ListedSet, panels: int) -> tuple[ListedSet, list[str]]:
    """The set with its panels in order, and what is wrong with their number or names."""
    if listed.ready or (not listed.files and listed.problems and listed.listed):
        return listed, []
    if len(listed.files) != panels:
        return listed, [f"expected {panels} pictures, got {_names(listed.files)}"]
    if listed.listed or panels == 1:
        return listed, []
    try:
        return replace(listed, files=in_order(listed.files, listed.caption)), []
    except InputError as error:
        return listed, [str(error)]


def _names(files: Sequence[Path]) -> str:
    shown = ", ".join(path.name for path in files[:6]) + (", ..." if len(files) > 6 else "")
    return f"{len(files)} ({shown})" if files else "0"


def _panel_shapes(size: Cell, ready: bool, rows: int, columns: int, min_side: int) -> list[Cell]:
    shapes = [(box.height, box.width) for box in cuts(*size, rows, columns)] if ready else [size]
    for height, width in shapes:
        if min(height, width) < min_side:
            raise InputError(f"a panel is {width} x {height} pixels, expected sides of at least {min_side}")
    return shapes
