"""Edits of pictures, against exact results and against what should have stayed.

L1, L2, CLIP-I, DINO and CLIP-T as of MagicBrush (arXiv 2306.10012, section 4.1), CLIP-I and DINO against
references as of DreamBooth (arXiv 2208.12242, section 4.1).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image

from dit_heads.errors import InputError, listed
from dit_heads.tasks.codecs.pixels import levels
from dit_heads.tasks.metrics.preservation import MOST_DECIBELS, distances, likeness
from dit_heads.tasks.metrics.scores import Scores, interval

Vector = Float[np.ndarray, " d"]
FIGURES = {
    "L1": "target",
    "L2": "target",
    "CLIP-I": "target",
    "DINO": "target",
    "CLIP-I of references": "references",
    "DINO of references": "references",
    "CLIP-T": "text",
    "PSNR outside, dB": "mask",
    "SSIM outside": "mask",
    "L1 outside": "mask",
}
"""Names of all figures in their order, and what each needs."""


class PictureEmbedding(Protocol):
    """Turns pictures into unit vectors."""

    name: str

    def picture(self, image: Image.Image) -> Vector:
        """The vector of a picture."""
        ...


class JointEmbedding(PictureEmbedding, Protocol):
    """Turns pictures and texts into unit vectors of one space."""

    def text(self, words: str) -> Vector:
        """The vector of a text."""
        ...


@dataclass(frozen=True)
class EditResult:
    """What a model made of an instruction, with all that it can be compared with. Pictures are RGB.

    Args:
        name: of the edit.
        text: what the result should show.
        result: the model's.
        target: the right result.
        source: what was edited.
        mask: white where the source may change, of its size.
        references: pictures of the instruction.
    """

    name: str
    text: str
    result: Image.Image
    target: Image.Image | None = None
    source: Image.Image | None = None
    mask: Image.Image | None = None
    references: tuple[Image.Image, ...] = ()


def score_edits(
    results: Iterable[EditResult], clip: JointEmbedding | None = None, dino: PictureEmbedding | None = None
) -> Scores:
    """Means over edits, with intervals. An edit has the figures for which it has what they need.

    Args:
        results: Edits; they are read one at a time.
        clip: For CLIP-I, the cosine of result and target, and CLIP-T, that of result and text.
        dino: For DINO, the cosine of result and target.

    Raises:
        InputError: for no edits, none with any figure, a mask of another size than its picture, one without
            black, and a missing torchmetrics where there are masks.
    """
    rows: dict[str, dict[str, float]] = {}
    resized: list[str] = []
    sizes: dict[str, None] = {}  # in the order in which they come
    for each in results:
        rows[each.name] = dict(_figures(each, clip, dino))
        whole = each.target or (each.source if each.mask else None)
        resized += [each.name] if whole and whole.size != each.result.size else []
        sizes |= {f"{whole.height} x {whole.width}": None} if whole else {}
    known = [figure for figure in FIGURES if any(figure in row for row in rows.values())]
    if not known:
        raise InputError(
            f"pairs: expected edits with a target or a mask, or a CLIP for texts, got none among {len(rows)}"
        )
    values = {figure: np.array([r[figure] for r in rows.values() if figure in r]) for figure in known}
    figures = {figure: float(found.mean()) for figure, found in values.items()}
    intervals = {figure: interval(found) for figure, found in values.items()}
    return Scores(
        "edits", tuple(_protocol(rows, known, (list(sizes), resized), clip, dino)), figures, rows, intervals
    )


def _figures(
    each: EditResult, clip: JointEmbedding | None, dino: PictureEmbedding | None
) -> Iterator[tuple[str, float]]:
    if each.target is not None:
        apart = distances(on_grid(each.result, each.target), _pixels(each.target))
        yield from ((name, apart[name]) for name in ("L1", "L2"))
    towers: Mapping[str, PictureEmbedding | None] = {"CLIP-I": clip, "DINO": dino}
    for name, tower in towers.items():
        if tower is None or (each.target is None and not each.references):
            continue
        found = tower.picture(each.result)
        if each.target is not None:
            yield name, float(found @ tower.picture(each.target))
        if each.references:
            near = [float(found @ tower.picture(one)) for one in each.references]
            yield f"{name} of references", float(np.mean(near))
    if clip is not None:
        yield "CLIP-T", float(clip.picture(each.result) @ clip.text(each.text))
    whole = each.source or each.target
    if each.mask is not None and whole is not None:
        kept = likeness(on_grid(each.result, whole), _pixels(whole), outside(each.mask, whole, each.name))
        yield "PSNR outside, dB", kept["PSNR"]
        yield "SSIM outside", kept["SSIM"]
        yield "L1 outside", kept["L1"]


def outside(mask: Image.Image, picture: Image.Image, name: str) -> Bool[np.ndarray, "h w"]:
    """Where a mask is black, so that its picture has to stay.

    Raises:
        InputError: for a mask of another size, and one that is all white.
    """
    if mask.size != picture.size:
        wanted, found = (f"{one.height} x {one.width}" for one in (picture, mask))
        raise InputError(f"mask: expected the size of the picture, {wanted}, got {found} ({name})")
    stays = levels(mask).mean(-1) < 127.5
    if not stays.any():
        raise InputError(f"mask: expected black where the picture stays, got one that is all white ({name})")
    return stays


def on_grid(picture: Image.Image, other: Image.Image) -> Float[np.ndarray, "h w 3"]:
    """The pixels of a picture, in [0, 1], on the grid of another; bicubic where sizes differ."""
    same = picture.size == other.size
    return _pixels(picture if same else picture.resize(other.size, Image.Resampling.BICUBIC))


def _pixels(picture: Image.Image) -> np.ndarray:
    return levels(picture) / 255


def _protocol(
    rows: Mapping[str, Mapping[str, float]],
    known: list[str],
    grids: tuple[list[str], list[str]],
    clip: JointEmbedding | None,
    dino: PictureEmbedding | None,
) -> Iterator[str]:
    """What was compared with what, and how."""
    counts = {figure: sum(figure in row for row in rows.values()) for figure in known}
    yield f"{len(rows)} edits"
    yield "pixels in [0, 1], all channels alike"
    sizes, resized = grids
    if sizes:
        grid = f", {len(resized)} resized to it by bicubic filtering ({listed(resized)})" if resized else ""
        yield f"results on the grid of what they are compared with, {listed(sizes)}{grid}"
    if "L1" in counts:
        yield f"L1, L2 (mean square) against the target: {counts['L1']} edits"
    for name, tower in (("CLIP-I", clip), ("DINO", dino)):
        for figure, what in ((name, "the target"), (f"{name} of references", "the references, their mean")):
            if tower is not None and figure in counts:
                yield f"{figure}: cosine of {tower.name}, against {what}: {counts[figure]} edits"
    if clip is not None:
        yield f"CLIP-T: cosine of {clip.name}, against the caption, or the instruction where there is none"
    if "L1 outside" in counts:
        yield (
            "outside: pixels where the mask is black, against the source, or the target where there is none: "
            f"{counts['L1 outside']} edits"
        )
        yield f"PSNR of each edit, {MOST_DECIBELS:g} dB at most; SSIM with windows of 11 pixels, sigma 1.5"
    yield "in brackets the 95 % bootstrap interval over edits"
