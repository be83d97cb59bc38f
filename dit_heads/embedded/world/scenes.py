"""Scenes of the blocks world, each drawn from a seed. Splits never share a seed.

A scene is one to three solids on a ground under a sky, seen by a fixed camera. Lengths are metres, angles
radians; x points right, y up, z away from the camera.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from dit_heads.errors import InputError

SHAPES = ("sphere", "cube", "cylinder", "cone", "pyramid")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")
TEXTURES = ("plain", "striped", "dotted", "checked")
SIZES = ("small", "large")
GROUNDS = ("grass", "sand", "snow", "stone")
SKIES = ("day", "sunset", "night")
STYLES = ("photo", "line drawing", "pixel art", "poster", "vintage")

RADIUS = {"small": 0.36, "large": 0.60}
CAMERA_HEIGHT, CAMERA_DISTANCE, HALF_VIEW = 1.55, 4.0, math.tan(math.radians(21.0))

# Never shown in training: a model that generates these has learned colour and shape separately.
HELD_OUT = frozenset({("purple", "cone"), ("green", "cylinder"), ("white", "pyramid"), ("orange", "sphere")})

Split = Literal["train", "validation", "test"]
SPLITS: dict[str, range] = {
    "train": range(10_000_000),
    "validation": range(10_000_000, 20_000_000),
    "test": range(20_000_000, 30_000_000),
}


@dataclass(frozen=True)
class Solid:
    """One object on the ground at (x, z), in metres, turned by `yaw` radians."""

    shape: str
    colour: str
    texture: str = "plain"
    size: str = "large"
    shiny: bool = False
    x: float = 0.0
    z: float = 0.0
    yaw: float = 0.0

    @property
    def radius(self) -> float:
        """Half the width, in metres."""
        return RADIUS[self.size]

    @property
    def distance(self) -> float:
        """Distance from the camera along the ground, in metres."""
        return CAMERA_DISTANCE + self.z

    @property
    def bearing(self) -> float:
        """Tangent of the horizontal angle from the view axis. It orders solids from left to right."""
        return self.x / self.distance

    @property
    def half_width(self) -> float:
        """Half the apparent width, in the unit of `bearing`."""
        return self.radius / self.distance


@dataclass(frozen=True)
class Scene:
    """Solids from left to right and their surroundings. The four numbers of `phase` vary ground and stars."""

    solids: tuple[Solid, ...]
    ground: str = "grass"
    sky: str = "day"
    style: str = "photo"
    phase: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)


def left_to_right(solids: list[Solid]) -> tuple[Solid, ...]:
    """Solids in the order in which the camera sees them."""
    return tuple(sorted(solids, key=lambda s: s.bearing))


def split_seed(split: Split, index: int) -> int:
    """The seed of scene `index` in a split. Raises InputError beyond the split's range."""
    seeds = SPLITS[split]
    if not 0 <= index < len(seeds):
        raise InputError(f"index: expected 0 <= index < {len(seeds)}, got {index}")
    return seeds[index]


def sample_scene(seed: int, *, count: int | None = None, held_out: bool = False) -> Scene:
    """The scene of a seed.

    Args:
        seed: the seed.
        count: number of solids. Default: random, from 1 to 3.
        held_out: whether one solid has a combination of colour and shape that is held out of training. If
            not, no solid has one.
    """
    rng = np.random.default_rng(seed)
    n = count or int(rng.choice([1, 2, 3], p=[0.42, 0.38, 0.20]))
    looks = [_sample_look(rng) for _ in range(n)]
    if held_out:
        colour, shape = sorted(HELD_OUT)[int(rng.integers(len(HELD_OUT)))]
        looks[0] = replace(looks[0], colour=colour, shape=shape)
    return Scene(
        left_to_right(_place(rng, looks)),
        ground=str(rng.choice(GROUNDS)),
        sky=str(rng.choice(SKIES)),
        style=str(rng.choice(STYLES, p=[0.68, 0.08, 0.08, 0.08, 0.08])),
        phase=tuple(rng.uniform(0, 6, 4).tolist()),  # pyright: ignore[reportArgumentType]
    )


def _sample_look(rng: np.random.Generator) -> Solid:
    """A solid with random attributes that has not been placed yet."""
    while True:
        solid = Solid(
            shape=str(rng.choice(SHAPES)),
            colour=str(rng.choice(COLOURS)),
            texture=str(rng.choice(TEXTURES, p=[0.46, 0.18, 0.18, 0.18])),
            size=str(rng.choice(SIZES)),
            shiny=bool(rng.random() < 0.2),
        )
        if (solid.colour, solid.shape) not in HELD_OUT:
            return solid


def _place(rng: np.random.Generator, looks: list[Solid]) -> list[Solid]:
    """Place solids apart on the ground, mostly inside of the picture and at most half hidden."""
    spread = 0.5 if len(looks) == 1 else 1.2
    for attempt in range(10_000):
        crowd = 1.0 - min(attempt / 400, 1.0) * 0.5  # three large ones only fit with some overlap
        solids = [replace(s, x=rng.uniform(-spread, spread), z=rng.uniform(-0.8, 0.9)) for s in looks]
        if all(_inside(s) for s in solids) and all(
            _apart(a, b, crowd) for i, a in enumerate(solids) for b in solids[:i]
        ):
            return [replace(s, yaw=rng.uniform(0, math.pi / 2)) for s in solids]
    raise RuntimeError("no place found for the solids")  # pragma: no cover


def _inside(s: Solid) -> bool:
    return abs(s.bearing) + 0.6 * s.half_width < HALF_VIEW


def _apart(a: Solid, b: Solid, crowd: float) -> bool:
    touching = math.hypot(a.x - b.x, a.z - b.z) < 1.15 * (a.radius + b.radius)
    return not touching and abs(a.bearing - b.bearing) > 0.85 * crowd * (a.half_width + b.half_width)
