"""Where rays meet solids: exact intersections in numpy, without a mesh.

All functions work on all rays at once: origins `p` and directions `v` are [N, 3], distances along a ray [N],
infinite where the ray misses. Solids of unit size stand on y = 0.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dit_heads.embedded.world.scenes import Solid

Floats = NDArray[np.floating]  # float32 throughout
Hit = tuple[Floats, Floats]  # distance [N], outward normal [N, 3]


def f32(values: ArrayLike) -> Floats:
    """An array of float32."""
    return np.asarray(values, np.float32)


def unit(v: Floats) -> Floats:
    """Vectors along the last axis, of length 1."""
    return v / np.linalg.norm(v, axis=-1, keepdims=True)


def dot(a: Floats, b: Floats) -> Floats:
    """Inner products along the last axis."""
    return np.einsum("...i,...i->...", a, b)


def _sphere(p: Floats, v: Floats) -> Hit:
    q = p - f32([0, 1, 0])
    a, b, c = dot(v, v), dot(q, v), dot(q, q) - 1
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
    normal = np.where(on_top[:, None], f32([0, 1, 0]), x * f32([1, 0, 1]) / radius)
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
    return t, unit(np.stack([x[:, 0], k * (height - x[:, 1]), x[:, 2]], -1))


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
    """Where rays first meet a solid.

    Args:
        solid: the solid, placed and turned in the world.
        origin: origin of each ray, or of all, [N, 3] or [3], in metres.
        direction: directions of the rays, [N, 3].

    Returns:
        The distance along each ray, [N] (infinite for a miss); the normal of the surface in the world,
        [N, 3]; and the point in the solid's own unit frame, [N, 3].
    """
    c, s = np.cos(solid.yaw), np.sin(solid.yaw)
    turn = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]], np.float32)
    v = direction @ turn / np.float32(solid.radius)
    p = (origin - f32([solid.x, 0, solid.z])) @ turn / np.float32(solid.radius)
    p = np.broadcast_to(p, v.shape)
    with np.errstate(all="ignore"):  # rays that miss give nan or inf on purpose
        t, normal = HITS[solid.shape](p, v)
    t = np.where(np.isfinite(t) & (t > 1e-4), t, np.float32(np.inf)).astype(np.float32)
    hit = p + np.where(np.isfinite(t), t, 0)[:, None] * v
    return t, normal @ turn.T, hit


def shadowed(solids: list[Solid], origin: Floats, towards: Floats) -> NDArray[np.bool_]:
    """Whether one of the solids stands between each point, [N, 3], and the light, whose direction is [3]."""
    dark = np.zeros(len(origin), bool)
    for s in solids:
        centre = f32([s.x, 0.85 * s.radius, s.z]) - origin
        along = centre @ towards
        passes = dot(centre, centre) - along**2 < (1.6 * s.radius) ** 2
        near = np.flatnonzero(passes & (along > -2 * s.radius))
        if len(near):
            t, _, _ = cast(s, origin[near], np.broadcast_to(towards, (len(near), 3)))
            dark[near] |= np.isfinite(t)
    return dark
