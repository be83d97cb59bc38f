"""Pictures with questions and answers as samples of a run: which question, which words, mirrored or not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageOps

from dit_heads.io.fingerprints import content_hash
from dit_heads.tasks.annotations import Annotation, Boxes, Depth, Instances, Segmentation
from dit_heads.tasks.codecs import CODECS
from dit_heads.tasks.query import Query, Task
from dit_heads.training.sampler import draws_at


class Pairs(Protocol):
    """Pictures of one size, with questions and answers. Nothing is decoded before it is asked for."""

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What can be asked."""
        ...

    def __len__(self) -> int:
        """Number of pictures."""
        ...

    @property
    def key(self) -> str:
        """Names all pictures and answers by content."""
        ...

    def name(self, index: int) -> str:
        """Where a picture comes from, for messages."""
        ...

    def picture(self, index: int) -> Image.Image:
        """A picture."""
        ...

    def question(self, index: int, task: Task, rng: np.random.Generator) -> Query:
        """A question of a task about a picture."""
        ...

    def answer(self, index: int, query: Query) -> Annotation:
        """The answer to a question about a picture."""
        ...


@dataclass(frozen=True)
class Shown:
    """A picture that is made when it is needed: `key` names its pixels, `source` where it comes from."""

    key: str
    source: str
    make: Callable[[], Image.Image]

    def composite(self) -> Image.Image:
        """The pixels."""
        return self.make()


@dataclass(frozen=True)
class Question:
    """A question about picture `index` of `pairs`, in words, mirrored or not."""

    pairs: Pairs
    index: int
    query: Query
    words: str
    flip: bool = False

    @cached_property
    def source(self) -> Shown:
        """The picture that is asked about."""
        return self._shown("source", lambda: self._picture)

    @cached_property
    def target(self) -> Shown:
        """The answer as a picture."""
        codec = CODECS[self.query.task]
        return self._shown(f"{self.query} by {codec}", self._encoded)

    def annotation(self) -> Annotation:
        """The answer."""
        found = self.pairs.answer(self.index, self.query)
        return mirrored(found) if self.flip else found

    @property
    def _picture(self) -> Image.Image:
        picture = self.pairs.picture(self.index)
        return ImageOps.mirror(picture) if self.flip else picture

    def _encoded(self) -> Image.Image:
        pixels = CODECS[self.query.task].encode(self.annotation(), self.query, np.asarray(self._picture))
        return Image.fromarray(pixels)

    def _shown(self, what: str, make: Callable[[], Image.Image]) -> Shown:
        key = content_hash(self.pairs.key, str(self.index), what, str(self.flip))
        return Shown(key, f"{self.pairs.name(self.index)} ({self.query.task})", make)


@dataclass(frozen=True)
class Questions:
    """The questions of a run: every picture comes once an epoch, with a task and a question of its own.

    Args:
        pairs: pictures with answers.
        tasks, weights: what is asked, and how often relative to the others.
        variety: number of different questions of a task about a picture.
        flip: whether half of the draws are mirrored, picture and answer together.
        seed: of all choices.
        words: (query, key) -> an instruction; the same key always gives the same one.
    """

    pairs: Pairs
    tasks: Sequence[Task]
    weights: Sequence[float]
    variety: int
    flip: bool
    seed: int
    words: Callable[[Query, str], str]

    def batch_at(self, step: int, batch_size: int) -> list[Question]:
        """The questions of batch `step`: a function of the arguments and the seed alone."""
        draws = draws_at(step, batch_size, [range(len(self.pairs))], self.seed)
        return [self.drawn(index, epoch) for index, epoch in draws]

    def drawn(self, index: int, epoch: int) -> Question:
        """What is asked about a picture in an epoch."""
        rng = np.random.default_rng((4, self.seed, epoch, index))
        shares = np.array(self.weights, float) / sum(self.weights)
        task = self.tasks[int(rng.choice(len(self.tasks), p=shares))]
        question = self.asked(index, task, int(rng.integers(self.variety)), f"{index} {epoch}")
        return replace(question, flip=self.flip and bool(rng.integers(2)))

    def asked(self, index: int, task: Task, number: int, key: str) -> Question:
        """Question `number` of a task about a picture, in the words that `key` chooses."""
        rng = np.random.default_rng((5, self.seed, index, self.tasks.index(task), number))
        query = self.pairs.question(index, task, rng)
        return Question(self.pairs, index, query, self.words(query, f"{self.seed} {key}"))


def mirrored(annotation: Annotation) -> Annotation:
    """What is known of a picture, for the mirrored picture."""
    if isinstance(annotation, Segmentation):
        return replace(annotation, labels=annotation.labels[:, ::-1])
    if isinstance(annotation, Instances):
        return replace(annotation, masks=annotation.masks[..., ::-1])
    if isinstance(annotation, Depth):
        flipped: Any = {name: getattr(annotation, name)[:, ::-1] for name in ("metres", "valid", "sky")}
        return replace(annotation, **flipped)
    if isinstance(annotation, Boxes):
        x0, y0, x1, y1 = annotation.boxes.T
        width = annotation.size[1]
        return replace(annotation, boxes=np.stack([width - x1, y0, width - x0, y1], 1))
    return annotation
