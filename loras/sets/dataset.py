"""Sets of images for In-Context LoRA as samples: sorted into buckets, dealt in batches, made composites."""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from PIL import Image, ImageOps

from dit_heads.errors import InputError, listed, whole_number
from dit_heads.io.fingerprints import content_hash
from dit_heads.io.pictures import decode
from dit_heads.loras.sets.captions import without_markers
from dit_heads.loras.sets.examine import Cell, Examined, examined
from dit_heads.loras.sets.folders import read_sets
from dit_heads.loras.sets.grid import Grid, check_grid, check_side
from dit_heads.loras.sets.panels import PanelFit, cut, join, scaling_loss
from dit_heads.training.sampler import draws_at

OnError = Literal["stop", "skip"]
MIN_SIDE = 64
_SHOWN = 5  # sets that a warning lists
_SIDE = re.compile(r"\b(left|right)(-?hand|most|wards?)?\b", re.IGNORECASE)
_PREPARATION = 2  # a part of every key: raise it when the same files would give other pixels


@dataclass(frozen=True)
class Sample:
    """One set, and how it becomes a composite; nothing is decoded before `composite` is called.

    `files` are the panels row by row, or, if `ready`, one picture of all of them. `source` says where the
    set came from, `digest` is the hash of the files' bytes."""

    files: tuple[Path, ...]
    caption: str
    source: str
    digest: str
    grid: Grid
    fit: PanelFit = "crop"
    ready: bool = False
    flip: bool = False

    @property
    def key(self) -> str:
        """Names the pixels of `composite` by content: the bytes of the files and all that is done to them."""
        how = [self.grid.heights, self.grid.widths, self.fit, self.ready, self.flip, _PREPARATION]
        return content_hash(self.digest, json.dumps(how))

    def composite(self) -> Image.Image:
        """The panels in their cells, each mirrored if `flip`. Raises `InputError` if a file has changed since
        it was read first."""
        contents = [path.read_bytes() for path in self.files]
        if content_hash(*contents) != self.digest:
            raise InputError(f"data: '{self.source}' has changed since it was read first")
        pictures = [decode(data) for data in contents]
        if self.ready:
            pictures = cut(pictures[0], len(self.grid.heights), len(self.grid.widths))
        if self.flip:
            pictures = [ImageOps.mirror(picture) for picture in pictures]
        return join(pictures, self.grid, fit=self.fit)


class SetDataset:
    """The sets in a folder as samples, in an order that names and numbers fix.

    Args:
        root: the folder, in one of the forms of `folders`.
        rows, columns: number of panels of a set.
        buckets: height and width that a panel may get, in pixels. A set goes to the one whose aspect ratio is
            nearest to the mean of its panels'. The attribute `buckets` holds the numbers of the samples in
            each.
        fit: how a picture is fitted to its panel, as in `fit_panel`.
        flip: whether half of the samples that batches hold have each panel mirrored, in its place.
        seed: of the order and of the mirrored ones.
        on_error: "stop" makes an error of sets that cannot be used and lists all problems; "skip" leaves them
            out with a warning that lists them. Such sets have a bad file, a side under `min_side`, no caption
            or a wrong number of panels.
        min_side: smallest side of a panel, in pixels.

    Raises:
        InputError: for sets that cannot be used, and if none is left.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        rows: int,
        columns: int,
        buckets: Sequence[Cell],
        fit: PanelFit = "crop",
        flip: bool = False,
        seed: int = 0,
        on_error: OnError = "stop",
        min_side: int = MIN_SIDE,
    ) -> None:
        check_grid(rows, columns)
        _check_options(buckets, fit, seed, on_error, min_side)
        self.flip, self.seed = flip, seed
        found = list(examined(read_sets(Path(root)), rows, columns, min_side))
        good = [one for one in found if not one.problems]
        problems = [f"{one.listed.source}: {problem}" for one in found for problem in one.problems]
        _report(Path(root), problems, len(good), on_error)
        self.samples = tuple(_sample(one, rows, columns, buckets, fit) for one in good)
        _warn_of_losses(good, self.samples)
        if flip:
            _warn_of_sides(self.samples)
        cells = [(sample.grid.heights[0], sample.grid.widths[0]) for sample in self.samples]
        self.buckets = {
            cell: tuple(i for i, c in enumerate(cells) if c == cell) for cell in sorted(set(cells))
        }

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        """A sample, not mirrored."""
        return self.samples[index]

    def views(self) -> Iterator[Sample]:
        """Every sample as it can be drawn: as it is, and mirrored if that may happen."""
        for sample in self.samples:
            yield sample
            if self.flip:
                yield replace(sample, flip=True)

    def batch_at(self, step: int, batch_size: int) -> list[Sample]:
        """The samples of one batch, all of one size: a function of the arguments and the seed alone.

        Args:
            step: number of the batch, from 0.
            batch_size: number of samples in it, over all processes. Process r of w takes `[r::w]`.

        Returns:
            The samples, in the order of `draws_at`, some of them mirrored.
        """
        draws = draws_at(step, batch_size, tuple(self.buckets.values()), self.seed)
        return [self._drawn(index, epoch) for index, epoch in draws]

    def _drawn(self, index: int, epoch: int) -> Sample:
        flip = self.flip and bool(np.random.default_rng((3, self.seed, epoch, index)).integers(2))
        return replace(self.samples[index], flip=flip)


def _sample(one: Examined, rows: int, columns: int, buckets: Sequence[Cell], fit: PanelFit) -> Sample:
    height, width = nearest_bucket(one.shapes, buckets)
    grid = Grid.equal(rows, columns, height=height, width=width)
    listed = one.listed
    return Sample(listed.files, listed.caption.strip(), listed.source, one.digest, grid, fit, listed.ready)


def _warn_of_losses(found: Sequence[Examined], samples: Sequence[Sample]) -> None:
    """Warn of panels that are enlarged, or cropped to a part of themselves."""
    losses = []
    for one, sample in zip(found, samples, strict=True):
        cell = sample.grid.heights[0], sample.grid.widths[0]
        lost = (scaling_loss(*shape, *cell, sample.fit) for shape in one.shapes)
        if first := next(filter(None, lost), ""):
            losses.append(f"\n  {sample.source}: {first}")
    if losses:
        more = f"\n  and {len(losses) - _SHOWN} more" if len(losses) > _SHOWN else ""
        warnings.warn(f"data: panels lose detail:{''.join(losses[:_SHOWN])}{more}", stacklevel=3)


def _warn_of_sides(samples: Sequence[Sample]) -> None:
    """Warn of captions that a mirrored picture contradicts."""
    sided = [sample.source for sample in samples if _SIDE.search(without_markers(sample.caption))]
    if sided:
        warnings.warn(
            f"flip: {len(sided)} captions say left or right, which mirrored panels contradict: "
            f"{listed(sided)}",
            stacklevel=3,
        )


def _check_options(
    buckets: Sequence[Cell], fit: object, seed: object, on_error: object, min_side: object
) -> None:
    if not buckets:
        raise InputError("buckets: expected at least one (height, width) of a panel, got none")
    for side in (side for cell in buckets for side in cell):
        check_side("buckets", side)
    for name, value, choices in (("fit", fit, get_args(PanelFit)), ("on_error", on_error, get_args(OnError))):
        if value not in choices:
            raise InputError(f"{name}: expected {' or '.join(choices)}, got {value!r}")
    whole_number("seed", seed, 0)
    whole_number("min_side", min_side, 1)


def _report(root: Path, problems: Sequence[str], good: int, on_error: OnError) -> None:
    listed = "".join(f"\n  {problem}" for problem in problems)
    if problems and on_error == "stop":
        count = f"{len(problems)} problem{'s' * (len(problems) > 1)}"
        raise InputError(f"data: {count} in '{root}':{listed}")
    if not good:
        raise InputError(f"data: no set is left in '{root}'{':' + listed if listed else ''}")
    if problems:
        warnings.warn(f"data: sets left out of '{root}' for these problems:{listed}", stacklevel=3)


# --- buckets ---


def nearest_bucket(shapes: Sequence[Cell], buckets: Sequence[Cell]) -> Cell:
    """The bucket for pictures of some shapes.

    Args:
        shapes: height and width of each picture.
        buckets: heights and widths to choose from.

    Returns:
        The bucket whose aspect ratio is nearest to the geometric mean of the pictures' ratios; of two that
        are equally near the larger one, then the higher one.
    """
    mean = sum(math.log(height / width) for height, width in shapes) / len(shapes)

    def distance(cell: Cell) -> tuple[float, int, int]:
        height, width = cell
        return round(abs(math.log(height / width) - mean), 9), -height * width, -height

    return min(buckets, key=distance)
