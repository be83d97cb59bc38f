"""Pictures in folders, one a class, as questions about what they show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from dit_heads.embedded.pairs import ALONE
from dit_heads.errors import InputError, listed
from dit_heads.io.fingerprints import content_hash
from dit_heads.io.formats import PICTURE_SUFFIXES
from dit_heads.io.pictures import read_image
from dit_heads.tasks.annotations import Labels
from dit_heads.tasks.query import OTHER, Query, Task

MOST = 10  # answers in a question


class ClassFolder:
    """The pictures in the folders of a folder; the name of each is that of a class.

    Only names and sizes of files are read before a picture is asked for.

    Args:
        root: the folder of folders. "_" in their names becomes a space.
        every: whether each question names all classes, in one order.

    Raises:
        InputError: there are fewer than two classes, or one without pictures.
    """

    tasks: tuple[Task, ...] = ("classify",)

    def __init__(self, root: Path, every: bool = False) -> None:
        if not root.is_dir():
            raise InputError(f"root: expected a folder with a folder for each class, got '{root}'")
        folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
        found = [(folder, _pictures(folder)) for folder in folders]
        if len(found) < 2:
            raise InputError(f"root: expected folders of two classes or more in '{root}', got {len(found)}")
        if empty := [folder.name for folder, files in found if not files]:
            raise InputError(
                f"root: expected pictures in each class of '{root}', got none in {listed(empty)}"
            )
        self.root, self.every = root, every
        self.classes = tuple(folder.name.replace("_", " ") for folder, _ in found)
        pairs = zip(found, self.classes, strict=True)
        self.files = [(path, name) for (_, files), name in pairs for path in files]

    def __len__(self) -> int:
        return len(self.files)

    @property
    def key(self) -> str:
        """Names all pictures and answers by the names and sizes of the files."""
        names = [f"{p.relative_to(self.root)} {p.stat().st_size}" for p, _ in self.files]
        return content_hash("classes", *names)

    def name(self, index: int) -> str:
        """The file of a picture."""
        return str(self.files[index][0])

    def picture(self, index: int) -> Image.Image:
        """A picture. Raises InputError for a file that cannot be read."""
        return read_image(self.files[index][0])

    def question(self, index: int, task: Task, rng: np.random.Generator) -> Query:
        """Which of some classes a picture shows, the right one among them; or whether it shows a class."""
        if self.every:
            return Query(task, self.classes)
        right = self.files[index][1]
        others = [name for name in self.classes if name != right]
        if rng.random() < ALONE:
            name = right if rng.random() < 0.5 else str(rng.choice(others))
            return Query(task, (name, OTHER))
        count = int(rng.integers(1, min(len(others), MOST - 1) + 1))
        names = [right, *(str(name) for name in rng.choice(others, count, replace=False))]
        return Query(task, tuple(names[k] for k in rng.permutation(len(names))))

    def answer(self, index: int, query: Query) -> Labels:
        """The class of a picture, or `OTHER`."""
        right = self.files[index][1]
        return Labels.of(query.names, right if right in query.names else OTHER)


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES)
