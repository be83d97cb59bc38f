"""Instructions with pictures in them as samples of a run: scenes of the world, or a user's folders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image, ImageOps

from dit_heads.embedded.edits import Kind, edit_of
from dit_heads.embedded.pairs import VERSION
from dit_heads.embedded.world.render import render
from dit_heads.embedded.world.scenes import Scene, Split
from dit_heads.errors import InputError
from dit_heads.io.fingerprints import content_hash
from dit_heads.io.pictures import picture_in, read_image
from dit_heads.loras.tasks.fitted import fitted_picture
from dit_heads.loras.tasks.pairs import Shown
from dit_heads.tasks.multimodal import MultimodalInstruction, instruction_in

WORDS, TARGET, SOURCE = "instruction.txt", "target", "source"


@dataclass(frozen=True)
class EditPair:
    """An instruction, whose pictures are `Shown`, with its result and, for an edit, its source."""

    name: str
    instruction: MultimodalInstruction
    target: Shown
    source: Shown | None = None

    @property
    def pictures(self) -> list[Shown]:
        """All pictures of the pair."""
        return [self.target, *([] if self.source is None else [self.source]), *self.instruction.pictures]

    def mirrored(self) -> EditPair:
        """The pair with all of its pictures mirrored."""
        pictures = tuple(mirrored(picture) for picture in self.instruction.pictures)
        source = None if self.source is None else mirrored(self.source)
        instruction = replace(self.instruction, pictures=pictures)
        return replace(self, instruction=instruction, target=mirrored(self.target), source=source)


def mirrored(picture: Shown) -> Shown:
    """A picture, mirrored."""
    return Shown(f"{picture.key}-mirrored", picture.source, lambda: ImageOps.mirror(picture.make()))


class EditPairs(Protocol):
    """Pairs of one size. Nothing is decoded before it is asked for."""

    def __len__(self) -> int:
        """Number of pairs."""
        ...

    @property
    def key(self) -> str:
        """Names all pairs by content."""
        ...

    def pair(self, index: int, rng: np.random.Generator) -> EditPair:
        """A pair. `rng` decides what is left open, such as what is done to a scene."""
        ...


@dataclass(frozen=True)
class WorldEdits:
    """Edits of scenes of the blocks world.

    Args:
        split: of the scenes.
        count: number of scenes.
        size: height and width of pictures.
        kinds, weights: the tasks, and how often each comes relative to the others.
    """

    split: Split
    count: int
    size: int
    kinds: Sequence[Kind]
    weights: Sequence[float]

    def __len__(self) -> int:
        return self.count

    @property
    def key(self) -> str:
        """Names all pairs by content."""
        return content_hash("edits", str(VERSION), self.split, str(self.size), *self.kinds)

    def pair(self, index: int, rng: np.random.Generator) -> EditPair:
        """A pair about a scene, of a task that `rng` chooses."""
        shares = np.array(self.weights, float) / sum(self.weights)
        made = edit_of(self.split, self.kinds[int(rng.choice(len(self.kinds), p=shares))], index)
        name = f"{self.split} scene {index} ({made.kind}: {made.what})"
        references = [self._shown(scene, name) for scene in made.references]
        source = None if made.source is None else self._shown(made.source, name)
        instruction = MultimodalInstruction.of(made.prompt, references)
        return EditPair(name, instruction, self._shown(made.target, name), source)

    def _shown(self, scene: Scene, name: str) -> Shown:
        key = content_hash("scene", str(VERSION), str(self.size), repr(scene))
        return Shown(key, name, lambda: Image.fromarray(render(scene, self.size).image))


class EditFolder:
    """Pairs in the folders of a folder, each with `instruction.txt`, `target.png` (or .jpg, .webp), for an
    edit `source.png`, and the pictures of the instruction in `references/`: by the names in angle brackets,
    or in the order of their names for `<imagehere>`.

    Args:
        root: the folder of folders.
        size: height and width that all pictures get.

    Raises:
        InputError: for no folders, and for a folder that lacks a file or whose references do not fit.
    """

    def __init__(self, root: Path, size: tuple[int, int]) -> None:
        if not root.is_dir():
            raise InputError(f"root: expected a folder with a folder for each edit, got '{root}'")
        self.root, self.size = root, size
        self.folders = sorted(path for path in root.iterdir() if path.is_dir() and path.name[0] != ".")
        if not self.folders:
            raise InputError(f"root: expected folders with {WORDS} and {TARGET}.png in '{root}', got none")
        for folder in self.folders:
            self._read(folder)

    def __len__(self) -> int:
        return len(self.folders)

    @property
    def key(self) -> str:
        """Names all pairs by the names and sizes of their files."""
        files = sorted(path for path in self.root.rglob("*") if path.is_file())
        return content_hash(
            "edit folder", str(self.size), *(f"{p.relative_to(self.root)} {p.stat().st_size}" for p in files)
        )

    def pair(self, index: int, rng: np.random.Generator) -> EditPair:
        """The pair of a folder."""
        return self._read(self.folders[index])

    def _read(self, folder: Path) -> EditPair:
        words = folder / WORDS
        target, source = (picture_in(folder, stem, "root") for stem in (TARGET, SOURCE))
        if not words.is_file() or target is None:
            lacking = WORDS if not words.is_file() else f"{TARGET}.png"
            raise InputError(f"root: expected {lacking} in '{folder}', got none")
        instruction = instruction_in(folder, words.read_text("utf-8").strip(), self._reference)
        return EditPair(folder.name, instruction, self._shown(target), source and self._shown(source))

    def _reference(self, path: Path) -> Shown:
        """The whole picture, on black where it has another shape, as the pipeline reads references."""
        size = self.size[1], self.size[0]
        shown = self._shown(path)
        return replace(shown, make=lambda: ImageOps.pad(read_image(path), size, Image.Resampling.BICUBIC))

    def _shown(self, path: Path) -> Shown:
        key = content_hash("file", str(path.relative_to(self.root)), str(path.stat().st_size), str(self.size))
        return Shown(key, str(path), lambda: fitted_picture(read_image(path), self.size))
