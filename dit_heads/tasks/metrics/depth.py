"""Errors of depth maps under a protocol that is stated (metrics of Eigen et al., arXiv 1406.2283)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image

from dit_heads.errors import InputError
from dit_heads.tasks.annotations import Depth
from dit_heads.tasks.metrics.scores import Scores

Map = Float[np.ndarray, "h w"]
Known = Float[np.ndarray, " n"]
Alignment = Literal["none", "scale", "scale and shift"]
Space = Literal["depth", "log", "disparity"]
Crop = Literal["none", "eigen", "garg"]

# Each pair of functions goes to a space and back.
SPACES: dict[str, tuple[Callable[[Known], Known], Callable[[Known], Known]]] = {
    "depth": (lambda metres: metres, lambda values: values),
    "log": (np.log, np.exp),
    "disparity": (lambda metres: 1 / metres, lambda values: 1 / np.maximum(values, 1e-12)),
}
ALIGNMENTS = ("none", "scale", "scale and shift")
# Top, bottom, left and right border as shares of the height and width. Eigen's is that of NYUv2 (480 x 640),
# Garg's that of KITTI.
CROPS: dict[str, tuple[float, float, float, float]] = {
    "none": (0, 1, 0, 1),
    "eigen": (45 / 480, 471 / 480, 41 / 640, 601 / 640),
    "garg": (0.40810811, 0.99189189, 0.03594771, 0.96405229),
}


@dataclass(frozen=True)
class DepthProtocol:
    """What a figure about depth depends on beside the predictions.

    Args:
        alignment: What is fitted to the truth of each picture by least squares before errors are measured:
            "none" for metric depth, "scale", or "scale and shift" for relative depth.
        space: In which space it is fitted. In "log", a scale is an offset of logarithms.
        near, far: Metres. Truth outside is left out; predictions are clipped to this range.
        crop: The part of the picture that counts.
    """

    alignment: Alignment = "none"
    space: Space = "depth"
    near: float = 1e-3
    far: float = 80.0
    crop: Crop = "none"

    def __post_init__(self) -> None:
        known = {"alignment": ALIGNMENTS, "space": tuple(SPACES), "crop": tuple(CROPS)}
        for name, choices in known.items():
            if getattr(self, name) not in choices:
                raise InputError(f"{name}: expected {', '.join(choices)}, got {getattr(self, name)!r}")
        if not 0 < self.near < self.far < np.inf:
            raise InputError(f"near, far: expected 0 < near < far, got {self.near:g} and {self.far:g}")

    def __str__(self) -> str:
        fit = "none" if self.alignment == "none" else f"{self.alignment}, least squares in {self.space}"
        return (
            f"alignment: {fit}; range: {self.near:g} to {self.far:g} m; crop: {self.crop}; "
            "at the resolution of the truth; means of pictures"
        )


def score_depth(
    pairs: Iterable[tuple[str, Depth, Depth]], protocol: DepthProtocol | None = None
) -> Scores:
    """Errors of predicted depth: AbsRel, RMSE in metres, RMSE of logarithms, and delta 1 to 3, the shares of
    pixels whose ratio to the truth is below 1.25, 1.25^2 and 1.25^3.

    A pixel with a true distance always counts. Where the prediction has none, or says sky, it is taken for
    `far`, and "no distance" says how many these are.

    Args:
        pairs: Name, truth and prediction of each picture.
        protocol: How errors are measured.

    Raises:
        InputError: for relative truth, relative predictions without alignment, and a picture without a true
            distance in the range.
    """
    protocol = protocol or DepthProtocol()
    rows, resized = {}, 0
    for name, truth, prediction in pairs:
        _check(name, truth, prediction, protocol)
        resized += truth.metres.shape != prediction.metres.shape
        rows[name] = _errors(name, truth, prediction, protocol)
    about = [str(protocol)] + ([f"{resized} predictions were resized (bilinear)"] if resized else [])
    return Scores.of("depth", about, rows)


def _check(name: str, truth: Depth, prediction: Depth, protocol: DepthProtocol) -> None:
    if not truth.metric:
        raise InputError(f"truth: expected metres, got relative depth ({name})")
    if not prediction.metric and protocol.alignment == "none":
        wanted = "scale, or scale and shift, for relative depth"
        raise InputError(f"alignment: expected {wanted}, got none ({name})")


def _errors(name: str, truth: Depth, prediction: Depth, protocol: DepthProtocol) -> dict[str, float]:
    height, width = truth.metres.shape
    metres, has_distance = _resized(prediction, (height, width))
    counts = truth.valid & cropped((height, width), protocol.crop)
    counts &= (truth.metres >= protocol.near) & (truth.metres <= protocol.far)
    if not counts.any():
        raise InputError(
            f"truth: expected a pixel or more from {protocol.near:g} to {protocol.far:g} m, got none ({name})"
        )
    true, given = truth.metres[counts].astype(float), metres[counts].astype(float)
    known = has_distance[counts]
    found = np.full(len(true), float(protocol.far))
    if known.any():
        found[known] = aligned(given[known], true[known], protocol)
    found = np.clip(found, protocol.near, protocol.far)
    ratio = np.maximum(found / true, true / found)
    return {
        "AbsRel": float((np.abs(found - true) / true).mean()),
        "RMSE, m": float(np.sqrt(((found - true) ** 2).mean())),
        "RMSE log": float(np.sqrt((np.log(found / true) ** 2).mean())),
        **{f"delta{k}": float((ratio < 1.25**k).mean()) for k in (1, 2, 3)},
        "no distance": float((~known).mean()),
    }


def aligned(given: Known, true: Known, protocol: DepthProtocol) -> Known:
    """Predicted distances after the fit to the true ones, in metres.

    Raises:
        InputError: for distances that the space does not have.
    """
    if protocol.alignment == "none":
        return given
    if protocol.space != "depth" and given.min() <= 0:
        raise InputError(f"space: expected depth above 0 for {protocol.space}, got {given.min():g}")
    there, back = SPACES[protocol.space]
    x, y = there(given), there(true)
    if protocol.alignment == "scale and shift":
        columns = np.stack([x, np.ones_like(x)], -1)
        scale, shift = np.linalg.lstsq(columns, y, rcond=None)[0]
    elif protocol.space == "log":
        scale, shift = 1.0, (y - x).mean()
    else:
        scale, shift = (x @ y) / max(x @ x, 1e-12), 0.0
    return back(scale * x + shift)


def cropped(size: tuple[int, int], crop: Crop) -> Bool[np.ndarray, "h w"]:
    """Where a crop is, in a picture of this height and width."""
    top, bottom, left, right = CROPS[crop]
    height, width = size
    inside = np.zeros((height, width), bool)
    inside[int(top * height) : int(bottom * height), int(left * width) : int(right * width)] = True
    return inside


def _resized(depth: Depth, size: tuple[int, int]) -> tuple[Map, Bool[np.ndarray, "h w"]]:
    """Distances on another grid, between known ones only, and where there are any."""
    if depth.metres.shape == size:
        return depth.metres, depth.valid
    height, width = size
    parts = (depth.valid, np.where(depth.valid, depth.metres, 0))
    weights, sums = (
        np.asarray(Image.fromarray(part).resize((width, height), Image.Resampling.BILINEAR))
        for part in (each.astype(np.float32) for each in parts)
    )
    known = weights > 0.5
    return np.where(known, sums / np.maximum(weights, 1e-6), 0), known
