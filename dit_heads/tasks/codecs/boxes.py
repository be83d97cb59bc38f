"""Detection: a frame around each object, its colour the class; on the picture, or filled on black."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from dit_heads.errors import InputError
from dit_heads.tasks.annotations import Boxes
from dit_heads.tasks.codecs.frames import Box, Evidence, Finder, frame_mask, line_width
from dit_heads.tasks.codecs.pixels import Levels, Picture, distance, levels
from dit_heads.tasks.instructions import canonical
from dit_heads.tasks.palette import FRAMES, rgb
from dit_heads.tasks.query import ANYTHING, Query, colours_of

WHITE = (255, 255, 255)


@dataclass(frozen=True)
class BoxCodec:
    """Boxes to a picture and back.

    Args:
        line: Width of a line as a share of the picture's shorter side.
        filled: Whether boxes are filled with their colour, on black and with white frames, instead of being
            hollow on the picture.
        radius: Levels from a line's colour at which there is no evidence of it left.
    """

    line: float = 1 / 21
    filled: bool = False
    radius: float = 160.0

    def prompt(self, query: Query) -> str:
        """The plain instruction for these classes."""
        return canonical(query)

    def encode(self, annotation: Boxes, query: Query, source: Any = None) -> Picture:
        """Boxes of the query's classes, rounded to pixels; large ones are drawn first."""
        shown = _shown(annotation, query)
        if self.filled:
            return self._filled(shown, annotation.size)
        picture = self._background(annotation.size, source)
        for box, colour in shown:
            picture[frame_mask(box, annotation.size, line_width(annotation.size, self.line))] = colour
        return picture

    def decode(self, image: Any, query: Query, source: Any = None) -> Boxes:
        """Boxes with scores, which are how clearly all four lines of each are seen.

        Args:
            source: The picture without boxes, if there is one: its own coloured lines are then not evidence.
        """
        pixels = levels(image)
        before = None if source is None else levels(source)
        if before is not None and before.shape != pixels.shape:
            raise InputError(f"source: expected the shape {pixels.shape} of the image, got {before.shape}")
        finder = Finder(line_width(pixels.shape[:2], self.line))
        if self.filled:
            return self._read_filled(pixels, query, finder)
        maps = [self._evidence(pixels, before, k, query) for k in range(len(query.names))]
        found = [finder(own, _strongest(maps[:k] + maps[k + 1 :])) for k, own in enumerate(maps)]
        return Boxes(
            np.concatenate([boxes for boxes, _ in found]),
            tuple(name for name, (boxes, _) in zip(query.names, found, strict=True) for _ in boxes),
            pixels.shape[:2],
            np.concatenate([scores for _, scores in found]),
        )

    def _background(self, size: tuple[int, int], source: Any) -> Picture:
        if source is None:
            raise InputError("source: expected the picture to draw hollow boxes on, got none")
        picture = np.round(levels(source)).astype(np.uint8)
        if picture.shape[:2] != size:
            raise InputError(f"source: expected {size[0]} x {size[1]} pixels, got {picture.shape[:2]}")
        return picture

    def _evidence(self, pixels: Levels, before: Levels | None, k: int, query: Query) -> Evidence:
        """How much each pixel has a class's colour, and no other's, more than it had before."""
        colours = box_colours(query)
        away = distance(pixels, colours[k])
        evidence = self._closeness(away)
        if before is not None:
            evidence = np.clip(evidence - self._closeness(distance(before, colours[k])), 0, 1)
        for other in np.delete(colours, k, 0):
            evidence[distance(pixels, other) < away] = 0
        return evidence

    def _closeness(self, away: Evidence) -> Evidence:
        """1 up to 0.3 of the radius, as an autoencoder dulls thin lines, and 0 from the radius on."""
        return np.clip((self.radius - away) / (0.7 * self.radius), 0, 1)

    # --- filled ---

    def _filled(self, shown: list[tuple[Box, np.ndarray]], size: tuple[int, int]) -> Picture:
        picture, width = np.zeros((*size, 3), np.uint8), line_width(size, self.line)
        for (x0, y0, x1, y1), colour in shown:
            picture[y0:y1, x0:x1] = colour
        for box, _ in shown:
            picture[frame_mask(box, size, width)] = WHITE
        return picture

    def _read_filled(self, pixels: Levels, query: Query, finder: Finder) -> Boxes:
        boxes, scores = finder(self._closeness(distance(pixels, WHITE)))
        away = np.stack([distance(pixels, colour) for colour in box_colours(query)])
        names: list[str] = []
        free = distance(pixels, WHITE) > self.radius / 2
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        for k in np.argsort(area, kind="stable"):  # small ones lie in front of large ones
            x0, y0, x1, y1 = boxes[k]
            inside = (slice(y0, y1), slice(x0, x1))
            votes = np.bincount(away[:, *inside].argmin(0)[free[inside]], minlength=len(query.names))
            names.append(query.names[int(votes.argmax())])
            free[inside] = False
        named = dict(zip(np.argsort(area, kind="stable").tolist(), names, strict=True))
        classes = tuple(named[k] for k in range(len(boxes)))
        return Boxes(boxes, classes, pixels.shape[:2], scores)


def box_colours(query: Query) -> Float[np.ndarray, "n 3"]:
    """The colour of each class in levels: the pure one where a colour has one."""
    return np.array([FRAMES.get(name) or rgb(name) for name in colours_of(query)], float)


def _strongest(maps: list[Evidence]) -> Evidence | None:
    return np.max(maps, 0) if maps else None


def _shown(annotation: Boxes, query: Query) -> list[tuple[Box, np.ndarray]]:
    """Boxes of the query's classes in whole pixels, each with its colour, from large to small."""
    colours = box_colours(query)
    shown = []
    for box, name in zip(annotation.boxes, annotation.classes, strict=True):
        k = query.names.index(ANYTHING) if ANYTHING in query.names else -1
        k = query.names.index(name) if name in query.names else k
        if k >= 0:
            shown.append((_whole(box, annotation.size), colours[k]))
    return sorted(shown, key=lambda each: -_area(each[0]))


def _whole(box: Float[np.ndarray, " 4"], size: tuple[int, int]) -> Box:
    """A box rounded to pixels, at least one wide and high."""
    x0, y0, x1, y1 = (int(v) for v in np.floor(box + 0.5))
    x0, y0 = min(x0, size[1] - 1), min(y0, size[0] - 1)
    return x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)


def _area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])
