"""Frames (hollow rectangles) drawn into a picture, and found again: several, overlapping, partly hidden."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from dit_heads.tasks.annotations import box_of
from dit_heads.tasks.codecs.pixels import components

Evidence = Float[np.ndarray, "h w"]
Box = tuple[int, int, int, int]


def line_width(size: tuple[int, int], share: float) -> int:
    """Pixels of a line that is `share` of the shorter side, two at least."""
    return max(2, round(min(size) * share))


def frame_mask(box: Box, size: tuple[int, int], width: int) -> Bool[np.ndarray, "h w"]:
    """The pixels of a frame, which lies inside of its box; a small one has thinner lines."""
    mask = np.zeros(size, bool)
    for rows, columns in sides(box, width):
        mask[rows, columns] = True
    return mask


def sides(box: Box, width: int) -> list[tuple[slice, slice]]:
    """Top, bottom, left and right line of a frame, as rows and columns."""
    x0, y0, x1, y1 = box
    w = thickness(box, width)
    rows, columns = slice(y0, y1), slice(x0, x1)
    return [
        (slice(y0, y0 + w), columns),
        (slice(y1 - w, y1), columns),
        (rows, slice(x0, x0 + w)),
        (rows, slice(x1 - w, x1)),
    ]


def thickness(box: Box, width: int) -> int:
    """The width of a box's line: a third of its shorter side at most."""
    return max(1, min(width, min(box[2] - box[0], box[3] - box[1]) // 3))


@dataclass(frozen=True)
class Sums:
    """Integral images of a frame's own evidence, of what is seen or hidden, and of what is not hidden."""

    own: np.ndarray
    seen: np.ndarray
    open: np.ndarray


@dataclass(frozen=True)
class Finder:
    """Finds frames in a map of evidence, 1 where a line surely is and 0 where none is.

    Candidates are rectangles between four edges, and the box around each region. One is kept if all its four
    lines are seen, it is hollow, and some of its line belongs to no other box that is kept: where two frames
    cross, four lines enclose a rectangle that nobody drew.

    Args:
        width: Pixels of a line.
        least_part: The least mean evidence of any quarter of any of the four lines.
        least_mean: The least mean evidence of all four, hidden parts counting as none.
        own_share: The least share of a frame's pixels that no other kept frame has.
    """

    width: int
    least_part: float = 0.3
    least_mean: float = 0.5
    own_share: float = 0.12

    def __call__(
        self, evidence: Evidence, hidden: Evidence | None = None
    ) -> tuple[Int[np.ndarray, "n 4"], Float[np.ndarray, " n"]]:
        """Boxes and their scores, from the surest on.

        Args:
            evidence: Of a line of these frames, 0 to 1.
            hidden: How surely a pixel shows another frame, under which a line may lie unseen.

        Returns:
            Boxes, and the mean evidence where the line may be seen times the root of the weakest side's.
        """
        seen = evidence if hidden is None else np.maximum(evidence, hidden)
        height, width = evidence.shape
        found = self._candidates(evidence) | (set() if hidden is None else self._candidates(seen))
        inside = [b for b in found if b[0] >= 0 <= b[1] and b[2] <= width and b[3] <= height]
        maps = Sums(_summed(evidence), _summed(seen), _summed(np.where(seen > evidence, 1.0 - seen, 1.0)))
        scored = {box: score for box in inside if (score := self._score(box, maps)) > 0}
        rank = {b: score * self._hollow(b, maps) * self._ended(b, maps) for b, score in scored.items()}
        kept = sorted(self._unexplained(rank, evidence), key=lambda box: (-scored[box], box))
        return np.array(kept, np.int64).reshape(-1, 4), np.array([scored[box] for box in kept])

    # --- candidates ---

    def _candidates(self, evidence: Evidence) -> set[Box]:
        labels, count = components(evidence > 0.5)
        found: set[Box] = set()
        for k in range(1, count + 1):
            if (region := labels == k).sum() >= 4:
                found.add(box_of(region))
        horizontal, vertical = self._edges(evidence), self._edges(evidence.T)
        return found | self._rectangles(*horizontal, *vertical)

    def _edges(self, evidence: Evidence) -> tuple[np.ndarray, np.ndarray]:
        """Horizontal edges into a line and out of it, from above: [n, 3] of row, first column, end column."""
        window = 2 * self.width + 1
        smooth = _averaged(evidence, window)
        on = np.pad(smooth > 0.5, ((1, 1), (0, 0)))
        into, out = on[1:] & ~on[:-1], on[:-1] & ~on[1:]
        gap, least, shift = 2 * self.width + 2, 3 * self.width, np.array([self.width, 0, 0])
        begins, ends = _runs(into, gap, least), _runs(out, gap, least)
        # Where two lines touch, no edge is to be seen between them: it lies a line's width from the others.
        return np.unique(np.r_[begins, ends - shift], axis=0), np.unique(np.r_[ends, begins + shift], axis=0)

    def _rectangles(
        self, tops: np.ndarray, bottoms: np.ndarray, lefts: np.ndarray, rights: np.ndarray
    ) -> set[Box]:
        slack, least = 2 * self.width + 1, 2 * self.width + 1
        found: set[Box] = set()
        for y0, xa, xb in tops:
            for y1, xc, xd in bottoms[bottoms[:, 0] >= y0 + least]:
                low, high = max(xa, xc) - slack, min(xb, xd) + slack
                if high - low < least:
                    continue
                x0, x1 = (_reaching(edge, y0 + slack, y1 - slack, low, high) for edge in (lefts, rights))
                pairs = itertools.product(x0, x1)
                found.update((int(a), int(y0), int(b), int(y1)) for a, b in pairs if b - a >= least)
        return found

    # --- which of them are frames ---

    def _score(self, box: Box, maps: Sums) -> float:
        lines = sides(box, self.width)
        own, open_ = (np.mean([_mean(each, *side) for side in lines]) for each in (maps.own, maps.open))
        parts = np.array([[_mean(maps.seen, *part) for part in _parts(side)] for side in lines])
        if own < self.least_mean or parts.min() < self.least_part or 1 - self._hollow(box, maps) > 0.6 * own:
            return 0.0
        return float(np.clip(own / open_ * parts.mean(1).min() ** 0.5, 0, 1))

    def _ended(self, box: Box, maps: Sums) -> float:
        """The share of its lines' eight ends behind which there is no evidence: lines go on where boxes
        cross, and end where one has its corner."""
        x0, y0, x1, y1 = box
        t, beyond = thickness(box, self.width), self.width + 1
        across = [(slice(y, y + t), c) for y in (y0, y1 - t) for c in _outside(x0, x1, beyond)]
        down = [(r, slice(x, x + t)) for x in (x0, x1 - t) for r in _outside(y0, y1, beyond)]
        return 1 - float(np.mean([_mean(maps.own, *patch) for patch in across + down]))

    def _hollow(self, box: Box, maps: Sums) -> float:
        """How little evidence there is just inside of the lines; 1 for a box that has no inside."""
        x0, y0, x1, y1 = box
        w = thickness(box, self.width) + 1
        if min(x1 - x0, y1 - y0) <= 2 * w + 1:
            return 1.0
        inner = sides((x0 + w, y0 + w, x1 - w, y1 - w), 1)
        return 1 - float(np.mean([_mean(maps.own, *side) for side in inner]))

    def _unexplained(self, rank: dict[Box, float], evidence: Evidence) -> list[Box]:
        """The boxes that stay when, again and again, the lowest is left out of those whose lines belong to
        others too."""
        line, size = evidence > 0.5, evidence.shape
        pixels = {box: np.flatnonzero(frame_mask(box, size, self.width) & line) for box in rank}
        cover = np.zeros(line.size, np.int64)
        for each in pixels.values():
            cover[each] += 1
        kept = list(rank)
        while True:
            own = {box: float((cover[pixels[box]] == 1).mean()) for box in kept}
            shared = [box for box in kept if own[box] < self.own_share]
            if not shared:
                return kept
            worst = min(shared, key=lambda box: (round(rank[box], 2), own[box], box))
            kept.remove(worst)
            cover[pixels[worst]] -= 1


def _reaching(edges: np.ndarray, top: int, bottom: int, low: int, high: int) -> np.ndarray:
    """Places, from low to high, of the edges that reach from top to bottom."""
    at, first, end = edges.T
    return at[(low <= at) & (at <= high) & (first <= top) & (end >= bottom)]


def _averaged(values: Evidence, window: int) -> Evidence:
    """Means of each row over a window, which is cut at the borders."""
    half = window // 2
    sums = np.pad(values, ((0, 0), (1, 0))).cumsum(1)
    column = np.arange(values.shape[1])
    low, high = np.maximum(column - half, 0), np.minimum(column + half + 1, values.shape[1])
    return (sums[:, high] - sums[:, low]) / (high - low)


def _runs(mask: Bool[np.ndarray, "h w"], gap: int, least: int) -> Int[np.ndarray, "n 3"]:
    """Runs of a mask in its rows, over gaps of at most `gap`, of at least `least` pixels: row, first, end."""
    rows, columns = np.nonzero(mask)
    if not len(rows):
        return np.zeros((0, 3), np.int64)
    breaks = np.flatnonzero((np.diff(rows) != 0) | (np.diff(columns) > gap + 1)) + 1
    first, last = np.r_[0, breaks], np.r_[breaks, len(rows)] - 1
    runs = np.stack([rows[first], columns[first], columns[last] + 1], 1)
    return runs[runs[:, 2] - runs[:, 1] >= least]


def _parts(side: tuple[slice, slice], count: int = 4) -> list[tuple[slice, slice]]:
    """A line cut into parts along its length."""
    rows, columns = side
    along_rows = rows.stop - rows.start > columns.stop - columns.start
    long = rows if along_rows else columns
    cuts = np.linspace(long.start, long.stop, count + 1)
    pieces = [slice(int(a), max(int(np.ceil(b)), int(a) + 1)) for a, b in itertools.pairwise(cuts)]
    return [(piece, columns) if along_rows else (rows, piece) for piece in pieces]


def _outside(low: int, high: int, reach: int) -> tuple[slice, slice]:
    """The places just before and behind an interval, one pixel of blur left out."""
    return slice(max(low - reach, 0), max(low - 1, 0)), slice(high + 1, high + reach)


def _summed(values: Evidence) -> np.ndarray:
    return np.pad(values, ((1, 0), (1, 0))).cumsum(0).cumsum(1)


def _mean(sums: np.ndarray, rows: slice, columns: slice) -> float:
    """The mean over a rectangle, of sums over all that is above and to the left; 0 outside of the picture."""
    (top, bottom), (left, right) = (
        (min(s.start, n - 1), min(s.stop, n - 1)) for s, n in zip((rows, columns), sums.shape, strict=True)
    )
    total = sums[bottom, right] - sums[top, right] + sums[top, left] - sums[bottom, left]
    return float(total / max((rows.stop - rows.start) * (columns.stop - columns.start), 1))
