"""Depth as a picture: a curve that spreads metres over [0, 1], and colours along which that is written.

Curves: linear (InstructCV, arXiv 2310.00390, 0 to 10 m), sqrt (Edit2Perceive, arXiv 2511.18673), log (FE2E,
arXiv 2509.04338), and the power transform with lambda = -3 (Vision Banana, arXiv 2604.20329).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from dit_heads.errors import InputError
from dit_heads.tasks.annotations import Depth
from dit_heads.tasks.codecs.pixels import Levels, Picture, distance, levels
from dit_heads.tasks.instructions import canonical
from dit_heads.tasks.query import Query

Map = Float[np.ndarray, "h w"]
POWER = -3.0


@dataclass(frozen=True)
class Curve:
    """A rising function of metres, and its inverse."""

    of: Callable[[Any], Any]
    back: Callable[[Any], Any]
    from_zero: bool = True


CURVES = {
    "linear": Curve(lambda d: d, lambda u: u),
    "sqrt": Curve(np.sqrt, np.square),
    "log": Curve(np.log, np.exp, from_zero=False),
    # ((1 + d / |lambda - 1|) ** lambda - 1) / lambda, but for a factor; it has a limit for d to infinity.
    "power": Curve(
        lambda d: -((1 + d / abs(POWER - 1)) ** POWER), lambda u: ((-u) ** (1 / POWER) - 1) * abs(POWER - 1)
    ),
}


@dataclass(frozen=True)
class Path:
    """A walk through the cube of colours from corner to corner, and the colours beside it that mean sky and
    unknown. Corners, and the two colours, are of 0 and 1 a channel."""

    corners: tuple[tuple[int, int, int], ...]
    sky: tuple[int, int, int]
    unknown: tuple[int, int, int]

    @property
    def steps(self) -> int:
        """How many depths it tells apart in 8 bits a channel."""
        return 255 * (len(self.corners) - 1) + 1


PATHS = {
    "grey": Path(((0, 0, 0), (1, 1, 1)), sky=(0, 0, 1), unknown=(1, 0, 0)),
    # All along these five edges one channel is full and one empty, so black and white are 255 levels away.
    "walk": Path(
        ((0, 0, 1), (0, 1, 1), (0, 1, 0), (1, 1, 0), (1, 0, 0), (1, 0, 1)), sky=(1, 1, 1), unknown=(0, 0, 0)
    ),
}


@dataclass(frozen=True)
class DepthCodec:
    """Depth to a picture and back.

    Args:
        curve: One of `CURVES`.
        path: One of `PATHS`; nearest comes first on it.
        near: Metres at the beginning of the path; what is nearer is drawn so. Above 0 for log.
        far: Metres at its end; what is farther is drawn so.
        metric: False for relative depth: each picture's own range is stretched to `near` to `far` before,
            and depth comes back in [0, 1], right up to scale and shift.
    """

    curve: str = "log"
    path: str = "walk"
    near: float = 2.0
    far: float = 60.0
    metric: bool = True

    def __post_init__(self) -> None:
        for name, known in (("curve", CURVES), ("path", PATHS)):
            if getattr(self, name) not in known:
                raise InputError(f"{name}: expected one of {', '.join(known)}, got {getattr(self, name)!r}")
        if not 0 <= self.near < self.far < np.inf:
            raise InputError(f"near, far: expected 0 <= near < far, got {self.near:g} and {self.far:g}")
        if self.near == 0 and not CURVES[self.curve].from_zero:
            raise InputError(f"near: expected above 0 for the curve {self.curve}, got 0")

    def prompt(self, query: Query) -> str:
        """The plain instruction for depth."""
        return canonical(query)

    def encode(self, annotation: Depth, query: Query | None = None, source: Any = None) -> Picture:
        """A picture of depth; 8 bits round it, to `resolution` metres at worst."""
        path = PATHS[self.path]
        picture = _along(path, self._share(self._ranged(annotation)))
        picture[annotation.sky] = np.multiply(path.sky, 255)
        picture[~annotation.valid & ~annotation.sky] = np.multiply(path.unknown, 255)
        return picture

    def decode(self, image: Any, query: Query | None = None, source: Any = None) -> Depth:
        """Depth of a picture: each pixel takes the nearest place on the path, or sky, or unknown."""
        path, pixels = PATHS[self.path], levels(image)
        share, away = _project(path, pixels)
        sky, unknown = (distance(pixels, np.multiply(c, 255)) for c in (path.sky, path.unknown))
        valid = (away <= sky) & (away <= unknown)
        metres = self._metres(share)
        if not self.metric:
            metres = (metres - self.near) / (self.far - self.near)
        return Depth(metres, valid, ~valid & (sky <= unknown), self.metric)

    def resolution(self, metres: float) -> float:
        """The distance in metres of two neighbouring steps of the picture at a depth."""
        step = 1 / (PATHS[self.path].steps - 1)
        share = min(float(self._share(np.array(metres))), 1 - step)
        return float(self._metres(np.array(share + step)) - self._metres(np.array(share)))

    def _ranged(self, depth: Depth) -> Map:
        """Metres of all pixels, within near to far; those without a depth get `near`."""
        metres = np.where(depth.valid, depth.metres, np.nan).astype(np.float64)
        if not self.metric and depth.valid.any():
            low, high = np.nanmin(metres), np.nanmax(metres)
            metres = self.near + (metres - low) / max(high - low, 1e-12) * (self.far - self.near)
        elif self.metric and not depth.metric:
            raise InputError("depth: expected metres for a metric codec, got relative depth")
        return np.clip(np.nan_to_num(metres, nan=self.near), self.near, self.far)

    def _share(self, metres: Any) -> Any:
        f = CURVES[self.curve].of
        return (f(np.clip(metres, self.near, self.far)) - f(self.near)) / (f(self.far) - f(self.near))

    def _metres(self, share: Any) -> Any:
        curve = CURVES[self.curve]
        low, high = curve.of(self.near), curve.of(self.far)
        return np.clip(curve.back(low + share * (high - low)), self.near, self.far)


def _along(path: Path, share: Map) -> Picture:
    """The colour at each share, 0 to 1, of a path."""
    corners = np.array(path.corners, float)
    at = np.clip(share, 0, 1) * (len(corners) - 1)
    edge = np.minimum(at.astype(int), len(corners) - 2)
    part = (at - edge)[..., None]
    return np.round(255 * (corners[edge] * (1 - part) + corners[edge + 1] * part)).astype(np.uint8)


def _project(path: Path, pixels: Levels) -> tuple[Map, Map]:
    """The share of the nearest place on a path, and the distance from there in levels."""
    corners = np.array(path.corners, np.float32) * 255
    best, share = np.full(pixels.shape[:2], np.inf, np.float32), np.zeros(pixels.shape[:2])
    for k, (a, b) in enumerate(itertools.pairwise(corners)):
        part = np.clip((pixels - a) @ (b - a) / ((b - a) @ (b - a)), 0, 1)
        away = np.linalg.norm(pixels - a - part[..., None] * (b - a), axis=-1)
        nearer = away < best
        best[nearer], share[nearer] = away[nearer], (k + part[nearer]) / (len(corners) - 1)
    return share, best
