"""Ray casting of a scene in numpy: picture, depth in metres and instance ids, exact and without a mesh.

Every function works on all rays at once: origins and directions are [N, 3], distances along a ray [N] (inf =
miss).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dit_heads.embedded.world.scenes import CAMERA_DISTANCE, CAMERA_HEIGHT, HALF_VIEW, Scene, Solid
from dit_heads.embedded.world.styles import STYLE_FILTERS

Floats = NDArray[np.floating]  # float32 throughout
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
    """`image` uint8 [S, S, 3]; `depth` metres along the view axis, float32 [S, S], inf = sky; `ids` uint8
    [S, S], 0 = no solid, k = `scene.solids[k - 1]`."""

    image: NDArray[np.uint8]
    depth: Floats
    ids: NDArray[np.uint8]


def boxes(ids: NDArray[np.uint8], count: int) -> NDArray[np.int64]:
    """Boxes of the visible pixels of each solid, [count, 4] as x0, y0, x1, y1 with the far edges exclusive; a
    solid that is hidden altogether has a box of zeros."""
    out = np.zeros((count, 4), np.int64)
    for k in range(count):
        rows, columns = np.nonzero(ids == k + 1)
        if len(rows):
            out[k] = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    return out


# --- geometry: solids of unit size stand on y = 0 ---

Hit = tuple[Floats, Floats]  # distance [N], outward normal [N, 3]


def _f32(values: ArrayLike) -> Floats:
    return np.asarray(values, np.float32)


def _unit(v: Floats) -> Floats:
    return v / np.linalg.norm(v, axis=-1, keepdims=True)


def _dot(a: Floats, b: Floats) -> Floats:
    return np.einsum("...i,...i->...", a, b)


def _sphere(p: Floats, v: Floats) -> Hit:
    q = p - _f32([0, 1, 0])
    a, b, c = _dot(v, v), _dot(q, v), _dot(q, q) - 1
    t = (-b - np.sqrt(b * b - a * c)) / a  # nan where missed
    return t, q + t[:, None] * v


def _convex(normals: NDArray[np.float64], offsets: NDArray[np.float64]) -> Callable[[Floats, Floats], Hit]:
    """All x with normals @ x <= offsets: the ray is inside between its last entry and first exit."""
    n, d = normals.astype(np.float32), offsets.astype(np.float32)

    def hit(p: Floats, v: Floats) -> Hit:
        towards = v @ n.T  # [N, planes]
        t = (d - p @ n.T) / towards
        entry = np.where(towards < 0, t, -np.inf)
        leave = np.where(towards > 0, t, np.inf).min(-1)
        face = entry.argmax(-1)
        enter = np.take_along_axis(entry, face[:, None], 1)[:, 0]
        return np.where(enter < leave, enter, np.nan), n[face]

    return hit


def _cylinder(p: Floats, v: Floats, radius: float = 0.8, height: float = 1.7) -> Hit:
    a = v[:, 0] ** 2 + v[:, 2] ** 2
    b = p[:, 0] * v[:, 0] + p[:, 2] * v[:, 2]
    c = p[:, 0] ** 2 + p[:, 2] ** 2 - radius**2
    side = (-b - np.sqrt(b * b - a * c)) / a
    x = p + side[:, None] * v
    side = np.where((x[:, 1] > 0) & (x[:, 1] < height), side, np.nan)
    top = (height - p[:, 1]) / v[:, 1]
    y = p + top[:, None] * v
    top = np.where((v[:, 1] < 0) & (y[:, 0] ** 2 + y[:, 2] ** 2 < radius**2), top, np.nan)
    on_top = np.isfinite(top)
    normal = np.where(on_top[:, None], _f32([0, 1, 0]), x * _f32([1, 0, 1]) / radius)
    return np.where(on_top, top, side), normal


def _cone(p: Floats, v: Floats, radius: float = 1.0, height: float = 2.0) -> Hit:
    k = (radius / height) ** 2
    y = height - p[:, 1]
    a = v[:, 0] ** 2 + v[:, 2] ** 2 - k * v[:, 1] ** 2
    b = p[:, 0] * v[:, 0] + p[:, 2] * v[:, 2] + k * y * v[:, 1]
    c = p[:, 0] ** 2 + p[:, 2] ** 2 - k * y * y
    root = np.sqrt(b * b - a * c)
    t = np.full(len(p), np.inf, np.float32)
    for sign in (-1.0, 1.0):  # either root may lie on the mirrored half of the double cone
        s = (-b + sign * root) / a
        level = p[:, 1] + s * v[:, 1]
        t = np.where((s > 0) & (level > 0) & (level < height) & (s < t), s, t)
    x = p + np.where(np.isfinite(t), t, 0)[:, None] * v
    return t, _unit(np.stack([x[:, 0], k * (height - x[:, 1]), x[:, 2]], -1))


def _faces(*rows: tuple[float, float, float, float]) -> Callable[[Floats, Floats], Hit]:
    planes = np.array(rows)
    length = np.linalg.norm(planes[:, :3], axis=1)
    return _convex(planes[:, :3] / length[:, None], planes[:, 3] / length)


_CUBE = 0.82
_BASE, _HEIGHT = 0.95, 1.7
HITS: dict[str, Callable[[Floats, Floats], Hit]] = {
    "sphere": _sphere,
    "cube": _faces(
        (1, 0, 0, _CUBE),
        (-1, 0, 0, _CUBE),
        (0, 0, 1, _CUBE),
        (0, 0, -1, _CUBE),
        (0, 1, 0, 2 * _CUBE),
        (0, -1, 0, 0),
    ),
    "cylinder": _cylinder,
    "cone": _cone,
    "pyramid": _faces(
        (_HEIGHT, _BASE, 0, _HEIGHT * _BASE),
        (-_HEIGHT, _BASE, 0, _HEIGHT * _BASE),
        (0, _BASE, _HEIGHT, _HEIGHT * _BASE),
        (0, _BASE, -_HEIGHT, _HEIGHT * _BASE),
        (0, -1, 0, 0),
    ),
}


def cast(solid: Solid, origin: Floats, direction: Floats) -> tuple[Floats, Floats, Floats]:
    """Distance along each ray [N], inf = miss; world normal [N, 3]; hit in the solid's unit frame [N, 3]."""
    c, s = np.cos(solid.yaw), np.sin(solid.yaw)
    turn = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]], np.float32)
    v = direction @ turn / np.float32(solid.radius)
    p = (origin - _f32([solid.x, 0, solid.z])) @ turn / np.float32(solid.radius)
    p = np.broadcast_to(p, v.shape)
    with np.errstate(all="ignore"):  # rays that miss give nan or inf on purpose
        t, normal = HITS[solid.shape](p, v)
    t = np.where(np.isfinite(t) & (t > 1e-4), t, np.float32(np.inf)).astype(np.float32)
    hit = p + np.where(np.isfinite(t), t, 0)[:, None] * v
    return t, normal @ turn.T, hit


def _shadowed(solids: list[Solid], origin: Floats, towards: Floats) -> NDArray[np.bool_]:
    dark = np.zeros(len(origin), bool)
    for s in solids:
        centre = _f32([s.x, 0.85 * s.radius, s.z]) - origin
        along = centre @ towards
        passes = _dot(centre, centre) - along**2 < (1.6 * s.radius) ** 2
        near = np.flatnonzero(passes & (along > -2 * s.radius))
        if len(near):
            t, _, _ = cast(s, origin[near], np.broadcast_to(towards, (len(near), 3)))
            dark[near] |= np.isfinite(t)
    return dark


# --- the picture ---


def _camera_axes() -> tuple[Floats, Floats, Floats, Floats]:
    eye = _f32([0, CAMERA_HEIGHT, -CAMERA_DISTANCE])
    forward = _unit(_f32([0, 0.5, 0.1]) - eye)
    right = _unit(np.cross(_f32([0, 1, 0]), forward))
    return eye, forward, right, np.cross(forward, right)


EYE, FORWARD, RIGHT, UP = _camera_axes()


def rays(across: Floats, down: Floats) -> Floats:
    """Unit directions through picture coordinates in [-1, 1], x right, y down: [rows, columns, 3]."""
    x, y = np.float32(HALF_VIEW) * across, np.float32(HALF_VIEW) * down
    return _unit(FORWARD + x[None, :, None] * RIGHT - y[:, None, None] * UP)


def render(scene: Scene, size: int = SIZE) -> Rendering:
    """The scene in `size` x `size` pixels: 2 x 2 samples a pixel, tent-filtered, then the style."""
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
    """Average 4 x 4 samples with weights 1 3 3 1 a side, two samples apart: [2n+2, 2n+2, 3] -> [n, n, 3]."""
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
    colour = _f32(light.horizon) * (1 - rise) + _f32(light.zenith) * rise
    if scene.sky == "sunset":
        colour += _glow(d, (-0.22, 0.03, 0.97), 180) * _f32([0.6, 0.42, 0.15])
    if scene.sky == "night":
        colour += _glow(d, (0.20, 0.06, 0.97), 900) * _f32([1.2, 1.2, 1.0])
        above = np.flatnonzero(d[:, 1] > -0.02)
        rng = np.random.default_rng(int(scene.phase[3] * 1e6))
        for x, y in zip(rng.uniform(-0.36, 0.36, 9), rng.uniform(0.02, 0.12, 9), strict=True):
            colour[above] += _glow(d[above], (x, y, 1.0), 22_000) * np.float32(0.8)
    return colour.astype(np.float32)


def _glow(d: Floats, centre: tuple[float, float, float], sharpness: float) -> Floats:
    away = d - _unit(_f32(centre))
    return np.exp(-_dot(away, away) * np.float32(sharpness))[:, None]


def _lit(paint: Floats, light: Light, lambert: Floats) -> Floats:
    fill = light.ambient * (_f32(light.horizon) * 0.35 + 0.65)
    return paint * (fill + (1 - light.ambient) * _f32(light.sun) * lambert[:, None])


def _draw_ground(scene: Scene, light: Light, d: Floats, colour: Floats, distance: Floats) -> None:
    with np.errstate(divide="ignore"):
        t = np.where(d[:, 1] < 0, -EYE[1] / d[:, 1], np.float32(np.inf))
    on = np.flatnonzero(t < HORIZON_METRES)
    x = EYE + t[on, None] * d[on]
    towards = _unit(_f32(light.towards))
    lambert = np.where(_shadowed(list(scene.solids), x, towards), 0, max(towards[1], 0.5)).astype(np.float32)
    paint = _f32(GROUND_PAINT[scene.ground]) * _ground_pattern(scene, x, t[on])[:, None]
    haze = (1 - np.exp(-t[on] / HAZE_METRES))[:, None]
    colour[on] = _lit(paint, light, lambert) * (1 - haze) + _f32(light.horizon) * haze
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
    centre = _f32([solid.x, 0.85 * solid.radius, solid.z]) - EYE
    reach = np.linalg.norm(centre)
    near = np.flatnonzero(d @ centre > reach * np.cos(np.arctan2(1.5 * solid.radius, reach)))
    t, normal, hit = cast(solid, EYE, d[near])
    front = t < distance[near]
    at, t, normal, hit = near[front], t[front], normal[front], hit[front]
    position = EYE + t[:, None] * d[at]
    towards = _unit(_f32(light.towards))
    lambert = np.clip(normal @ towards, 0, 1)
    others = [s for s in scene.solids if s is not solid]
    lambert = np.where(_shadowed(others, position + np.float32(1e-3) * normal, towards), 0, lambert)
    shade = np.float32(0.82) + np.float32(0.18) * np.clip(normal[:, 1:2] + 0.6, 0, 1)
    painted = _lit(_paint(solid, hit), light, lambert) * shade
    colour[at] = _polish(painted, light, d[at], normal, towards, lambert) if solid.shiny else painted
    distance[at], ids[at] = t, k


def _polish(
    painted: Floats, light: Light, d: Floats, normal: Floats, towards: Floats, lambert: Floats
) -> Floats:
    """A highlight of the sun, and a fifth of the sky mirrored."""
    mirrored_sun = towards - 2 * (normal @ towards)[:, None] * normal
    highlight = (np.clip(_dot(mirrored_sun, d), 0, 1) ** 24 * (lambert > 0))[:, None]
    up = np.clip((d - 2 * _dot(d, normal)[:, None] * normal)[:, 1:2], 0, 1)
    sky = _f32(light.horizon) * (1 - up) + _f32(light.zenith) * up
    return painted * np.float32(0.8) + sky * np.float32(0.2) + highlight * np.float32(0.45) * _f32(light.sun)


def _paint(solid: Solid, x: Floats) -> Floats:
    """Colour at points [N, 3] of the unit frame: plain, or two tones in a pattern fixed to the solid."""
    first, second = _f32(PAINT[solid.colour]), _f32(SECOND_TONE[solid.colour])
    if solid.texture == "plain":
        return np.broadcast_to(first, x.shape)
    if solid.texture == "striped":
        mark = np.sin(x[:, 1] * 8.0) > 0.1
    elif solid.texture == "checked":
        mark = np.floor(x * 1.9 + 50.25).sum(-1) % 2 > 0
    else:
        mark = np.sin(np.arctan2(x[:, 2], x[:, 0]) * 5) * np.sin(x[:, 1] * 7.0) > 0.4
    return np.where(mark[:, None], second, first)
