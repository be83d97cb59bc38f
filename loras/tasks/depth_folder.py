"""Pictures with depth maps as PNG files of 16 bits, in the layouts of NYUv2 and KITTI."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from dit_heads.errors import InputError, listed
from dit_heads.io.fingerprints import content_hash
from dit_heads.io.formats import PICTURE_SUFFIXES
from dit_heads.io.pictures import read_bytes, read_image, size_of
from dit_heads.tasks.annotations import Depth
from dit_heads.tasks.depth_files import read_depth_png
from dit_heads.tasks.query import Query, Task

PICTURES = ("rgb", "image", "images")
MAPS = ("depth", "groundtruth_depth")


class DepthFolder:
    """Pictures in `rgb` (or `image`, `images`) and their depth in `depth` (or `groundtruth_depth`), by names.

    A map's name is that of its picture; KITTI's "groundtruth_depth" in it stands for "image".

    Args:
        root: the folder.
        scale: levels a metre: 1000 in NYUv2, 256 in KITTI.

    Raises:
        InputError: for missing folders, and for maps without pictures and pictures without maps.
    """

    tasks: tuple[Task, ...] = ("depth",)

    def __init__(self, root: Path, scale: float) -> None:
        pictures, maps = _folder(root, PICTURES), _folder(root, MAPS)
        files = {path.stem: path for path in pictures.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES}
        found = {path.stem.replace("groundtruth_depth", "image"): path for path in maps.glob("*.png")}
        if lonely := sorted(files.keys() ^ found.keys()):
            raise InputError(f"root: expected a picture and a map of each name, got one of {listed(lonely)}")
        if not files:
            raise InputError(f"root: expected pictures in '{pictures}', got none")
        self.root, self.scale = root, scale
        self.files = [(files[stem], found[stem]) for stem in sorted(files)]

    def __len__(self) -> int:
        return len(self.files)

    @property
    def key(self) -> str:
        """Names all pictures and answers by the names and sizes of the files, and the scale."""
        names = [f"{p.relative_to(self.root)} {p.stat().st_size}" for pair in self.files for p in pair]
        return content_hash("depth", str(self.scale), *names)

    def name(self, index: int) -> str:
        """The file of a picture."""
        return str(self.files[index][0])

    def picture(self, index: int) -> Image.Image:
        """A picture. Raises InputError for a file that cannot be read."""
        return read_image(self.files[index][0])

    def question(self, index: int, task: Task, rng: np.random.Generator) -> Query:
        """The only question there is."""
        return Query(task)

    def answer(self, index: int, query: Query) -> Depth:
        """The depth of a picture. Raises InputError for a map of another size."""
        picture, path = self.files[index]
        depth, size = read_depth_png(path, self.scale), size_of(read_bytes(picture))
        if depth.metres.shape != size:
            raise InputError(
                f"depth: expected the size {size} of '{picture}', got {depth.metres.shape} in '{path}'"
            )
        return depth


def _folder(root: Path, names: tuple[str, ...]) -> Path:
    found = [root / name for name in names if (root / name).is_dir()]
    if len(found) != 1:
        raise InputError(f"root: expected one folder named {', '.join(names)} in '{root}', got {len(found)}")
    return found[0]
