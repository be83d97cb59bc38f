"""The work of the See tab: a question about a picture, answered by a model with a LoRA of that task, or with
soft tokens."""

from __future__ import annotations

import tempfile
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from dit_heads.cli.draw import unread_end
from dit_heads.cli.see import WRITERS, SeeSettings, call_arguments, check_names
from dit_heads.demo.adapted import adapted
from dit_heads.demo.facts import Facts
from dit_heads.demo.isolation import MAKING
from dit_heads.demo.jobs import Job
from dit_heads.demo.limits import MAX_SEED, Limits, check_most, check_text
from dit_heads.demo.preview import Previews
from dit_heads.errors import InputError
from dit_heads.pipelines import InstructPipeline, with_instruct_lora, with_soft_tokens
from dit_heads.pipelines.soft_tokens import check_answered
from dit_heads.pipelines.sources import pictures_of
from dit_heads.pipelines.vision_output import VisionOutput
from dit_heads.tasks.codecs import CODECS
from dit_heads.tasks.query import Query
from dit_heads.tasks.router import route

PICTURE, ANSWER = "picture.png", "answer.png"
"""What command lines, scripts and files call the picture, and the one that shows the answer."""
WANTED = {
    "instruct": "model: expected one with a LoRA of the task instruct, got one without",
    "soft-tokens": "answered by: expected a model with weights of soft tokens, got one without",
}
_SHOWN = 512  # pixels along the longer side of a small picture's answer


@dataclass(frozen=True)
class Seen:
    """An answer.

    Attributes:
        output: of the pipeline.
        picture: that was asked about.
        shown: the answer on the picture, enlarged where that is small.
        files: what `dit-heads see` writes beside it, by name.
        question: in the visitor's words.
        settings: what the answer depends on beside picture and question.
    """

    output: VisionOutput
    picture: Image.Image
    shown: Image.Image
    files: dict[str, bytes]
    question: str
    settings: SeeSettings


@dataclass(frozen=True)
class Seeing:
    """Answer one question.

    Args:
        question: in the visitor's words.
        query: what is understood of it.
        picture: what it is about.
        settings: of the answer.
        weights: the file of the LoRA, or the folder of the soft tokens.
    """

    question: str
    query: Query
    picture: Image.Image
    settings: SeeSettings
    weights: Path

    def __call__(self, pipe: Any, job: Job) -> Seen:
        output = self._read(pipe) if self.settings.method == "soft-tokens" else self._painted(pipe, job)
        (shown,) = output.visualize(self.picture, scale_of(self.picture))
        return Seen(output, self.picture, shown, files_of(output), self.question, self.settings)

    def _read(self, pipe: Any) -> VisionOutput:
        with MAKING:
            see = with_soft_tokens(pipe, self.weights)
        return see.ask(self.picture, self.query)

    def _painted(self, pipe: Any, job: Job) -> VisionOutput:
        steps = self.settings.steps
        job.update(steps=steps)
        with answering(pipe, self.weights) as see:
            self._check_length(see)
            frame = see.frame(pictures_of(self.picture), pipe.default_sample_size * pipe.vae_scale_factor)
            height, width = frame.scaled
            previews = Previews(
                job, steps, size=frame.padded, show=lambda image: image.crop((0, 0, width, height))
            )
            call = {**call_arguments(self.settings), "callback_on_step_end": previews}
            return see.ask(self.picture, self.query, **call)

    def _check_length(self, see: InstructPipeline) -> None:
        """Names at the end that nothing reads would be answered for the model's own."""
        words = CODECS[self.query.task].prompt(self.query)
        if see.text_tokens and (lost := unread_end(see.pipe, words, see.text_tokens)):
            raise InputError(f"question: expected a shorter one; the model would not read: {lost}")


def answering(pipe: Any, path: Path) -> AbstractContextManager[InstructPipeline]:
    """A pipeline with a LoRA of the task instruct, as of `adapted`."""
    return adapted(pipe, path, with_instruct_lora)


def asked(
    question: object, picture: Image.Image, settings: SeeSettings, facts: Facts, limits: Limits
) -> Seeing:
    """A question once all is checked that can be known without the model.

    Raises:
        InputError: for a text in which no task or no name is understood, names that the model cannot know,
            settings beyond the limits, and a model without weights for the method.
    """
    text = question if isinstance(question, str) else ""
    check_text(limits, question=text)
    if not text.strip():
        raise InputError('question: expected one, such as "where are the cubes?", got nothing')
    check_most(limits.steps, steps=settings.steps)
    check_most(MAX_SEED, seed=settings.seed)
    if (weights := facts.answers_by(settings.method)) is None:
        raise InputError(WANTED[settings.method])
    query = route(text)
    check_names(query, settings.model)
    if settings.method == "soft-tokens":
        check_answered(query)
    return Seeing(text.strip(), query, bounded(picture, limits), settings, weights)


def bounded(picture: Image.Image, limits: Limits) -> Image.Image:
    """A picture, smaller if it has more pixels than a page shows."""
    share = (limits.pixels / (picture.width * picture.height)) ** 0.5
    if share >= 1:
        return picture
    size = max(1, int(share * picture.width)), max(1, int(share * picture.height))
    return picture.resize(size, Image.Resampling.LANCZOS)


def scale_of(picture: Image.Image) -> int:
    """How many times as large the answer about a picture is shown."""
    return -(-_SHOWN // max(picture.size))


def files_of(output: VisionOutput) -> dict[str, bytes]:
    """The files that `dit-heads see` writes beside the picture, by name."""
    with tempfile.TemporaryDirectory(prefix="dit-heads-see-") as folder:
        write = WRITERS[type(output.annotations[0])]
        return {path.name: path.read_bytes() for path in write(output, Path(folder) / ANSWER, PICTURE)}
