"""Pictures with annotations in COCO's form, as questions about what is there, and some about what is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dit_heads.errors import InputError, listed
from dit_heads.io.fingerprints import content_hash
from dit_heads.io.pictures import read_image
from dit_heads.tasks.annotations import Annotation, Boxes, Instances, Segmentation
from dit_heads.tasks.coco import checked_truth, mask_of
from dit_heads.tasks.query import Query, Task

FILE = "annotations.json"
ABSENT = 0.15  # share of questions about a class that is not there
SEVERAL = 0.3  # share of questions about two or three classes at once


class CocoFolder:
    """A folder with `annotations.json` and the pictures that it names.

    The file and the names of pictures are read at once, masks and pictures when they are asked for. Boxes are
    cut at the borders of their pictures. A crowd is a part of a segmentation; about a class that has one in a
    picture, nobody asks for boxes or instances there.

    Args:
        root: the folder.

    Raises:
        InputError: for a file that is not of this form, and pictures that are missing.
    """

    def __init__(self, root: Path) -> None:
        path = root / FILE
        if not path.is_file():
            raise InputError(f"root: expected a folder with '{FILE}' and pictures, got '{root}'")
        self.root, self._text = root, path.read_bytes()
        try:
            found = json.loads(self._text)
        except ValueError as error:
            raise InputError(f"root: expected JSON in '{path}': {error}") from error
        checked_truth(found, str(path))
        self.images: list[dict[str, Any]] = found["images"]
        self.classes: dict[int, str] = {each["id"]: each["name"] for each in found["categories"]}
        self.objects: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in self.images}
        for entry in found["annotations"]:
            self.objects[entry["image_id"]].append(entry)
        self._masked = all(entry.get("segmentation") for entry in found["annotations"])
        there = {str(file.relative_to(root)) for file in root.rglob("*") if file.is_file()}
        if missing := [each["file_name"] for each in self.images if each["file_name"] not in there]:
            raise InputError(f"root: expected all pictures of '{path}', got none named {listed(missing)}")

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What can be asked: boxes, and masks where all objects have them."""
        return ("segment", "instances", "detect") if self._masked else ("detect",)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def key(self) -> str:
        """Names all pictures and answers by the annotations and by the names and sizes of files."""
        sizes = [f"{e['file_name']} {(self.root / e['file_name']).stat().st_size}" for e in self.images]
        return content_hash("coco", content_hash(self._text.decode(errors="replace")), *sizes)

    def name(self, index: int) -> str:
        """The file of a picture."""
        return str(self.root / self.images[index]["file_name"])

    def picture(self, index: int) -> Image.Image:
        """A picture. Raises InputError for one that cannot be read or has not the size of its annotations."""
        image = read_image(Path(self.name(index)))
        height, width = self._size(index)
        if (image.height, image.width) != (height, width):
            raise InputError(
                f"image: expected {width} x {height} pixels as '{FILE}' says, got {image.width} x "
                f"{image.height} in '{self.name(index)}'"
            )
        return image

    def question(self, index: int, task: Task, rng: np.random.Generator) -> Query:
        """A question about classes, mostly about one that is there."""
        objects = self.objects[self.images[index]["id"]]
        there = {self.classes[entry["category_id"]] for entry in objects}
        crowds = {self.classes[entry["category_id"]] for entry in objects if entry.get("iscrowd")}
        askable = sorted(set(self.classes.values()) - (set() if task == "segment" else crowds))
        present, absent = ([n for n in askable if (n in there) is kind] for kind in (True, False))
        first = present if present and (not absent or rng.random() >= ABSENT) else absent
        if not first:
            raise InputError(f"question: every class is a crowd in '{self.name(index)}'")
        names = [str(rng.choice(first))]
        if task != "instances" and rng.random() < SEVERAL:
            others = [name for name in askable if name not in names]
            count = min(int(rng.integers(1, 3)), len(others))
            names += [str(name) for name in rng.choice(others, count, replace=False)] if count else []
        return Query(task, tuple(names[k] for k in rng.permutation(len(names))))

    def answer(self, index: int, query: Query) -> Annotation:
        """The answer to a question; where classes overlap in a segmentation, the one that is named last."""
        kept = [
            (entry, self.classes[entry["category_id"]])
            for entry in self.objects[self.images[index]["id"]]
            if self.classes[entry["category_id"]] in query.names
        ]
        size = self._size(index)
        if query.task == "detect":
            boxes = np.array([entry["bbox"] for entry, _ in kept], float).reshape(-1, 4)
            boxes[:, 2:] += boxes[:, :2]
            return Boxes.clipped(boxes, [name for _, name in kept], size)
        masks = [(mask_of(entry["segmentation"], size), name) for entry, name in kept]
        if query.task == "segment":
            labels = np.zeros(size, np.int64)
            for mask, name in sorted(masks, key=lambda pair: query.names.index(pair[1])):
                labels[mask] = query.names.index(name) + 1
            return Segmentation(labels, query.names)
        seen = [(mask, name) for mask, name in masks if mask.any()]
        stacked = np.stack([mask for mask, _ in seen]) if seen else np.zeros((0, *size), bool)
        return Instances(stacked, tuple(name for _, name in seen))

    def _size(self, index: int) -> tuple[int, int]:
        return self.images[index]["height"], self.images[index]["width"]
