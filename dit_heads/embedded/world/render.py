"""Ray casting of a scene in numpy: the picture, its depth in metres and its instance ids, all exact.

All functions work on all rays at once: directions are [N, 3], distances along a ray [N], infinite where it
meets nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dit_heads.embedded.world.geometry import Floats, cast, dot, f32, shadowed, unit
from dit_heads.embedded.world.scenes import CAMERA_DISTANCE, CAMERA_HEIGHT, HALF_VIEW, Scene, Solid
from dit_heads.embedded.world.styles import STYLE_FILTERS
from dit_heads.tasks.annotations import box_of

SIZE = 128

PAINT = {
    "red": (0.86, 0.11, 0.10),
    "orange": (0.98, 0.52, 0.06),
    "yellow": (0.97, 0.88, 0.14),
    "green": (0.12, 0.60, 0.20),
    "blue": (0.13, 0.28, 0.86),
    "purple": (0.55, 0.18, 0.70),
    "white": (0.95, 0.95, 0.95),
    "black": (0.09, 0.09, 0.10),
}
# The second tone of a texture stays within its colour, so that "checked white" is never "checked black".
SECOND_TONE = {
    "red": (0.42, 0.04, 0.05),
    "orange": (0.55, 0.24, 0.02),
    "yellow": (0.58, 0.48, 0.05),
    "green": (0.55, 0.85, 0.50),
    "blue": (0.55, 0.72, 0.98),
    "purple": (0.85, 0.62, 0.95),
    "white": (0.55, 0.56, 0.60),
    "black": (0.42, 0.42, 0.44),
}
GROUND_PAINT = {
    "grass": (0.30, 0.54, 0.18),
    "sand": (0.87, 0.75, 0.48),
    "snow": (0.93, 0.95, 0.98),
    "stone": (0.47, 0.46, 0.46),
}
GROUND_WAVE = {"grass": (0.13, 7.0), "sand": (0.08, 3.5), "snow": (0.03, 2.5), "stone": (0.12, 3.0)}
HAZE_METRES, HORIZON_METRES = 24.0, 60.0


@dataclass(frozen=True)
class Light:
    """Colours of zenith, horizon and sun, the ambient share of light, and the direction towards the sun."""

    zenith: tuple[float, float, float]
    horizon: tuple[float, float, float]
    sun: tuple[float, float, float]
    ambient: float
    towards: tuple[float, float, float]


LIGHTS = {
    "day": Light((0.40, 0.64, 0.95), (0.82, 0.91, 0.98), (1.0, 0.98, 0.93), 0.42, (0.45, 0.75, -0.50)),
    "sunset": Light((0.42, 0.28, 0.52), (0.98, 0.60, 0.32), (1.0, 0.80, 0.62), 0.42, (-0.70, 0.42, -0.45)),
    "night": Light((0.03, 0.05, 0.16), (0.13, 0.17, 0.36), (0.66, 0.72, 0.95), 0.40, (0.40, 0.80, -0.45)),
}


@dataclass(frozen=True)
class Rendering:
    """A rendered scene of S x S pixels.

    Attributes:
        image: uint8 [S, S, 3].
        depth: metres along the view axis, float32 [S, S], infinite for the sky.
        ids: uint8 [S, S]; 0 is no solid, k is `scene.solids[k - 1]`.
    """

    image: NDArray[np.uint8]
    depth: Floats
    ids: NDArray[np.uint8]


def boxes(ids: NDArray[np.uint8], count: int) -> NDArray[np.int64]:
    """Boxes around the visible pixels of each solid.

    Args:
        ids: instance ids [S, S].
        count: number of solids.

    Returns:
        x0, y0, x1, y1 of each solid in pixels, [count, 4], with exclusive far edges. The box of a solid that
        is entirely hidden is all zeros.
    """
    out = np.zeros((count, 4), np.int64)
    for k in range(count):
        if (mask := ids == k + 1).any():
            out[k] = box_of(mask)
    return out


def _camera_axes() -> tuple[Floats, Floats, Floats, Floats]:
    eye = f32([0, CAMERA_HEIGHT, -CAMERA_DISTANCE])
    forward = unit(f32([0, 0.5, 0.1]) - eye)
    right = unit(np.cross(f32([0, 1, 0]), forward))
    return eye, forward, right, np.cross(forward, right)


EYE, FORWARD, RIGHT, UP = _camera_axes()


def rays(across: Floats, down: Floats) -> Floats:
    """Unit directions, [rows, columns, 3], through picture coordinates in [-1, 1], x right and y down."""
    x, y = np.float32(HALF_VIEW) * across, np.float32(HALF_VIEW) * down
    return unit(FORWARD + x[None, :, None] * RIGHT - y[:, None, None] * UP)


def render(scene: Scene, size: int = SIZE) -> Rendering:
    """Render a scene with 2 x 2 samples per pixel and a tent filter, and apply its style.

    Args:
        scene: the scene.
        size: side of the picture, in pixels.
    """
    n = 2 * size
    grid = ((np.arange(-1, n + 1) + 0.5) / n * 2 - 1).astype(np.float32)
    directions = rays(grid, grid).reshape(-1, 3)
    colour, distance, ids = _shade(scene, directions)
    side = n + 2
    image = _tent(np.clip(colour, 0, 1).reshape(side, side, 3)) ** np.float32(0.9)
    depth = (distance * (directions @ FORWARD)).reshape(side, side)[1:-1:2, 1:-1:2]
    labels = ids.reshape(side, side)[1:-1:2, 1:-1:2]
    styled = STYLE_FILTERS[scene.style](image, labels)
    return Rendering((np.clip(styled, 0, 1) * 255 + 0.5).astype(np.uint8), depth.astype(np.float32), labels)


def _tent(samples: Floats) -> Floats:
    """Average 4 x 4 samples with weights 1 3 3 1, in steps of two: [2n+2, 2n+2, 3] -> [n, n, 3]."""
    for _ in range(2):
        a, b, c, d = samples[:-3:2], samples[1:-2:2], samples[2:-1:2], samples[3::2]
        samples = np.swapaxes((a + 3 * b + 3 * c + d) / np.float32(8), 0, 1)
    return samples


def _shade(scene: Scene, directions: Floats) -> tuple[Floats, Floats, NDArray[np.uint8]]:
    light = LIGHTS[scene.sky]
    colour = _sky(scene, light, directions)
    distance = np.full(len(directions), np.inf, np.float32)
    ids = np.zeros(len(directions), np.uint8)
    _draw_ground(scene, light, directions, colour, distance)
    for k, solid in enumerate(scene.solids, 1):
        _draw_solid(scene, light, k, solid, directions, colour, distance, ids)
    return colour, distance, ids


def _sky(scene: Scene, light: Light, d: Floats) -> Floats:
    rise = np.clip(d[:, 1:2] * 2.6, 0, 1)
    colour = f32(light.horizon) * (1 - rise) + f32(light.zenith) * rise
    if scene.sky == "sunset":
        colour += _glow(d, (-0.22, 0.03, 0.97), 180) * f32([0.6, 0.42, 0.15])
    if scene.sky == "night":
        colour += _glow(d, (0.20, 0.06, 0.97), 900) * f32([1.2, 1.2, 1.0])
        above = np.flatnonzero(d[:, 1] > -0.02)
        rng = np.random.default_rng(int(scene.phase[3] * 1e6))
        for x, y in zip(rng.uniform(-0.36, 0.36, 9), rng.uniform(0.02, 0.12, 9), strict=True):
            colour[above] += _glow(d[above], (x, y, 1.0), 22_000) * np.float32(0.8)
    return colour.astype(np.float32)


def _glow(d: Floats, centre: tuple[float, float, float], sharpness: float) -> Floats:
    away = d - unit(f32(centre))
    return np.exp(-dot(away, away) * np.float32(sharpness))[:, None]


def _lit(paint: Floats, light: Light, lambert: Floats) -> Floats:
    fill = light.ambient * (f32(light.horizon) * 0.35 + 0.65)
    return paint * (fill + (1 - light.ambient) * f32(light.sun) * lambert[:, None])


def _draw_ground(scene: Scene, light: Light, d: Floats, colour: Floats, distance: Floats) -> None:
    with np.errstate(divide="ignore"):
        t = np.where(d[:, 1] < 0, -EYE[1] / d[:, 1], np.float32(np.inf))
    on = np.flatnonzero(t < HORIZON_METRES)
    x = EYE + t[on, None] * d[on]
    towards = unit(f32(light.towards))
    lambert = np.where(shadowed(list(scene.solids), x, towards), 0, max(towards[1], 0.5)).astype(np.float32)
    paint = f32(GROUND_PAINT[scene.ground]) * _ground_pattern(scene, x, t[on])[:, None]
    haze = (1 - np.exp(-t[on] / HAZE_METRES))[:, None]
    colour[on] = _lit(paint, light, lambert) * (1 - haze) + f32(light.horizon) * haze
    distance[on] = t[on]


def _ground_pattern(scene: Scene, x: Floats, t: Floats) -> Floats:
    amplitude, f = GROUND_WAVE[scene.ground]
    a, b, c, _ = scene.phase
    if scene.ground == "stone":
        wave = np.where((np.floor(x[:, 0] * 1.2 + a) + np.floor(x[:, 2] * 1.2 + b)) % 2 > 0, 0.7, -0.7)
    else:
        wave = np.sin(f * x[:, 0] + a + 1.3 * np.sin(f * 0.6 * x[:, 2] + b)) * np.sin(f * 1.1 * x[:, 2] + c)
    return (1 + amplitude * wave * np.exp(-t / 12)).astype(np.float32)


def _draw_solid(
    scene: Scene,
    light: Light,
    k: int,
    solid: Solid,
    d: Floats,
    colour: Floats,
    distance: Floats,
    ids: NDArray[np.uint8],
) -> None:
    centre = f32([solid.x, 0.85 * solid.radius, solid.z]) - EYE
    reach = np.linalg.norm(centre)
    near = np.flatnonzero(d @ centre > reach * np.cos(np.arctan2(1.5 * solid.radius, reach)))
    t, normal, hit = cast(solid, EYE, d[near])
    front = t < distance[near]
    at, t, normal, hit = near[front], t[front], normal[front], hit[front]
    position = EYE + t[:, None] * d[at]
    towards = unit(f32(light.towards))
    lambert = np.clip(normal @ towards, 0, 1)
    others = [s for s in scene.solids if s is not solid]
    lambert = np.where(shadowed(others, position + np.float32(1e-3) * normal, towards), 0, lambert)
    shade = np.float32(0.82) + np.float32(0.18) * np.clip(normal[:, 1:2] + 0.6, 0, 1)
    painted = _lit(_paint(solid, hit), light, lambert) * shade
    colour[at] = _polish(painted, light, d[at], normal, towards, lambert) if solid.shiny else painted
    distance[at], ids[at] = t, k


def _polish(
    painted: Floats, light: Light, d: Floats, normal: Floats, towards: Floats, lambert: Floats
) -> Floats:
    """Add a highlight of the sun and the reflection of a fifth of the sky."""
    mirrored_sun = towards - 2 * (normal @ towards)[:, None] * normal
    highlight = (np.clip(dot(mirrored_sun, d), 0, 1) ** 24 * (lambert > 0))[:, None]
    up = np.clip((d - 2 * dot(d, normal)[:, None] * normal)[:, 1:2], 0, 1)
    sky = f32(light.horizon) * (1 - up) + f32(light.zenith) * up
    return painted * np.float32(0.8) + sky * np.float32(0.2) + highlight * np.float32(0.45) * f32(light.sun)


def _paint(solid: Solid, x: Floats) -> Floats:
    """Colours at points [N, 3] of the unit frame: plain, or two tones in a pattern fixed to the solid."""
    first, second = f32(PAINT[solid.colour]), f32(SECOND_TONE[solid.colour])
    if solid.texture == "plain":
        return np.broadcast_to(first, x.shape)
    if solid.texture == "striped":
        mark = np.sin(x[:, 1] * 8.0) > 0.1
    elif solid.texture == "checked":
        mark = np.floor(x * 1.9 + 50.25).sum(-1) % 2 > 0
    else:
        mark = np.sin(np.arctan2(x[:, 2], x[:, 0]) * 5) * np.sin(x[:, 1] * 7.0) > 0.4
    return np.where(mark[:, None], second, first)
