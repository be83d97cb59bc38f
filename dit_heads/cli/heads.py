"""The `heads` command."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Annotated, Any

import tyro


@dataclass(frozen=True)
class Heads:
    """List the blocks and heads of a model, by the names that --heads takes."""

    model: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="MODEL")]] = "embedded"
    """Model: embedded, embedded/flux, a folder in diffusers' format, or a model id on the hub."""

    def run(self) -> None:
        """Print the list."""
        from dit_heads.models import head_layout

        print("\n".join(_listing(self.model, head_layout(self.model))))


def _listing(model: str, layout: Any) -> list[str]:
    """The heads of a model, one line for each run of blocks with equally many."""
    total, blocks = sum(layout.heads), len(layout.heads)
    lines = [f"{model}: {layout.model}, {blocks} blocks, {total} heads of joint attention"]
    lines += [f"  {_span(first, last)}H0-{heads - 1}" for first, last, heads in _alike(layout.heads)]
    if any(layout.image_only_heads):
        lines.append(f"and {sum(layout.image_only_heads)} heads of image-only attention")
        alike = [row for row in _alike(layout.image_only_heads) if row[2]]
        lines += [f"  {_span(first, last)}H0-{heads - 1}i" for first, last, heads in alike]
    return [*lines, "names: L0H1 (a head), L0 (a block), L0H0-3 (a range), L0-1H2 (of several blocks)"]


def _alike(counts: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """(first block, last block, heads) of each run of blocks with equally many heads."""
    for heads, run in groupby(enumerate(counts), key=lambda pair: pair[1]):
        numbers = [block for block, _ in run]
        yield numbers[0], numbers[-1], heads


def _span(first: int, last: int) -> str:
    return f"L{first}" if first == last else f"L{first}-{last}"
