"""What is done to a head: pure functions of its output, queries, keys, values and a weight for each sample
and head.

Each equals attention with the perturbed map of arXiv 2506.10978, yet no map is made: the output is moved
instead."""

from __future__ import annotations

from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor


class Perturbation(Protocol):
    """`out` is attention(q, k, v); `u` in [0, 1] says how far each sample's head moves, 0 not at all."""

    def __call__(
        self,
        out: Float[Tensor, "b h n d"],
        q: Float[Tensor, "b h n d"],
        k: Float[Tensor, "b h n d"],
        v: Float[Tensor, "b h n d"],
        u: Float[Tensor, "b h"],
    ) -> Float[Tensor, "b h n d"]: ...


def identity(
    out: Float[Tensor, "b h n d"],
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b h n d"],
    v: Float[Tensor, "b h n d"],
    u: Float[Tensor, "b h"],
) -> Float[Tensor, "b h n d"]:
    """SoftPAG, arXiv 2506.10978 eq. 7: the map (1 - u) A + u I, so every token moves towards its own value."""
    return torch.lerp(out, v, u[:, :, None, None])


PERTURBATIONS: dict[str, Perturbation] = {"identity": identity}
