"""Vision tasks by instruction (InstructCV, arXiv 2310.00390): a picture and a question in, a picture out.

Instruction, picture or both are left out of some samples, so that guidance towards each can be had later
(InstructPix2Pix, arXiv 2211.09800, section 3.2.1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from dit_heads.embedded.pairs import WorldPairs
from dit_heads.embedded.world.scenes import Split
from dit_heads.embedded.world.text import is_known
from dit_heads.errors import InputError
from dit_heads.families import pipelines_of
from dit_heads.families.conditioning import conditioning_of, seeing
from dit_heads.io.fingerprints import content_hash
from dit_heads.io.quiet import quiet_libraries
from dit_heads.loras.base import Encoders
from dit_heads.loras.config import InstructConfig, TrainConfig
from dit_heads.loras.sets.captions import warn_of_cuts
from dit_heads.loras.sets.grid import PIXELS
from dit_heads.loras.tasks.class_folder import ClassFolder
from dit_heads.loras.tasks.coco_folder import CocoFolder
from dit_heads.loras.tasks.depth_folder import DepthFolder
from dit_heads.loras.tasks.drawing import prompt_arguments, sampling_arguments
from dit_heads.loras.tasks.fitted import FittedPairs
from dit_heads.loras.tasks.pairs import Pairs, Question, Questions
from dit_heads.loras.tasks.task import EMPTY_CAPTION, Drawing, Example, left_out
from dit_heads.models import EMBEDDED, empty_transformer
from dit_heads.tasks.codecs import CODECS
from dit_heads.tasks.instructions import frame_of, instruction, number_of, read_phrases
from dit_heads.tasks.query import Query
from dit_heads.training.loop import Part
from dit_heads.training.widen import input_of, reading

FOLDERS: dict[str, Callable[[Path, InstructConfig], Pairs]] = {
    "classes": lambda root, chosen: ClassFolder(root, chosen.choices == "all"),
    "coco": lambda root, _: CocoFolder(root),
    "depth": lambda root, chosen: DepthFolder(root, chosen.depth_scale),
}
"""What reads a folder of pictures with answers, by the name that `pairs` has in the settings."""
FLAT = ("segment", "instances", "classify")  # tasks whose answers are flat colours, not pictures


@dataclass
class Instruct:
    """The task of vision by instruction.

    `asked` are the questions of the run, `held_out` those that are measured on the way, if any are.
    `extra_channels` as in `Task`: as many as latents have, for the conditioning by channels."""

    config: TrainConfig
    asked: Questions
    held_out: Questions | None = None
    extra_channels: int = 0
    encoders: Encoders | None = None

    @classmethod
    def of(cls, config: TrainConfig) -> Instruct:
        """The task of a run."""
        trained, measured = (_pairs(config, split) for split in ("train", "validation"))
        channels = latent_channels(config.model) if config.instruct.conditioning == "channels" else 0
        held_out = None if measured is None else _questions(config, measured)
        if held_out is not None:  # as users ask, so that runs can be compared
            held_out = replace(held_out, flip=False, words=_plain)
        assert trained is not None
        return cls(config, _questions(config, trained), held_out, channels)

    def plan(self, transformer: nn.Module) -> None:
        """Raise InputError for a source that the transformer has no place for."""
        kind, size = self.config.instruct.conditioning, self.config.data.sizes[0]
        covered = max(conditioning_of(transformer, kind).covered(*size))
        pipe = SimpleNamespace(transformer=transformer, vae_scale_factor=PIXELS["latents"])
        most = pipelines_of(transformer).largest_side(pipe)
        if most is not None and covered > most:
            raise InputError(
                f"sizes: expected pictures that this model reads within {most} pixels a side, got "
                f"{size[0]} x {size[1]}, which it reads as {covered} with the conditioning '{kind}'"
            )

    def prepare(self, encoders: Encoders) -> None:
        """Encode all that the steps of the run will ask, and what is measured."""
        self.encoders = encoders
        if encoders.state.is_main_process:
            shown = [*self._measured(), *self.asked.batch_at(0, self.config.optimization.batch_size)]
            named = {q.words: f"the question about {q.pairs.name(q.index)}" for q in shown}
            warn_of_cuts(encoders.pipe, named, encoders.tokens)
        if self.config.data.encode != "all":
            return
        chosen = self.config.optimization
        every = [q for step in range(chosen.steps) for q in self.asked.batch_at(step, chosen.batch_size)]
        every += self._measured()
        shown = {picture.key: picture for q in every for picture in (q.source, q.target)}
        words = dict.fromkeys([EMPTY_CAPTION, *(q.words for q in every)])
        encoders.fill(list(words), list(shown.values()))

    def contents(self) -> Mapping[str, Mapping[str, list[str]]]:
        """Hashes of the pictures and of the answers."""
        codecs = content_hash(*(f"{name} {CODECS[name]}" for name in self.asked.tasks))
        path = self.config.instruct.phrases
        more = [] if path is None else [content_hash(path.read_text("utf-8"))]
        return {"root": {self.config.instruct.pairs: [self.asked.pairs.key, codecs, *more]}}

    def parts(self) -> Mapping[str, nn.Module]:
        """None beside the transformer."""
        return {}

    def examples(self, part: Part, batch_size: int) -> list[Example]:
        """Questions with their answers. Arguments as of `Task.examples`."""
        places = range(batch_size)[part.index :: part.count]
        questions = self.asked.batch_at(part.step, batch_size)
        return [self._dropped(self._example(questions[k]), part.step, k) for k in places]

    def prior(self, part: Part, batch_size: int) -> list[Example]:
        """None."""
        return []

    def validation(self) -> Iterator[Example]:
        """Questions about scenes that no step asks about."""
        yield from map(self._example, self._measured())

    def embed(self, prompts: Sequence[str]) -> tuple[Float[Tensor, "B L D"], Float[Tensor, "B P"]]:
        """Embeddings of instructions."""
        return self._ready.embed(prompts)

    def drawings(self, pipe: Any) -> Iterator[Drawing]:
        """The answers of the model, with their distance from the right ones in levels of 255."""
        for question in self._measured():
            image = self._drawn(pipe, question)
            apart = np.asarray(image, float) - np.asarray(question.target.composite(), float)
            task, settings = question.query.task, {"prompt": question.words, "seed": self.config.seed}
            yield Drawing(
                f"{task}-{question.index}", image, settings, {f"{task} error": float(np.abs(apart).mean())}
            )

    def _drawn(self, pipe: Any, question: Question) -> Any:
        source = self._ready.latents(question.source)["latents"][None]
        height, width = self.config.data.sizes[0]
        call = sampling_arguments(self.config.watch, height, width, self.config.seed)
        is_wide, model = self.extra_channels, pipe.transformer
        with reading(model, source) if is_wide else seeing(model, [source], "tokens"):
            return pipe(**prompt_arguments(pipe, self._ready, question.words), **call).images[0]

    def _measured(self) -> list[Question]:
        """A question of each task about each scene for validation."""
        held_out = self.held_out
        if held_out is None:
            return []
        count = min(self.config.instruct.validation_scenes, len(held_out.pairs))
        return [
            held_out.asked(k * len(held_out.pairs) // count, task, 0, "validation")
            for k in range(count)
            for task in held_out.tasks
        ]

    def _example(self, question: Question) -> Example:
        source, target = (self._ready.latents(p)["latents"] for p in (question.source, question.target))
        shift = self.config.instruct.mask_shift if question.query.task in FLAT else 1.0
        made = Example(question.words, target, shift=shift, droppable=False)
        return replace(made, **{self._place: source})

    def _dropped(self, example: Example, step: int, place: int) -> Example:
        """A sample without its instruction, its picture, or both, in equal shares."""
        instruction, picture = left_out(self.config.instruct.dropout, self.config.seed, step, place)
        changed: dict[str, Any] = {}
        if instruction:
            changed["prompt"] = EMPTY_CAPTION
        if picture:
            changed[self._place] = torch.zeros_like(getattr(example, self._place))
        return replace(example, **changed)

    @property
    def _place(self) -> str:
        """The field of a sample that holds the source."""
        return {"channels": "source", "tokens": "reference"}[self.config.instruct.conditioning]

    @property
    def _ready(self) -> Encoders:
        assert self.encoders is not None, "not prepared"
        return self.encoders


def _pairs(config: TrainConfig, split: Split) -> Pairs | None:
    """The pictures of a split, all of the size that a run trains on; None if there are none to measure."""
    size, *more = config.data.sizes
    if more:
        raise InputError(f"sizes: expected one size, got {len(more) + 1}")
    measured, chosen = split == "validation", config.instruct
    if measured and not chosen.validation_scenes:
        return None
    if chosen.pairs == "world":
        return _world(size, split, chosen.validation_scenes if measured else chosen.scenes)
    root = config.watch.validation if measured else config.data.root
    return None if root is None else FittedPairs(FOLDERS[chosen.pairs](root, chosen), size)


def _world(size: tuple[int, int], split: Split, count: int) -> WorldPairs:
    if size[0] != size[1]:
        raise InputError(f"sizes: expected a square size for scenes of the world, got {size}")
    return WorldPairs(split, count, size[0])


def latent_channels(model: str) -> int:
    """Channels of a model's latents, by its config."""
    with quiet_libraries():
        transformer: Any = empty_transformer(model)
    return transformer.config.in_channels // input_of(transformer).inputs


def _questions(config: TrainConfig, pairs: Pairs) -> Questions:
    chosen = config.instruct
    if missing := [task for task in chosen.tasks if task not in pairs.tasks]:
        raise InputError(f"tasks: expected some of {', '.join(pairs.tasks)}, got {', '.join(missing)}")
    weights = chosen.task_weights or (1.0,) * len(chosen.tasks)
    words = _phrased(config) if chosen.paraphrase else _plain
    return Questions(pairs, chosen.tasks, weights, chosen.questions, config.data.flip, config.seed, words)


def _plain(query: Query, key: str) -> str:
    return CODECS[query.task].prompt(query)


def _phrased(config: TrainConfig) -> Callable[[Query, str], str]:
    """Instructions, half of them plain and half in the phrases for training, of which the embedded models get
    those that they can read."""
    path = config.instruct.phrases
    more = {} if path is None else read_phrases(path)
    reads = is_known if config.model in EMBEDDED else bool

    def phrased(query: Query, key: str) -> str:
        if number_of(f"plain {key}") % 2:
            return _plain(query, key)
        return instruction(query, key, "seen", more.get(frame_of(query), ()), reads)

    return phrased
