"""What is done to a head: pure functions of its queries, keys, values, and a weight for each sample and head.

A perturbed head attends with the map (1 - u) A + u P (arXiv 2506.10978); what P is gives each perturbation
its name. Since attention is linear in its map, the output is moved instead: lerp(A v, P v, u). P v, the
*target*, needs no N x N map for identity, uniform and mean query.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from dit_heads.errors import InputError

REGIONS = ("joint", "image", "image_to_image")
_CHUNK = 256  # queries whose scores exist at one time


@dataclass(frozen=True)
class Perturbation:
    """A perturbation of the attention map, in the rows (queries) of a region.

    Attributes:
        name: one of `TARGETS`.
        region: "joint" perturbs the rows of all tokens, "image" those of image tokens. "image_to_image" is
            defined for identity: each image token sees itself and all text (arXiv 2403.17377, as diffusers
            does it for SD3).
        temperature: tau of eq. 11, for "temperature" only.

    Raises:
        InputError: for a combination without a defined map.
    """

    name: str = "identity"
    region: str = "joint"
    temperature: float | None = None

    def __post_init__(self) -> None:
        if self.name not in TARGETS:
            raise InputError(f"perturbation: expected {', '.join(TARGETS)}, got {self.name!r}")
        if self.region not in REGIONS:
            raise InputError(f"region: expected {', '.join(REGIONS)}, got {self.region!r}")
        if self.region == "image_to_image" and self.name != "identity":
            raise InputError(f"region: 'image_to_image' is defined for identity only, got {self.name!r}")
        if (self.name == "temperature") != (self.temperature is not None):
            raise InputError(
                f"temperature: expected a number for 'temperature' and for no other perturbation, "
                f"got {self.temperature!r} for {self.name!r}"
            )
        if self.temperature is not None and not 0 < self.temperature < float("inf"):
            raise InputError(f"temperature: expected a finite number above 0, got {self.temperature!r}")

    def __call__(
        self,
        out: Float[Tensor, "b h n d"],
        q: Float[Tensor, "b h n d"],
        k: Float[Tensor, "b h n d"],
        v: Float[Tensor, "b h n d"],
        u: Float[Tensor, "b h"],
        image: slice,
    ) -> Float[Tensor, "b h n d"]:
        """Move each head from its attention towards the target of the perturbation (SoftPAG, eq. 7).

        Args:
            out: attention(q, k, v).
            q, k, v: of all tokens.
            u: softness in [0, 1] of each head.
            image: the image tokens of the sequence.

        Returns:
            lerp(out, P v, u) in the rows of the region, and `out` in all others.
        """
        rows = slice(None) if self.region == "joint" else image
        if self.region == "image_to_image":
            target = itself_and_text(q, k, v, image)
        else:
            chosen = q[:, :, rows] if self.temperature is None else q[:, :, rows] / self.temperature
            target = TARGETS[self.name](chosen, k, v, rows)
        moved = torch.lerp(out[:, :, rows], target, u[:, :, None, None])
        if moved.shape == out.shape:
            return moved
        start, stop, _ = image.indices(out.shape[2])
        return torch.cat([out[:, :, :start], moved, out[:, :, stop:]], dim=2)


# --- targets: P v of the query rows q = Q[rows], [B, H, n, D] or, where all rows are alike, [B, H, 1, D] ---


def identity(q: Tensor, k: Tensor, v: Tensor, rows: slice) -> Tensor:
    """P = I: each token keeps its own value. SoftPAG, eq. 7."""
    return v[:, :, rows]


def uniform(q: Tensor, k: Tensor, v: Tensor, rows: slice) -> Tensor:
    """P = 1/N everywhere. SoftUG, eq. 8."""
    return v.mean(2, keepdim=True)


def mean_query(q: Tensor, k: Tensor, v: Tensor, rows: slice) -> Tensor:
    """P = the attention of the rows' mean query, on every row. SoftSEG, eq. 9 and 10."""
    return F.scaled_dot_product_attention(q.mean(2, keepdim=True), k, v)


def arg_max(q: Tensor, k: Tensor, v: Tensor, rows: slice) -> Tensor:
    """P = one-hot of the key that each row attends to most. SoftMG, eq. 12 and 13."""
    strongest = [(part @ k.transpose(-1, -2)).argmax(-1) for part in q.split(_CHUNK, dim=2)]  # [B, H, n]
    index = torch.cat(strongest, dim=2)[..., None].expand(-1, -1, -1, v.shape[-1])
    return v.gather(2, index)


def temperature(q: Tensor, k: Tensor, v: Tensor, rows: slice) -> Tensor:
    """P = softmax(log A / tau), eq. 11: attention of queries that `Perturbation` has divided by tau."""
    return F.scaled_dot_product_attention(q, k, v)


def itself_and_text(q: Tensor, k: Tensor, v: Tensor, image: slice) -> Tensor:
    """P = attention of each image token over itself and all text tokens, renormalised (arXiv 2403.17377)."""
    start, stop, _ = image.indices(k.shape[2])
    text_k, text_v = (torch.cat([t[:, :, :start], t[:, :, stop:]], dim=2) for t in (k, v))
    own_q, own_k, own_v = (t[:, :, image] for t in (q, k, v))
    own = (own_q * own_k).sum(-1, keepdim=True)  # [B, H, image, 1]
    scores = torch.cat([own, own_q @ text_k.transpose(-1, -2)], dim=-1) * q.shape[-1] ** -0.5
    weights = scores.softmax(-1)  # [B, H, image, 1 + text]
    return weights[..., :1] * own_v + weights[..., 1:] @ text_v


TARGETS: dict[str, Callable[[Tensor, Tensor, Tensor, slice], Tensor]] = {
    "identity": identity,
    "uniform": uniform,
    "mean_query": mean_query,
    "arg_max": arg_max,
    "temperature": temperature,
}
