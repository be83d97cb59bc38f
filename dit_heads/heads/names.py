"""Names for attention heads, as arXiv 2506.10978 writes them, and sets of them.

`L3H2` is head 2 of block 3, `L3` the whole block, `L3-5` whole blocks, `L12H0-5` a range of heads, `L3-5H2`
one head of each of three blocks. A trailing `i` (`L3H2i`, `L3i`) means the image-only attention that some
blocks of SD3.5-medium have."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from dit_heads.errors import InputError
from dit_heads.io.atomic import write_text

_PART = re.compile(r"L([0-9]{1,3})(?:-([0-9]{1,3}))?(?:H([0-9]{1,3})(?:-([0-9]{1,3}))?)?(i?)")
MAX_PARTS = 16_384  # heads that a text may list; the largest models have a tenth of that
_FORMS = "'L3H2' (a head), 'L3' (a block), 'L12H0-5' (a range) or 'L3H2i' (image-only attention)"


@dataclass(frozen=True, order=True)
class HeadId:
    """One attention head.

    Attributes:
        block: number of the block, from 0.
        head: number of the head in its attention, from 0.
        image_only: whether it belongs to the image-only attention of SD3.5-medium, not to the joint one.
    """

    block: int
    head: int
    image_only: bool = False

    def __str__(self) -> str:
        return f"L{self.block}H{self.head}{'i' * self.image_only}"


@dataclass(frozen=True, order=True)
class BlockId:
    """Every head of one attention of a block, however many the model has.

    Attributes:
        block: number of the block, from 0.
        image_only: whether the image-only attention is meant, not the joint one.
    """

    block: int
    image_only: bool = False

    def __str__(self) -> str:
        return f"L{self.block}{'i' * self.image_only}"


def every_head(heads: Sequence[int], image_only_heads: Sequence[int]) -> tuple[HeadId, ...]:
    """All heads of a model, sorted, from the numbers of heads in the attentions of each block."""
    found = (
        HeadId(block, head, only)
        for only, counts in ((False, heads), (True, image_only_heads))
        for block, count in enumerate(counts)
        for head in range(count)
    )
    return tuple(sorted(found))


class HeadSet:
    """An immutable set of heads and whole blocks. `resolve` lists the heads of whole blocks for a model.

    >>> str(HeadSet.parse("L12H0-2, L7") | HeadSet.parse("L1H10"))
    'L1H10, L7, L12H0-2'

    Args:
        parts: the heads and blocks; at least one.

    Raises:
        InputError: for an empty set, and for parts that are neither heads nor blocks.
    """

    __slots__ = ("_parts",)

    def __init__(self, parts: Iterable[HeadId | BlockId]) -> None:
        self._parts = frozenset(parts)
        if not self._parts:
            raise InputError(f"heads: expected at least one of {_FORMS}, got none")
        for part in self._parts:
            if not isinstance(part, HeadId | BlockId):
                raise InputError(
                    f"heads: expected HeadId or BlockId, got {part!r}; text goes to HeadSet.parse"
                )

    @classmethod
    def parse(cls, text: str) -> HeadSet:
        """The set that a text lists.

        Args:
            text: names such as "L3H2", "L7", "L12H0-5" or "L3H2i", separated by commas or spaces.

        Raises:
            InputError: for a name that cannot be read, and for more than `MAX_PARTS` heads and blocks, which
                are counted before any object is made.
        """
        spans = [_span(word) for word in re.split(r"[,\s]+", text) if word]
        if (count := sum(map(len, spans))) > MAX_PARTS:
            raise InputError(
                f"heads: expected at most {MAX_PARTS} heads and blocks, got {count} in '{_short(text)}'"
            )
        return cls(part for span in spans for part in span.parts())

    def __iter__(self) -> Iterator[HeadId | BlockId]:
        return iter(sorted(self._parts, key=_order))

    def __len__(self) -> int:
        """The number of heads and whole blocks that are listed."""
        return len(self._parts)

    def __contains__(self, part: object) -> bool:
        whole = BlockId(part.block, part.image_only) if isinstance(part, HeadId) else part
        return part in self._parts or whole in self._parts

    def __or__(self, other: HeadSet) -> HeadSet:
        return HeadSet(self._parts | other._parts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HeadSet) and self._parts == other._parts

    def __hash__(self) -> int:
        return hash(self._parts)

    def __str__(self) -> str:
        return ", ".join(_words(self))

    def __repr__(self) -> str:
        return f"HeadSet.parse({str(self)!r})"

    def resolve(self, joint: Sequence[int], image_only: Sequence[int] = ()) -> tuple[HeadId, ...]:
        """Every single head of the set in a model, sorted.

        Args:
            joint: number of heads in the joint attention of each block.
            image_only: the same for the image-only attention; 0 for a block that has none.

        Raises:
            InputError: for heads and blocks that the model lacks.
        """
        found: set[HeadId] = set()
        for part in self:
            heads = image_only if part.image_only else joint
            _check_block(part, joint, image_only)
            if isinstance(part, BlockId):
                found |= {HeadId(part.block, h, part.image_only) for h in range(heads[part.block])}
            elif part.head < heads[part.block]:
                found.add(part)
            else:
                last = f"L{part.block}H{heads[part.block] - 1}{'i' * part.image_only}"
                raise InputError(f"heads: block {part.block} has heads up to {last}, got {part}")
        return tuple(sorted(found))

    def to_json(self) -> dict[str, Any]:
        """The set as JSON: {"heads": ["L1H10", "L7"]}."""
        return {"heads": _words(self)}

    @classmethod
    def from_json(cls, data: object) -> HeadSet:
        """The set that `to_json` wrote.

        Args:
            data: parsed JSON. Keys other than "heads" are ignored.

        Raises:
            InputError: if there is no list of names under "heads".
        """
        words = data.get("heads") if isinstance(data, dict) else None
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise InputError(
                f'heads: expected JSON such as {{"heads": ["L1H10", "L7"]}}, got {str(data)[:80]}'
            )
        return cls.parse(", ".join(words))

    def save(self, path: str | Path) -> None:
        """Write the set as a JSON file, completely or not at all.

        Args:
            path: the file; an existing one is replaced.
        """
        write_text(Path(path), json.dumps(self.to_json(), indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> HeadSet:
        """The set that `save` wrote.

        Args:
            path: the file.

        Raises:
            InputError: if the file holds anything else.
            OSError: if there is no such file.
        """
        try:
            return cls.from_json(json.loads(Path(path).read_text()))
        except ValueError as error:
            raise InputError(f"heads: cannot read '{path}': {error}") from error


@dataclass(frozen=True)
class _Span:
    """One word of a text: a range of heads in a range of blocks, or whole blocks."""

    blocks: range
    heads: range | None
    image_only: bool

    def __len__(self) -> int:
        return len(self.blocks) * (1 if self.heads is None else len(self.heads))

    def parts(self) -> Iterator[HeadId | BlockId]:
        for block in self.blocks:
            if self.heads is None:
                yield BlockId(block, self.image_only)
            else:
                yield from (HeadId(block, head, self.image_only) for head in self.heads)


def _span(word: str) -> _Span:
    match = _PART.fullmatch(word)
    if match is None:
        raise InputError(f"heads: expected {_FORMS}, got '{_short(word)}'")
    first_block, last_block, first_head, last_head, image = match.groups()
    heads = None if first_head is None else _range(first_head, last_head, word)
    return _Span(_range(first_block, last_block, word), heads, bool(image))


def _range(first: str, last: str | None, word: str) -> range:
    low, high = int(first), int(last or first)
    if high < low:
        raise InputError(f"heads: expected a range that goes up, got '{word}'")
    return range(low, high + 1)


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:60]}..."


def _order(part: HeadId | BlockId) -> tuple[int, bool, int]:
    return part.block, part.image_only, part.head if isinstance(part, HeadId) else -1


def _words(parts: Iterable[HeadId | BlockId]) -> list[str]:
    """The parts as text. Consecutive heads of one attention become a range."""
    words = []
    for (block, image), group in groupby(parts, key=lambda part: (part.block, part.image_only)):
        listed = list(group)
        words += [str(part) for part in listed if isinstance(part, BlockId)]
        heads = [part.head for part in listed if isinstance(part, HeadId)]
        # Consecutive numbers minus their place in the list are equal.
        for _, run in groupby(enumerate(heads), key=lambda pair: pair[1] - pair[0]):
            numbers = [number for _, number in run]
            span = f"{numbers[0]}-{numbers[-1]}" if len(numbers) > 1 else f"{numbers[0]}"
            words.append(f"L{block}H{span}{'i' * image}")
    return words


def _check_block(part: HeadId | BlockId, joint: Sequence[int], image_only: Sequence[int]) -> None:
    if part.block >= len(joint):
        raise InputError(f"heads: the model has blocks L0 to L{len(joint) - 1}, got {part}")
    if part.image_only and not any(image_only):
        raise InputError(f"heads: no block of the model has an image-only attention (i), got {part}")
    if part.image_only and not image_only[part.block]:
        have = [block for block, heads in enumerate(image_only) if heads]
        raise InputError(f"heads: blocks with an image-only attention (i) are {have}, got {part}")
