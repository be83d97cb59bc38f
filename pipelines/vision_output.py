"""What a vision task puts out, and the forms in which it leaves the program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.utils import BaseOutput
from PIL import Image, ImageDraw

from dit_heads.errors import InputError
from dit_heads.pipelines.sources import pictures_of
from dit_heads.tasks.annotations import Annotation, Boxes, Depth, Instances, Labels, Segmentation
from dit_heads.tasks.coco import coco_entries
from dit_heads.tasks.palette import instance_colours
from dit_heads.tasks.query import Query

STRENGTH = 0.5  # of colours laid over a picture


@dataclass
class VisionOutput(BaseOutput):
    """Answers to one question about n pictures.

    Attributes:
        annotations: one a picture, see `dit_heads.tasks.annotations`.
        prediction: the same as numbers. Labels of pixels [n, h, w, 1] (0 is none of the classes), metres
            [n, h, w, 1] (inf is sky, nan unknown), probabilities [n, answers], and for each picture boxes
            [k, 4] or masks [k, h, w]. "pt" has channels first. A list, where pictures differ in size.
        uncertainty: of each number of `prediction` (of boxes: of each box), None without an ensemble.
        image: what the model painted about each picture, [members, h, w, 3] in [0, 1].
        query: the question.
    """

    annotations: list[Any]
    prediction: Any
    uncertainty: Any
    image: list[np.ndarray]
    query: Query

    def visualize(self, image: Any) -> list[Image.Image]:
        """Show the answers: masks and boxes on their pictures, depth in colours, classes as text.

        Args:
            image: The pictures that were asked about, as they were given.
        """
        pairs = zip(self.annotations, pictures_of(image), strict=True)
        return [visualized(found, source.permute(1, 2, 0).numpy()) for found, source in pairs]

    def coco(self, ids: Sequence[int], categories: Mapping[str, int]) -> list[dict[str, Any]]:
        """Give boxes and masks in the form of COCO's results.

        Args:
            ids: COCO's id of each picture.
            categories: COCO's id of each class, by name.

        Raises:
            InputError: for another number of ids than of pictures, other answers than boxes and instances,
                and a class without an id.
        """
        if len(ids) != len(self.annotations):
            raise InputError(f"ids: expected {len(self.annotations)}, one a picture, got {len(ids)}")
        return [
            entry
            for i, each in zip(ids, self.annotations, strict=True)
            for entry in coco_entries(each, i, categories)
        ]


def output_of(
    query: Query,
    answers: Sequence[tuple[Annotation, np.ndarray | None]],
    painted: list[np.ndarray],
    form: str,
) -> VisionOutput:
    """The output of joined answers, as arrays or tensors."""
    found = [annotation for annotation, _ in answers]
    doubts = [None if doubt is None else _grid(doubt) for _, doubt in answers]
    uncertain = None if any(doubt is None for doubt in doubts) else _stacked(doubts, form)
    return VisionOutput(found, _stacked([numbers(a) for a in found], form), uncertain, painted, query)


def numbers(annotation: Annotation) -> np.ndarray:
    """An annotation as an array, see `VisionOutput.prediction`."""
    if isinstance(annotation, Segmentation):
        return _grid(annotation.labels)
    if isinstance(annotation, Depth):
        return _grid(metres(annotation))
    if isinstance(annotation, Labels):
        return annotation.probabilities
    return annotation.boxes if isinstance(annotation, Boxes) else annotation.masks


def metres(depth: Depth) -> np.ndarray:
    """Depth as one map: inf is sky, nan unknown."""
    return np.where(depth.valid, depth.metres, np.where(depth.sky, np.inf, np.nan)).astype(np.float32)


def _grid(values: np.ndarray) -> np.ndarray:
    return values[..., None] if values.ndim == 2 else values


def _stacked(arrays: Sequence[Any], form: str) -> Any:
    parts = [np.ascontiguousarray(array) for array in arrays]
    if form == "pt":
        parts = [torch.from_numpy(p.transpose(2, 0, 1).copy() if _is_map(p) else p) for p in parts]
    if len({tuple(part.shape) for part in parts}) > 1 or not _stacks(arrays[0]):
        return parts
    return torch.stack(parts) if form == "pt" else np.stack(parts)  # pyright: ignore


def _is_map(array: np.ndarray) -> bool:
    return array.ndim == 3 and array.shape[-1] == 1


def _stacks(array: np.ndarray) -> bool:
    """Maps and probabilities do; boxes and masks are as many as there are objects."""
    return _is_map(array) or array.ndim == 1


# --- to look at ---


def visualized(annotation: Annotation, picture: np.ndarray) -> Image.Image:
    """An annotation of a picture, [h, w, 3] in [0, 1], to look at."""
    if isinstance(annotation, Depth):
        return coloured_depth(annotation)
    levels = np.round(255 * picture).astype(np.uint8)
    if isinstance(annotation, Segmentation | Instances):
        return _overlaid(annotation, levels)
    image = Image.fromarray(levels)
    draw = ImageDraw.Draw(image)
    if isinstance(annotation, Labels):
        text = f"{annotation.best} {annotation.probabilities.max():.0%}"
        draw.text((2, 2), text, fill="white", stroke_width=1, stroke_fill="black")
        return image
    colours = _colours(annotation.classes)
    for box, name, score in zip(annotation.boxes, annotation.classes, annotation.scores, strict=True):
        x0, y0, x1, y1 = box
        draw.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=colours[name])
        draw.text((x0 + 2, y0), f"{name} {score:.2f}", fill=colours[name])
    return image


def coloured_depth(depth: Depth) -> Image.Image:
    """Near in red, far in violet, logarithmic within the picture's own range; sky white, unknown black."""
    from matplotlib import colormaps

    shown = np.zeros((*depth.metres.shape, 3))
    if depth.valid.any():
        known = depth.metres[depth.valid].astype(float)
        values = np.log(known) if depth.metric else known
        low, high = values.min(), values.max()
        shown[depth.valid] = colormaps["turbo_r"]((values - low) / max(high - low, 1e-12))[:, :3]
    shown[depth.sky] = 1
    return Image.fromarray(np.round(255 * shown).astype(np.uint8))


def _overlaid(annotation: Segmentation | Instances, levels: np.ndarray) -> Image.Image:
    if isinstance(annotation, Segmentation):
        masks = [annotation.labels == k for k in range(1, len(annotation.classes) + 1)]
    else:
        masks = list(annotation.masks)
    out = levels.astype(float)
    for mask, colour in zip(masks, instance_colours(max(len(masks), 1)), strict=False):
        out[mask] = (1 - STRENGTH) * out[mask] + STRENGTH * np.array(colour)
    return Image.fromarray(np.round(out).astype(np.uint8))


def _colours(names: Sequence[str]) -> dict[str, tuple[int, int, int]]:
    each = list(dict.fromkeys(names))
    return dict(zip(each, instance_colours(max(len(each), 1)), strict=False))
