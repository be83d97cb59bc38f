"""Losses of tokenizers and solvers. Only pixels at which the truth is known count."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from dit_heads.tasks.soft_tokens.maps import DISTANCE, SKY, UNKNOWN, DepthRange, Known, Metres
from dit_heads.tasks.soft_tokens.tokenizer import Decoded

SILOG = 0.5  # lambda of SiLog
EPSILON = 1e-6


def silog(
    log_found: Float[Tensor, "b h w"], log_true: Float[Tensor, "b h w"], known: Known
) -> Float[Tensor, ""]:
    """sqrt(mean(g^2) - lambda mean(g)^2) with g = log found - log true, over the pixels with a distance of
    each map (Eigen et al., arXiv 1406.2283); the mean of the maps."""
    counted = (known == DISTANCE).to(log_found.dtype)
    count = counted.sum((1, 2)).clamp(min=1)
    apart = (log_found - log_true) * counted
    mean, square = apart.sum((1, 2)) / count, apart.pow(2).sum((1, 2)) / count
    return (square - SILOG * mean.pow(2) + EPSILON).sqrt().mean()


def value_error(decoded: Decoded, metres: Metres, known: Known, span: DepthRange) -> Float[Tensor, ""]:
    """Mean absolute error of depth values in [-1, 1], over all pixels with a distance."""
    counted = (known == DISTANCE).to(decoded.values.dtype)
    true = span.values(metres.clamp(min=span.near))
    return ((decoded.values - true).abs() * counted).sum() / counted.sum().clamp(min=1)


def sky_error(decoded: Decoded, known: Known) -> Float[Tensor, ""]:
    """Cross-entropy of sky, over all pixels that are known."""
    counted = (known != UNKNOWN).to(decoded.sky.dtype)
    each = F.binary_cross_entropy_with_logits(
        decoded.sky, (known == SKY).to(decoded.sky.dtype), reduction="none"
    )
    return (each * counted).sum() / counted.sum().clamp(min=1)


def depth_silog(decoded: Decoded, metres: Metres, known: Known, span: DepthRange) -> Float[Tensor, ""]:
    """SiLog of decoded depth."""
    true = metres.clamp(span.near, span.far).log()
    return silog(span.log_metres(decoded.values), true, known)


def dice(found: Float[Tensor, "n h w"], true: Float[Tensor, "n h w"]) -> Float[Tensor, " n"]:
    """1 - 2 |found and true| / (|found|^2 + |true|^2) of masks in [0, 1] (V-Net, arXiv 1606.04797)."""
    common, both = (found * true).sum((1, 2)), found.pow(2).sum((1, 2)) + true.pow(2).sum((1, 2))
    return 1 - (2 * common + 1) / (both + 1)


def mask_error(logits: Float[Tensor, "n h w"], true: Float[Tensor, "n h w"]) -> Float[Tensor, " n"]:
    """Dice and mean squared error of masks."""
    found = logits.sigmoid()
    return dice(found, true) + (found - true).pow(2).mean((1, 2))


def token_error(logits: Float[Tensor, "*n k"], numbers: Int[Tensor, "*n"]) -> Float[Tensor, ""]:
    """Cross-entropy of tokens."""
    return F.cross_entropy(logits.float().flatten(0, -2), numbers.flatten())


def commitment(vectors: Float[Tensor, "*n d"], codes: Float[Tensor, "*n d"]) -> Float[Tensor, ""]:
    """How far an encoder's vectors are from their codes: mean squared distance."""
    return (vectors - codes.detach()).pow(2).mean()


def straight_through(vectors: Float[Tensor, "*n d"], codes: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
    """The codes, with the gradients of the vectors."""
    return vectors + (codes - vectors).detach()
