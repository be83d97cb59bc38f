"""An answer about a picture as the page shows it: in words, with a legend, in depth as points in space."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Real
from PIL import Image

from dit_heads.demo.facts import Facts
from dit_heads.embedded.world.scenes import HALF_VIEW
from dit_heads.pipelines.vision_output import depth_colours, part_colours
from dit_heads.tasks.annotations import (
    Annotation,
    Boxes,
    Depth,
    Instances,
    Labels,
    Segmentation,
    box_of,
)
from dit_heads.tasks.query import Query
from dit_heads.tasks.words import listed

USUAL_HALF_VIEW = math.tan(math.radians(30.0))  # of a photo whose camera is not known
POINTS = 128  # along the longer side of a picture in depth
TOLD = 8  # objects that are told one by one
_STOPS, _TICKS = 17, 5  # colours and distances of the scale of depth
_ROWS, _COLUMNS = ("top", "middle", "bottom"), ("left", "middle", "right")


def understood(query: Query) -> str:
    """The sentence that says what is done."""
    if not query.names:
        return "Understood: how far each pixel is."
    opening, word = {
        "segment": ("which pixels show", "or"),
        "instances": ("a mask for each", "and"),
        "detect": ("a box around each", "and each"),
        "classify": ("which of these it is:", "or"),
    }[query.task]
    return f"Understood: {opening} {listed(query.names, word)}."


def in_words(found: Annotation, names: Sequence[str]) -> str:
    """The answer, for those who do not see it.

    Args:
        found: the answer.
        names: that were asked for.
    """
    if isinstance(found, Depth):
        return _depth_in_words(found)
    if isinstance(found, Labels):
        order = np.argsort(-found.probabilities, kind="stable")
        first, *others = [f"{found.answers[k]} ({found.probabilities[k]:.0%})" for k in order]
        return f"Most likely {first}, rather than {listed(others, 'or')}."
    if isinstance(found, Segmentation):
        shares = [f"{name} {found.mask(name).mean():.0%}" for name in found.classes]
        return f"Of the picture, {listed(shares, 'and')}."
    return _objects_in_words(found.boxes() if isinstance(found, Instances) else found, names)


def _objects_in_words(found: Boxes, names: Sequence[str]) -> str:
    if not len(found):
        return f"No {listed(names, 'and no')} is found."
    order = np.argsort(-found.scores, kind="stable")[:TOLD]
    each = [f"{found.classes[k]} {place_of(found.boxes[k], found.size)}" for k in order]
    more = [f"{len(found) - TOLD} more"] if len(found) > TOLD else []
    return f"{len(found)} found: {listed([*each, *more], 'and')}."


def place_of(box: Real[np.ndarray, 4], size: tuple[int, int]) -> str:
    """Where the middle of a box x0, y0, x1, y1 is in a picture of this height and width."""
    x, y = (float(box[k] + box[k + 2]) / 2 / size[1 - k] for k in (0, 1))
    row, column = (names[min(int(3 * share), 2)] for names, share in ((_ROWS, y), (_COLUMNS, x)))
    where = [part for part in (row, column) if part != "middle"]
    return f"at the {' '.join(where)}" if where else "in the middle"


def _depth_in_words(found: Depth) -> str:
    sky = f"Sky covers {found.sky.mean():.0%} of it." if found.sky.any() else ""
    if not found.valid.any():
        return f"No distance is known. {sky}".strip()
    metres = np.where(found.valid, found.metres, np.inf)
    row, column = np.unravel_index(int(metres.argmin()), metres.shape)
    pixel = box_of(np.arange(metres.size).reshape(metres.shape) == row * metres.shape[1] + column)
    low, high = _range(found)
    nearest = place_of(np.array(pixel), metres.shape)  # pyright: ignore[reportArgumentType]
    told = f"From {_length(low, found)}, {nearest}, to {_length(high, found)}."
    return f"{told} {sky}".strip()


# --- what stands beside the picture ---


def legend(found: Annotation) -> list[dict[str, Any]]:
    """A line for each class, object or answer: name, value, colour, and the share of a bar."""
    if isinstance(found, Depth):
        return []
    if isinstance(found, Labels):
        order = np.argsort(-found.probabilities, kind="stable")
        pairs = [(found.answers[k], float(found.probabilities[k])) for k in order]
        return [{"name": name, "value": f"{share:.1%}", "share": share} for name, share in pairs]
    colours = [_hex(np.array(colour) / 255) for colour in part_colours(found)]
    if isinstance(found, Segmentation):
        values = [f"{found.mask(name).mean():.1%} of the picture" for name in found.classes]
    else:
        values = [f"score {score:.2f}" for score in found.scores]
    lines = zip(found.classes, values, colours, strict=True)
    return [{"name": name, "value": value, "colour": colour} for name, value, colour in lines]


def depth_scale(found: Depth) -> dict[str, Any] | None:
    """Colours from near to far and distances beside them, as `coloured_depth` shows them."""
    if not found.valid.any():
        return None
    low, high = _range(found)
    shares = np.linspace(0, 1, _TICKS)
    values = low * (high / low) ** shares if found.metric else low + (high - low) * shares
    return {
        "stops": [_hex(colour) for colour in depth_colours(np.linspace(0, 1, _STOPS))],
        "ticks": [_length(value, found) for value in values.tolist()],
    }


def cloud(found: Depth, picture: Image.Image, facts: Facts) -> dict[str, Any]:
    """The points of a picture in space: 16 bits of each one's distance, as shares of `far` with 0 for none,
    and three bytes of its colour."""
    step = -(-max(picture.size) // POINTS)
    metres, valid = found.metres[::step, ::step], found.valid[::step, ::step]
    colours = np.asarray(picture.convert("RGB"))[::step, ::step]
    far = float(metres[valid].max(initial=0)) or 1.0
    levels = np.where(valid, np.clip(np.round(np.where(valid, metres, 0) / far * 65535), 1, 65535), 0)
    return {
        "rows": metres.shape[0],
        "columns": metres.shape[1],
        "far": far,
        "half_view": HALF_VIEW if facts.embedded else USUAL_HALF_VIEW,
        "levels": base64.b64encode(levels.astype("<u2").tobytes()).decode(),
        "colours": base64.b64encode(colours.tobytes()).decode(),
    }


def painted(values: Real[np.ndarray, "h w 3"], scale: int) -> Image.Image:
    """What the model painted, as large as the answer is shown."""
    image = Image.fromarray(np.round(255 * np.clip(np.nan_to_num(values), 0, 1)).astype(np.uint8))
    return image.resize((scale * image.width, scale * image.height), Image.Resampling.NEAREST)


def _range(found: Depth) -> tuple[float, float]:
    known = found.metres[found.valid]
    return float(known.min()), float(known.max())


def _length(value: float, found: Depth) -> str:
    return f"{value:.3g} m" if found.metric else f"{value:.2f}"


def _hex(colour: Any) -> str:
    return "#" + "".join(f"{round(255 * float(part)):02x}" for part in colour)
