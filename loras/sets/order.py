"""The order of a set's panels, from the names of their files or from the words of the caption."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from dit_heads.errors import InputError
from dit_heads.loras.sets.captions import JointCaption


def natural(path: Path) -> list[tuple[int, str]]:
    """A key that sorts 2.jpg before 10.jpg, and a.png before B.png."""
    parts = re.split(r"([0-9]+)", path.name.casefold())
    return [*((int(part), "") if part.isdecimal() else (-1, part) for part in parts), (-1, path.name)]


def in_order(files: Sequence[Path], caption: str) -> tuple[Path, ...]:
    """Order the panels of a set, row by row.

    Numbers say the order (`1.jpg 2.jpg`, `view_a.jpg view_b.jpg`, `1-day.jpg 2-night.jpg`). Words do, if each
    stands behind one marker of the caption alone: `night.jpg day.jpg` with "[LEFT] by day [RIGHT] at night".

    Args:
        files: the panels in natural order.
        caption: of the set.

    Raises:
        InputError: if neither says it: sorted by letters, `after.jpg` would come before `before.jpg`.
    """
    if _numbered([path.stem.casefold() for path in files]):
        return tuple(files)
    places = _places([_words(path.stem) for path in files], _panels(caption))
    if sorted(places) != list(range(len(files))):
        raise InputError(
            f"the names {', '.join(path.name for path in files)} do not say the order of the panels; number "
            "them (1-..., 2-...), or use each name's word behind its marker in the caption, and there alone"
        )
    return tuple(path for _, path in sorted(zip(places, files, strict=True)))


def _numbered(stems: Sequence[str]) -> bool:
    """Whether names differ in numbers or single letters alone, or each begins with a number of its own."""
    patterns = {re.sub(r"(?<![a-z])[a-z](?![a-z])", "@", re.sub(r"[0-9]+", "#", stem)) for stem in stems}
    first = [match[0] for stem in stems if (match := re.match(r"[0-9]+", stem))]
    return len(patterns) == 1 or len(set(map(int, first))) == len(stems)


def _panels(caption: str) -> list[set[str]]:
    """The words behind each marker of a caption."""
    try:
        return [_words(panel) for panel in JointCaption.parse(caption).panels]
    except InputError:
        return []


def _words(text: str) -> set[str]:
    return set(re.findall(r"[^\W\d_]+", text.casefold()))


def _places(names: Sequence[set[str]], panels: Sequence[set[str]]) -> list[int]:
    """The one panel whose words hold those of each name that the others lack; [] if one has none or two."""
    shared = set.intersection(*names)
    own = [name - shared for name in names]
    found = [[k for k, panel in enumerate(panels) if words and words <= panel] for words in own]
    return [places[0] for places in found] if all(len(places) == 1 for places in found) else []
