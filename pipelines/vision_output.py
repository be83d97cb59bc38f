"""What a vision task puts out, and the forms in which it leaves the program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.utils import BaseOutput
from jaxtyping import Float
from PIL import Image, ImageDraw

from dit_heads.errors import InputError, whole_number
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
        image: what the model painted about each picture, [members, h, w, 3] in [0, 1]; where names were asked
            for one by one, each member has a picture a name.
        query: the question.
    """

    annotations: list[Any]
    prediction: Any
    uncertainty: Any
    image: list[np.ndarray]
    query: Query

    def visualize(self, image: Any, scale: int = 1) -> list[Image.Image]:
        """Show the answers: masks and boxes on their pictures, depth in colours, classes as text.

        Args:
            image: The pictures that were asked about, as they were given.
            scale: How many times as large; lines and text of small pictures are then readable.
        """
        whole_number("scale", scale, 1)
        pairs = zip(self.annotations, pictures_of(image), strict=True)
        return [visualized(found, source.permute(1, 2, 0).numpy(), scale) for found, source in pairs]

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


def visualized(annotation: Annotation, picture: np.ndarray, scale: int = 1) -> Image.Image:
    """An annotation of a picture, [h, w, 3] in [0, 1], to look at, `scale` times as large."""
    if isinstance(annotation, Depth):
        return _larger(coloured_depth(annotation), scale, Image.Resampling.NEAREST)
    levels = np.round(255 * picture).astype(np.uint8)
    image = _larger(Image.fromarray(levels), scale, Image.Resampling.BICUBIC)
    if isinstance(annotation, Segmentation | Instances):
        return _overlaid(annotation, image, scale)
    draw = ImageDraw.Draw(image)
    if isinstance(annotation, Labels):
        text = f"{annotation.best} {annotation.probabilities.max():.0%}"
        _write(draw, (2, 2), text, (255, 255, 255), scale)
        return image
    colours = part_colours(annotation)
    found = zip(annotation.boxes, annotation.classes, annotation.scores, colours, strict=True)
    for box, name, score, colour in found:
        x0, y0, x1, y1 = scale * box
        draw.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=colour, width=-(-scale // 2))
        _write(draw, (x0 / scale + 2, y0 / scale), f"{name} {score:.2f}", colour, scale)
    return image


def part_colours(annotation: Segmentation | Instances | Boxes) -> list[tuple[int, int, int]]:
    """The colours in which `visualized` shows the classes, or each of the objects."""
    if isinstance(annotation, Boxes):
        each = list(dict.fromkeys(annotation.classes))
        own = dict(zip(each, instance_colours(max(len(each), 1)), strict=False))
        return [own[name] for name in annotation.classes]
    return list(instance_colours(max(len(annotation.classes), 1)))[: len(annotation.classes)]


def coloured_depth(depth: Depth) -> Image.Image:
    """Near in red, far in violet, logarithmic within the picture's own range; sky white, unknown black."""
    shown = np.zeros((*depth.metres.shape, 3))
    if depth.valid.any():
        known = depth.metres[depth.valid].astype(float)
        values = np.log(known) if depth.metric else known
        low, high = values.min(), values.max()
        shown[depth.valid] = depth_colours((values - low) / max(high - low, 1e-12))
    shown[depth.sky] = 1
    return Image.fromarray(np.round(255 * shown).astype(np.uint8))


def depth_colours(share: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n 3"]:
    """The colours, in [0, 1], of shares of the way from near to far."""
    from matplotlib import colormaps

    return colormaps["turbo_r"](share)[:, :3]


def _overlaid(annotation: Segmentation | Instances, image: Image.Image, scale: int) -> Image.Image:
    if isinstance(annotation, Segmentation):
        masks = [annotation.labels == k for k in range(1, len(annotation.classes) + 1)]
    else:
        masks = list(annotation.masks)
    out = np.asarray(image).astype(float)
    for mask, colour in zip(masks, part_colours(annotation), strict=True):
        inside = mask.repeat(scale, 0).repeat(scale, 1)
        out[inside] = (1 - STRENGTH) * out[inside] + STRENGTH * np.array(colour)
    return Image.fromarray(np.round(out).astype(np.uint8))


def _larger(image: Image.Image, scale: int, how: Image.Resampling) -> Image.Image:
    return image if scale == 1 else image.resize((scale * image.width, scale * image.height), how)


def _write(
    draw: ImageDraw.ImageDraw,
    place: tuple[float, float],
    text: str,
    colour: tuple[int, int, int],
    scale: int,
) -> None:
    """Text at a place of the picture that is shown, with a dark rim."""
    at = (scale * place[0], scale * place[1])
    draw.text(at, text, fill=colour, font_size=8 + 2 * scale, stroke_width=1, stroke_fill="black")
