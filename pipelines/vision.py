"""Vision tasks of a pipeline that paints answers: segmentation, instances, boxes, depth, classes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import groupby
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dit_heads.errors import InputError, whole_number
from dit_heads.families import pipelines_of
from dit_heads.loras.sets.captions import warn_of_cuts
from dit_heads.pipelines.apart import apart, together
from dit_heads.pipelines.ensembles import joined
from dit_heads.pipelines.sources import Frame, Pixels, pictures_of
from dit_heads.pipelines.vision_output import VisionOutput, output_of
from dit_heads.tasks.annotations import Annotation
from dit_heads.tasks.codecs import CODECS, Codec
from dit_heads.tasks.query import ANYTHING, Query
from dit_heads.tasks.router import route

Names = str | Sequence[str]


class VisionTasks:
    """The vision tasks of `InstructPipeline`. All take these arguments beside their own:

    Args:
        image: A picture or several, of any sizes, as for a call of the pipeline.
        prompt: The instruction, in place of the plain one of the task.
        codec: How answers are drawn and read, in place of the task's own.
        at_once: Whether several names are asked for in one instruction, each by a colour of its own. By
            default each name has its own question, and the answers are joined. A `prompt` asks at once.
        ensemble_size: Number of answers, from other noise, that are joined. Several give an uncertainty.
        batch_size: Number of answers that are painted at once. It changes no result.
        processing_resolution: The longest side in pixels that the model works at: None for the one that it
            was made for, 0 for that of the picture.
        generator: One for all pictures, in turn, or a list with one a picture. Noise is drawn picture by
            picture.
        output_type: "np" or "pt", the form of predictions and uncertainties.
        call: Everything else goes to the pipeline: `num_inference_steps`, `guidance_scale`,
            `image_guidance_scale` ...

    Every answer lies on the grid of its picture.
    """

    pipe: Any
    conditioning: str
    text_tokens: int | None
    frame: Callable[[list[Pixels], int], Frame]
    latents: Callable[[list[Pixels]], Tensor]
    _image_scale: Callable[[float | None], float]
    _narrow: Callable[[int], AbstractContextManager[None]]
    _check_names: Callable[[Mapping[str, Any]], None]
    _painted: Callable[..., Tensor]

    def ask(
        self, image: Any, question: str | Query, known: Sequence[str] = (), **options: Any
    ) -> VisionOutput:
        """The answer to a question in free words, by the task that `tasks.router` understands; the output's
        `query` says what was understood.

        Args:
            question: Such as "where are the cubes?", or a query that is ready.
            known: Names of classes that may be asked for; any, by default.

        Raises:
            InputError: for a text in which no task or no name is understood, with what can be asked.
        """
        if not isinstance(question, str | Query):
            raise InputError(f"question: expected text, got {type(question).__name__}")
        query = question if isinstance(question, Query) else route(question, known)
        return self._answered(image, query, **options)

    def segment(self, image: Any, classes: Names, **options: Any) -> VisionOutput:
        """Which pixels show a class, or which of several each pixel shows."""
        return self._answered(image, Query("segment", _names(classes)), **options)

    def instances(self, image: Any, name: str = ANYTHING, **options: Any) -> VisionOutput:
        """A mask of each object of a class."""
        return self._answered(image, Query("instances", (name,)), **options)

    def detect(self, image: Any, classes: Names = ANYTHING, **options: Any) -> VisionOutput:
        """A box with a score around each object of a class, or of several."""
        return self._answered(image, Query("detect", _names(classes)), **options)

    def depth(self, image: Any, **options: Any) -> VisionOutput:
        """How far each pixel is."""
        return self._answered(image, Query("depth"), **options)

    def classify(self, image: Any, answers: Sequence[str], **options: Any) -> VisionOutput:
        """The probability of each of several answers."""
        return self._answered(image, Query("classify", _names(answers)), **options)

    @torch.no_grad()
    def _answered(
        self,
        image: Any,
        query: Query,
        *,
        prompt: str | None = None,
        codec: Codec | None = None,
        at_once: bool = False,
        ensemble_size: int = 1,
        batch_size: int = 1,
        processing_resolution: int | None = None,
        generator: Any = None,
        output_type: str = "np",
        image_guidance_scale: float | None = None,
        **call: Any,
    ) -> VisionOutput:
        if output_type not in ("np", "pt"):
            raise InputError(f"output_type: expected np or pt, got {output_type!r}")
        _check(query, ensemble_size, batch_size, generator, call)
        codec = CODECS[query.task] if codec is None else codec
        self._check_names(call)
        scale = self._image_scale(image_guidance_scale)
        sources = pictures_of(image)
        frames = [self.frame([each], self._longest(processing_resolution)) for each in sources]
        noise = self._noise(frames, ensemble_size, generator)
        asked = [query] if at_once or prompt is not None else apart(query)
        words = [codec.prompt(one) if prompt is None else prompt for one in asked]
        self._warn_of_cuts(words, call)
        jobs = [(number, own, text) for number, each in enumerate(noise) for own in each for text in words]
        seen = [self.latents([frame.framed(each)]) for frame, each in zip(frames, sources, strict=True)]
        painted: list[list[np.ndarray]] = [[] for _ in sources]
        for batch in _batches(jobs, lambda job: frames[job[0]].padded, batch_size):
            numbers = [number for number, _, _ in batch]
            source = torch.cat([seen[n] for n in numbers])
            given = {**call, "prompt": [text for _, _, text in batch], "output_type": "pt"}
            if isinstance(given.get("negative_prompt"), str):
                given["negative_prompt"] = [given["negative_prompt"]] * len(batch)
            given["latents"] = torch.cat([latents for _, latents, _ in batch])
            images = self._painted([source], frames[numbers[0]].padded, scale, given)
            for number, picture in zip(numbers, images, strict=True):
                restored = frames[number].restored(picture.float().cpu(), nearest=True).clamp(0, 1)
                painted[number].append(restored.permute(1, 2, 0).numpy())
        pixels = [source.permute(1, 2, 0).numpy() for source in sources]
        answers = [
            joined(list(_read(codec, query, asked, pictures, source)))
            for pictures, source in zip(painted, pixels, strict=True)
        ]
        return output_of(query, answers, [np.stack(pictures) for pictures in painted], output_type)

    def _warn_of_cuts(self, words: Sequence[str], call: Mapping[str, Any]) -> None:
        """Warn of instructions that the model does not read to their end, where names may stand."""
        warn_of_cuts(self.pipe, dict.fromkeys(words, "the instruction"), self.tokens_read(call))

    def tokens_read(self, call: Mapping[str, Any]) -> int:
        """Number of tokens that the last text encoder reads in a call."""
        given = call.get("max_sequence_length")
        usual = inspect.signature(self.pipe.__call__).parameters["max_sequence_length"].default
        return (self.text_tokens or usual) if given is None else given

    def _longest(self, resolution: int | None) -> int:
        if resolution is None:
            return self.pipe.default_sample_size * self.pipe.vae_scale_factor
        return whole_number("processing_resolution", resolution, 0)

    def _noise(
        self, frames: Sequence[Frame], members: int, generator: Any
    ) -> list[list[Float[Tensor, "1 ..."]]]:
        """The noise of each answer about each picture, drawn one after the other."""
        pipe = self.pipe
        each = list(generator) if isinstance(generator, list | tuple) else [generator] * len(frames)
        if len(each) != len(frames):
            raise InputError(f"generator: expected one, or {len(frames)}, one a picture, got {len(each)}")
        draw, dtype = pipelines_of(pipe.transformer).noise, pipe.transformer.dtype
        with self._narrow(pipe.vae.config.latent_channels):
            return [
                [draw(pipe, 1, frame.padded, dtype, own) for _ in range(members)]
                for frame, own in zip(frames, each, strict=True)
            ]


def _read(
    codec: Codec, query: Query, asked: Sequence[Query], pictures: Sequence[np.ndarray], source: np.ndarray
) -> Iterator[Annotation]:
    """The answers of the members of an ensemble, each of which painted a picture a question."""
    for first in range(0, len(pictures), len(asked)):
        own = zip(asked, pictures[first : first + len(asked)], strict=True)
        yield together(query, [codec.decode(picture, one, source) for one, picture in own])


def _names(names: Any) -> tuple[str, ...]:
    if isinstance(names, str):
        return (names,)
    if not isinstance(names, list | tuple):
        raise InputError(f"classes, answers: expected a name or a list of them, got {names!r}")
    return tuple(names)


def _check(query: Query, members: Any, batch_size: Any, generator: Any, call: dict[str, Any]) -> None:
    whole_number("ensemble_size", members, 1)
    whole_number("batch_size", batch_size, 1)
    if members > 1 and query.task == "instances":
        raise InputError(
            f"ensemble_size: expected 1 for instances, which have no common order, got {members}"
        )
    for name in ("latents", "num_images_per_prompt", "prompt_embeds", "height", "width"):
        if call.get(name) is not None:
            raise InputError(
                f"{name}: expected none, since a task decides it, got {type(call[name]).__name__}"
            )


def _batches(jobs: Sequence[Any], kind: Callable[[Any], Any], size: int) -> Iterator[list[Any]]:
    """Neighbouring jobs of one kind, at most `size` at once."""
    for _, group in groupby(jobs, kind):
        same = list(group)
        yield from (same[k : k + size] for k in range(0, len(same), size))
