"""Soft tokens: a mean of codes under the probabilities of the tokens, in place of the likeliest code (AiT,
arXiv 2301.02229, section 3.2)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from dit_heads.errors import InputError


def probabilities(logits: Float[Tensor, "*n K"], tau: float) -> Float[Tensor, "*n K"]:
    """p = softmax(tau * logits), in fp32; with an infinite tau, 1 for the largest logit and 0 for all others.

    Args:
        logits: of the tokens.
        tau: inverse temperature, above 0.

    Raises:
        InputError: for a tau that is not above 0.
    """
    if not tau > 0:
        raise InputError(f"tau: expected a number above 0, or inf for hard tokens, got {tau!r}")
    if math.isinf(tau):
        hard = torch.zeros_like(logits, dtype=torch.float32)
        return hard.scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
    return torch.softmax(tau * logits.float(), -1)


def soft_tokens(probability: Float[Tensor, "*n K"], codes: Float[Tensor, "K D"]) -> Float[Tensor, "*n D"]:
    """z = sum_k p_k e_k: the mean of the codes under the probabilities of the tokens."""
    return probability.to(codes.dtype) @ codes


def entropy(probability: Float[Tensor, "*n K"]) -> Float[Tensor, "*n"]:
    """Entropy of the tokens as a share of the largest one, log K: 0 is certain, 1 is uniform."""
    p = probability.float()
    return -(p * p.clamp(min=1e-30).log()).sum(-1) / math.log(p.shape[-1])
