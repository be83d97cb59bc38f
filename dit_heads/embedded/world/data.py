"""Rendered scenes on disk: shards of the training split, and small validation and test sets.

They can be rendered again from their seeds, so they are kept in a cache folder: `$DIT_HEADS_CACHE`, or
`~/.cache/dit-heads`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from dit_heads.embedded.world.render import Rendering, render
from dit_heads.embedded.world.scenes import (
    COLOURS,
    SHAPES,
    SIZES,
    TEXTURES,
    Scene,
    Split,
    sample_scene,
    split_seed,
)
from dit_heads.io.atomic import atomic_file

SHARD = 4000
CELL = 16  # side of an image token in pixels (8x autoencoder, 2 x 2 patches)
ATTRIBUTES = {"shape": SHAPES, "colour": COLOURS, "texture": TEXTURES, "size": SIZES}
COVERAGE_CHANNELS = sum(map(len, ATTRIBUTES.values()))


def cache_folder() -> Path:
    """The folder of renders and training runs, which need not exist."""
    return Path(os.environ.get("DIT_HEADS_CACHE", "~/.cache/dit-heads")).expanduser()


@contextmanager
def made_once(path: Path) -> Iterator[bool]:
    """Whether a file of the cache is there. Inside, no other process makes it.

    Args:
        path: of the file.
    """
    if path.exists():
        yield True
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        yield path.exists()


@lru_cache(2**14)
def scene_of(split: Split, index: int) -> Scene:
    """Scene `index` of a split. Raises ValueError beyond its range."""
    return sample_scene(split_seed(split, index))


def coverage(scene: Scene, ids: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The attributes that each image token shows.

    Args:
        scene: the scene.
        ids: instance ids of its rendering, [S, S].

    Returns:
        For each token, the share of its pixels, from 0 to 255, on solids of each shape, colour, texture and
        size: [S / 16, S / 16, 19].
    """
    n = len(ids) // CELL
    out = np.zeros((n, n, COVERAGE_CHANNELS), np.float32)
    for k, solid in enumerate(scene.solids, 1):
        share = (ids == k).reshape(n, CELL, n, CELL).mean((1, 3))
        first = 0
        for name, values in ATTRIBUTES.items():
            out[..., first + values.index(getattr(solid, name))] += share
            first += len(values)
    return np.round(out * 255).astype(np.uint8)


def _render_one(job: tuple[Split, int]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    scene = scene_of(*job)
    done: Rendering = render(scene)
    return done.image, coverage(scene, done.ids)


def render_shard(split: Split, shard: int, workers: int | None = None, count: int = SHARD) -> Path:
    """Render a shard of a split into an .npz file, unless it exists.

    Args:
        split: the split.
        shard: number of the shard; it holds the scenes from `shard * count` on.
        workers: number of processes. Default: one per core.
        count: number of scenes per shard.

    Returns:
        The path of the file.
    """
    return _shard("scenes-v1", split, shard, workers, count, _render_one, ("images", "coverage"))


def _shard(
    folder: str,
    split: Split,
    shard: int,
    workers: int | None,
    count: int,
    one: Callable[[tuple[Split, int]], tuple[NDArray[Any], ...]],
    names: tuple[str, ...],
) -> Path:
    """A file of what `one` makes of each scene of a shard, each of its arrays under its name."""
    path = cache_folder() / folder / f"{split}-{shard:03d}-{count}.npz"
    with made_once(path) as is_there:
        if is_there:
            return path
        jobs = [(split, i) for i in range(shard * count, (shard + 1) * count)]
        with ProcessPoolExecutor(workers) as pool:
            parts = zip(*pool.map(one, jobs, chunksize=min(50, max(1, count // 16))), strict=True)
        with atomic_file(path) as file:
            arrays: dict[str, Any] = {name: np.stack(part) for name, part in zip(names, parts, strict=True)}
            np.savez(file, **arrays)
    return path


def _render_truth(job: tuple[Split, int]) -> tuple[NDArray[Any], ...]:
    done = render(scene_of(*job))
    return done.image, done.depth, done.ids


def load_truth(
    split: Split, count: int, workers: int | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8]]:
    """The first scenes of a split with their truth. Missing shards are rendered.

    Args:
        split: the split.
        count: number of scenes.
        workers: number of processes. Default: one per core.

    Returns:
        Images [n, 128, 128, 3], depth in metres and instance ids, both [n, 128, 128], as `render` has them.
    """
    size = min(count, SHARD)
    parts = []
    for shard in range(-(-count // size)):
        names = ("images", "depth", "ids")
        with np.load(_shard("truth-v1", split, shard, workers, size, _render_truth, names)) as data:
            parts.append([data[name] for name in names])
    images, depth, ids = (np.concatenate(part)[:count] for part in zip(*parts, strict=True))
    return images, depth, ids


def load_shards(
    split: Split, shards: int, workers: int | None = None, count: int = SHARD
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """Images [n, 128, 128, 3] and coverage [n, 8, 8, 19], shard by shard. Missing shards are rendered."""
    for shard in range(shards):
        with np.load(render_shard(split, shard, workers, count)) as data:
            yield data["images"], data["coverage"]
