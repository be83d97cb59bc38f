"""How far a picture's pixels are from those that it should have. SSIM needs torchmetrics,
`pip install 'dit-heads[eval]'`."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from dit_heads.errors import InputError

MOST_DECIBELS = 60.0
"""PSNR of pixels that are equal, whose own is infinite, and of those that are nearly so."""
SMALLEST = 6  # pixels a side that the windows of SSIM need


def likeness(
    found: Float[np.ndarray, "rows columns 3"],
    truth: Float[np.ndarray, "h w 3"],
    where: Bool[np.ndarray, "high wide"] | None = None,
) -> dict[str, float]:
    """What `distances` gives, and SSIM.

    SSIM (Wang et al., 2004; windows of 11 pixels, sigma 1.5) is the mean over the windows around the pixels
    that count. All others are set to the truth before, so that they change nothing.

    Args:
        found: a picture.
        truth: what it should be.
        where: the pixels that count, by default all.

    Raises:
        InputError: as of `distances`, for pictures of fewer than 6 pixels a side, and a missing torchmetrics.
    """
    known = distances(found, truth, where)
    if min(truth.shape[:2]) < SMALLEST:
        raise InputError(f"truth: expected {SMALLEST} pixels a side at least for SSIM, got {_size(truth)}")
    return {**known, "SSIM": _ssim(found, truth, _counting(truth, where))}


def distances(
    found: Float[np.ndarray, "rows columns 3"],
    truth: Float[np.ndarray, "h w 3"],
    where: Bool[np.ndarray, "high wide"] | None = None,
) -> dict[str, float]:
    """L1, L2 (the mean square) and PSNR in decibels of pixels in [0, 1].

    Args:
        found, truth, where: as of `likeness`.

    Raises:
        InputError: for pictures of different sizes, and no pixels that count.
    """
    counts = _counting(truth, where)
    if found.shape != truth.shape or counts.shape != truth.shape[:2]:
        raise InputError(
            f"found: expected a picture of the truth's size, {_size(truth)}, got {_size(found)} with "
            f"{_size(counts)} pixels that may count"
        )
    if not counts.any():
        raise InputError("where: expected pixels that count, got none")
    apart = found[counts].astype(np.float64) - truth[counts]
    square = float((apart**2).mean())
    psnr = min(-10 * float(np.log10(square)), MOST_DECIBELS) if square else MOST_DECIBELS
    return {"L1": float(np.abs(apart).mean()), "L2": square, "PSNR": psnr}


def _counting(truth: np.ndarray, where: np.ndarray | None) -> np.ndarray:
    return np.ones(truth.shape[:2], bool) if where is None else where


def _size(picture: np.ndarray) -> str:
    return f"{picture.shape[0]} x {picture.shape[1]}"


def _ssim(found: np.ndarray, truth: np.ndarray, counts: np.ndarray) -> float:
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure
    except ImportError as error:
        raise InputError("torchmetrics: expected it, `pip install 'dit-heads[eval]'`") from error
    import torch

    kept = np.where(counts[..., None], found, truth)
    one, other = (torch.from_numpy(np.float32(each)).permute(2, 0, 1)[None] for each in (kept, truth))
    _, windows = structural_similarity_index_measure(one, other, data_range=1.0, return_full_image=True)
    return float(windows[0].mean(0)[torch.from_numpy(counts)].mean())
