"""Vision tasks by instruction (InstructCV, arXiv 2310.00390): a picture and a question in, a picture out.

Instruction, picture or both are left out of some samples, so that guidance towards each can be had later
(InstructPix2Pix, arXiv 2211.09800, section 3.2.1).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from dit_heads.embedded.pairs import WorldPairs
from dit_heads.embedded.world.scenes import Split
from dit_heads.errors import InputError
from dit_heads.families import pipelines_of
from dit_heads.families.conditioning import conditioning_of, seeing
from dit_heads.io.fingerprints import content_hash
from dit_heads.loras.base import Encoders
from dit_heads.loras.config import TrainConfig
from dit_heads.loras.sets.grid import PIXELS
from dit_heads.loras.tasks.drawing import prompt_arguments, sampling_arguments
from dit_heads.loras.tasks.pairs import Pairs, Question, Questions
from dit_heads.loras.tasks.task import EMPTY_CAPTION, Drawing, Example
from dit_heads.models import empty_transformer, quiet_loading
from dit_heads.tasks.codecs import CODECS
from dit_heads.training.generators import keyed_generator
from dit_heads.training.loop import Part
from dit_heads.training.widen import input_of, reading

FLAT = ("segment", "instances", "classify")  # tasks whose answers are flat colours, not pictures


@dataclass
class Instruct:
    """The task of vision by instruction.

    `asked` are the questions of the run, `held_out` those that are measured on the way. `extra_channels` as
    in `Task`: as many as latents have, for the conditioning by channels."""

    config: TrainConfig
    asked: Questions
    held_out: Questions
    extra_channels: int = 0
    encoders: Encoders | None = None

    @classmethod
    def of(cls, config: TrainConfig) -> Instruct:
        """The task of a run."""
        chosen = config.instruct
        trained = _questions(config, world(config, "train", chosen.scenes))
        measured = _questions(config, world(config, "validation", max(chosen.validation_scenes, 1)))
        channels = latent_channels(config.model) if chosen.conditioning == "channels" else 0
        return cls(config, trained, replace(measured, flip=False), channels)

    def plan(self, transformer: nn.Module) -> None:
        """Raise InputError for a source that the transformer has no place for."""
        kind, (side, _) = self.config.instruct.conditioning, self.config.data.sizes[0]
        covered = max(conditioning_of(transformer, kind).covered(side, side))
        pipe = SimpleNamespace(transformer=transformer, vae_scale_factor=PIXELS["latents"])
        most = pipelines_of(transformer).largest_side(pipe)
        if most is not None and covered > most:
            raise InputError(
                f"sizes: expected pictures that this model reads within {most} pixels a side, got {side} x "
                f"{side}, which it reads as {covered} with the conditioning '{kind}'"
            )

    def prepare(self, encoders: Encoders) -> None:
        """Encode all that the steps of the run will ask, and what is measured."""
        self.encoders = encoders
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
        return {"root": {self.config.instruct.pairs: [self.asked.pairs.key, codecs]}}

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
        with reading(model, source) if is_wide else seeing(model, source, "tokens"):
            return pipe(**prompt_arguments(pipe, self._ready, question.words), **call).images[0]

    def _measured(self) -> list[Question]:
        """A question of each task about each scene for validation."""
        count = self.config.instruct.validation_scenes
        return [
            self.held_out.asked(index, task, 0, "validation")
            for index in range(count)
            for task in self.held_out.tasks
        ]

    def _example(self, question: Question) -> Example:
        source, target = (self._ready.latents(p)["latents"] for p in (question.source, question.target))
        shift = self.config.instruct.mask_shift if question.query.task in FLAT else 1.0
        made = Example(question.words, target, shift=shift, droppable=False)
        return replace(made, **{self._place: source})

    def _dropped(self, example: Example, step: int, place: int) -> Example:
        """A sample without its instruction, its picture, or both, in equal shares."""
        generator = keyed_generator(self.config.seed, "dropout", step, place)
        share, draw = self.config.instruct.dropout, torch.rand((), generator=generator).item()
        changed: dict[str, Any] = {}
        if draw < share or 2 * share <= draw < 3 * share:
            changed["prompt"] = EMPTY_CAPTION
        if share <= draw < 3 * share:
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


def world(config: TrainConfig, split: Split, count: int) -> WorldPairs:
    """Scenes of the embedded world, of the size that a run trains on."""
    (height, width), *more = config.data.sizes
    if more or height != width:
        raise InputError(f"sizes: expected one square size for scenes of the world, got {config.data.sizes}")
    return WorldPairs(split, count, height)


def latent_channels(model: str) -> int:
    """Channels of a model's latents, by its config."""
    with quiet_loading():
        transformer: Any = empty_transformer(model)
    return transformer.config.in_channels // input_of(transformer).inputs


def _questions(config: TrainConfig, pairs: Pairs) -> Questions:
    chosen = config.instruct
    if missing := [task for task in chosen.tasks if task not in pairs.tasks]:
        raise InputError(f"tasks: expected some of {', '.join(pairs.tasks)}, got {', '.join(missing)}")
    weights = chosen.task_weights or (1.0,) * len(chosen.tasks)
    words = lambda query, key: CODECS[query.task].prompt(query)  # noqa: E731
    return Questions(pairs, chosen.tasks, weights, chosen.questions, config.data.flip, config.seed, words)
