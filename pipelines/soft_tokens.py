"""Depth and instances as soft tokens (AiT, arXiv 2301.02229), on the features of the user's pipeline.

One forward pass of the transformer a noise level, and no sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.utils import BaseOutput
from jaxtyping import Float
from torch import Tensor

from dit_heads.errors import InputError, whole_number
from dit_heads.families import class_names, pipeline_names, training_of
from dit_heads.families.latents import encoded
from dit_heads.pipelines.sources import Pixels, pictures_of
from dit_heads.pipelines.vision_output import VisionOutput, output_of
from dit_heads.tasks.annotations import Annotation, Instances
from dit_heads.tasks.query import ANYTHING, Query
from dit_heads.tasks.router import route
from dit_heads.tasks.soft_tokens.features import channels_of, features_of
from dit_heads.tasks.soft_tokens.files import load_solver, load_tokenizer
from dit_heads.tasks.soft_tokens.maps import DepthRange
from dit_heads.tasks.soft_tokens.reading import (
    DEPTH_TAU,
    HARD,
    MASK_TAU,
    DepthReading,
    ObjectReading,
    SoftReader,
    depth_maps,
)

FILES = ("solver", "depth", "mask")  # of a folder of weights, each with .safetensors
ANSWERED = ("depth", "instances", "detect")


@dataclass
class SoftTokenOutput(BaseOutput):
    """What a call of `SoftTokenPipeline` returns about n pictures.

    Attributes:
        depth: in metres. Its uncertainty is the entropy of the depth tokens, from 0 to 1, on the grid of the
            picture.
        instances: boxes, classes, masks and scores. Its uncertainty is the mean entropy of the mask tokens of
            each.
        uncertainty: the same as maps [h, w], one a picture: the larger one of that of depth and, on its box,
            that of an object.
        depth_probabilities: of the codes of each depth token, [n, tokens, codes].
        object_probabilities: of the tokens of the objects of each picture: "box" [k, 4, steps], "class"
            [k, classes + 1] (none is the last) and "mask" [k, tokens, codes].
    """

    depth: VisionOutput
    instances: VisionOutput
    uncertainty: list[np.ndarray]
    depth_probabilities: np.ndarray
    object_probabilities: list[dict[str, np.ndarray]]


class SoftTokenPipeline:
    """Depth and instances of pictures, in one look.

    >>> see = with_soft_tokens(pipe, "runs/soft-tokens")   # doctest: +SKIP
    >>> found = see("photo.png")   # doctest: +SKIP
    >>> found.depth.prediction, found.instances.annotations[0].masks   # doctest: +SKIP

    Pictures of any size are stretched to the square that the solver was trained on; answers lie on the grid
    of the picture again.

    Args:
        pipe: whose transformer the solver was trained on.
        reader: the solver and its tokenizers.

    Raises:
        InputError: for another pipeline, and for one whose features are not those of the solver.
    """

    def __init__(self, pipe: Any, reader: SoftReader) -> None:
        known = pipeline_names()
        if not set(class_names(type(pipe))) & set(known):
            raise InputError(f"pipe: expected one of {', '.join(known)}, got {type(pipe).__name__}")
        self.pipe: Any = pipe
        self.reader = reader
        self._text: tuple[Tensor, Tensor] | None = None
        check_fit(reader, pipe.transformer)

    @torch.no_grad()
    def __call__(
        self,
        image: Any,
        *,
        hard: bool = False,
        tau: float = DEPTH_TAU,
        flips: bool = False,
        batch_size: int = 8,
        output_type: str = "np",
        return_dict: bool = True,
    ) -> SoftTokenOutput | tuple[Any, ...]:
        """Depth and instances.

        Args:
            image: a picture or a list of them, of any sizes: PIL images, arrays [h, w, 3], tensors [3, h, w]
                in [0, 1], paths.
            hard: take the likeliest code of each token in place of the mean of all.
            tau: inverse temperature of soft depth tokens.
            flips: read the mirrored picture too and average both depths. Instances are those of the picture
                as it is.
            batch_size: pictures at once. It changes no result.
            output_type: "np" or "pt", the form of predictions and uncertainties.
            return_dict: as in diffusers.

        Raises:
            InputError: for pictures that cannot be read, and for arguments out of range.
        """
        _check(output_type, batch_size)
        sources = pictures_of(image)
        depths: list[DepthReading] = []
        objects: list[ObjectReading] = []
        for at in range(0, len(sources), batch_size):
            squares = _squares(sources[at : at + batch_size], self.reader.solver.config.size)
            features = self._features(squares)
            read = self.reader.read_depth(features, HARD if hard else tau)
            if flips:
                mirrored = self._features(squares.flip(-1))
                read = read.joined(self.reader.read_depth(mirrored, HARD if hard else tau).flipped())
            depths.append(read)
            objects += self.reader.read_objects(features, HARD if hard else MASK_TAU)
        sizes = [(s.shape[1], s.shape[2]) for s in sources]
        found = _output(_joined(depths), objects, sizes, self.reader.depth.range, output_type)
        return found if return_dict else found.to_tuple()

    def depth(self, image: Any, **options: Any) -> VisionOutput:
        """How far each pixel is.

        Args:
            image: a picture or several.
            options: as of a call.
        """
        return self(image, **options).depth  # pyright: ignore[reportAttributeAccessIssue]

    def instances(self, image: Any, name: str = ANYTHING, **options: Any) -> VisionOutput:
        """A mask of each object of a class. Other arguments as of a call.

        Args:
            image: a picture or several.
            name: one of the classes that the solver was trained on, or "object" for all of them.
            options: as of a call.

        Raises:
            InputError: for an unknown class.
        """
        return self.ask(image, Query("instances", (name,)), **options)

    def ask(self, image: Any, question: str | Query, **options: Any) -> VisionOutput:
        """The answer to a question about depth, instances or boxes.

        Args:
            image: a picture or several.
            question: such as "where are the cubes?", or a query that is ready.
            options: as of a call.

        Raises:
            InputError: for a question about something else, and for classes that the solver does not know.
        """
        query = question if isinstance(question, Query) else route(question)
        check_answered(query)
        classes = self.reader.solver.config.vocabulary.classes
        if unknown := [name for name in query.names if name not in (*classes, ANYTHING)]:
            raise InputError(
                f"question: expected some of {', '.join((*classes, ANYTHING))}, got {', '.join(unknown)}"
            )
        found = self(image, **options)
        assert isinstance(found, SoftTokenOutput)
        if query.task == "depth":
            return found.depth
        form = options.get("output_type", "np")
        answers = [
            _asked_for(each, query, doubts)
            for each, doubts in zip(found.instances.annotations, found.instances.uncertainty, strict=True)
        ]
        return output_of(query, answers, [], form)

    def _features(self, squares: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b n f"]:
        pipe, config = self.pipe, self.reader.solver.config
        device = pipe._execution_device
        if self._text is None:
            self._text = training_of(pipe.transformer).encode_prompt(pipe, "", config.text_tokens)
        latents = encoded(pipe.vae, 2 * squares.to(device, pipe.vae.dtype) - 1)
        kind = pipe.transformer.dtype
        text, pooled = (t.to(device, kind).expand(len(squares), *t.shape[1:]) for t in self._text)
        found = features_of(pipe.transformer, latents.to(kind), text, pooled, config.features)
        pipe.maybe_free_model_hooks()
        return found.float().to(self.reader.solver.norm.weight.device)


def with_soft_tokens(pipe: Any, folder: str | Path) -> SoftTokenPipeline:
    """A pipeline that sees by soft tokens.

    Args:
        pipe: whose transformer the solver was trained on.
        folder: with `solver.safetensors`, `depth.safetensors` and `mask.safetensors`.

    Raises:
        InputError: a file is missing or is another, tokenizers and solver do not fit together, or the
            pipeline does not fit.
    """
    return SoftTokenPipeline(pipe, read_weights(folder).to(getattr(pipe, "_execution_device", "cpu")))


def read_weights(folder: str | Path) -> SoftReader:
    """The solver and the tokenizers in a folder. Raises InputError as `with_soft_tokens` does."""
    paths = [Path(folder) / f"{name}.safetensors" for name in FILES]
    solver, depth, mask = (
        read(path) for read, path in zip((load_solver, load_tokenizer, load_tokenizer), paths, strict=True)
    )
    reader = SoftReader(solver, depth, mask)  # pyright: ignore[reportArgumentType]
    reader.check()
    return reader


def check_fit(reader: SoftReader, transformer: Any) -> None:
    """Raise InputError unless a transformer has the features that a solver reads."""
    config = reader.solver.config
    channels = sum(channels_of(transformer, config.features).width) * len(config.features.levels)
    if channels != config.channels:
        raise InputError(
            f"pipe: expected a model with {config.channels} channels of features, as "
            f"'{config.model}' has them, got {channels}"
        )


def check_answered(query: Query) -> None:
    """Raise InputError for a query of a task that soft tokens do not answer."""
    if query.task not in ANSWERED:
        raise InputError(f"question: soft tokens answer {', '.join(ANSWERED)}, got {query.task}")


def _squares(sources: Sequence[Pixels], side: int) -> Float[Tensor, "b 3 side side"]:
    """Pictures as the solver was trained on them."""
    made = [
        each[None]
        if each.shape[1:] == (side, side)
        else F.interpolate(each[None], (side, side), mode="bilinear", antialias=True)
        for each in sources
    ]
    return torch.cat(made)


def _output(
    read: DepthReading,
    objects: Sequence[ObjectReading],
    sizes: Sequence[tuple[int, int]],
    span: DepthRange,
    form: str,
) -> SoftTokenOutput:
    """Readings on the grids of the pictures."""
    depths, doubts, found = [], [], []
    for row, size in enumerate(sizes):
        values, sky = (_resized(t[row], size) for t in (read.values, read.sky))
        (depth,) = depth_maps(values[None], sky[None], span)
        doubt = _resized(read.entropy[row], size).cpu().numpy()
        depths.append((depth, doubt))
        doubts.append(np.maximum(doubt, objects[row].doubt(size)))
        found.append(objects[row].answer(size))
    return SoftTokenOutput(
        output_of(Query("depth"), depths, [], form),
        output_of(Query("instances", (ANYTHING,)), found, [], form),
        doubts,
        read.probability.cpu().numpy(),
        [each.chances() for each in objects],
    )


def _joined(parts: Sequence[DepthReading]) -> DepthReading:
    """The readings of several batches as one."""
    names = ("values", "sky", "probability", "entropy")
    return DepthReading(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


def _resized(values: Float[Tensor, "h w"], size: tuple[int, int]) -> Float[Tensor, "H W"]:
    if tuple(values.shape) == size:
        return values
    return F.interpolate(values[None, None], size, mode="bilinear", align_corners=False)[0, 0]


def _asked_for(found: Instances, query: Query, doubts: np.ndarray) -> tuple[Annotation, np.ndarray]:
    """The objects of the classes that are asked for; their boxes, if boxes are."""
    kept = [k for k, name in enumerate(found.classes) if ANYTHING in query.names or name in query.names]
    masks = found.masks[kept]
    chosen = Instances(masks, tuple(found.classes[k] for k in kept), found.scores[kept])
    return (chosen.boxes() if query.task == "detect" else chosen), np.asarray(doubts)[kept]


def _check(output_type: str, batch_size: Any) -> None:
    if output_type not in ("np", "pt"):
        raise InputError(f"output_type: expected np or pt, got {output_type!r}")
    whole_number("batch_size", batch_size, 1)
