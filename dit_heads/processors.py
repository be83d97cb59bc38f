"""Attention processors that perturb heads of chosen rows of the batch, and otherwise do what they replace."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.attention_processor import (
    Attention,
    FusedJointAttnProcessor2_0,
    JointAttnProcessor2_0,
)
from jaxtyping import Float
from torch import Tensor

from dit_heads.perturb import Perturbation

# How weights reach a processor: as an argument of the block, never as state. Gradient checkpointing runs blocks a second
# time, long after the call, and must see the same.
HEAD_WEIGHTS = "head_weights"
_REPLACEABLE = (JointAttnProcessor2_0, FusedJointAttnProcessor2_0)


class JointHeadProcessor:
    """SD3's joint attention (image tokens first) and its image-only attention, `name` telling which.

    `head_weights[name]`, U [R, H], perturbs the last R rows of the batch; without it the replaced processor
    runs."""

    def __init__(self, replaced: Any, name: str, perturbation: Perturbation) -> None:
        self.replaced, self.name, self.perturbation = replaced, name, perturbation
        self._attention_backend = getattr(replaced, "_attention_backend", None)
        self._parallel_config = getattr(replaced, "_parallel_config", None)

    def __call__(
        self,
        attn: Attention,
        hidden_states: Float[Tensor, "b n c"],
        encoder_hidden_states: Float[Tensor, "b t c"] | None = None,
        attention_mask: Tensor | None = None,
        head_weights: Mapping[str, Float[Tensor, "r h"]] | None = None,
        **kwargs: Any,
    ) -> Tensor | tuple[Tensor, Tensor]:
        weights = (head_weights or {}).get(self.name)
        if weights is None:
            return self.replaced(attn, hidden_states, encoder_hidden_states, attention_mask, **kwargs)
        q, k, v = joint_projections(attn, hidden_states, encoder_hidden_states)
        clean = len(q) - len(weights)
        out = self._attend(q, k, v)
        perturbed = self.perturbation(out[clean:], q[clean:], k[clean:], v[clean:], weights)
        out = torch.cat([out[:clean], perturbed]) if clean else perturbed
        out = out.transpose(1, 2).flatten(2)  # [B, N + T, C]
        return joint_outputs(attn, out, hidden_states.shape[1], joint=encoder_hidden_states is not None)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self._attention_backend is None and self._parallel_config is None:
            return F.scaled_dot_product_attention(q, k, v)  # as the stock processor does
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # the dispatcher's [B, N, H, D]
        out = dispatch_attention_fn(
            q, k, v, backend=self._attention_backend, parallel_config=self._parallel_config
        )
        return out.transpose(1, 2)


def check_replaceable(processor: object, attn: Attention, where: str) -> None:
    """Raise ValueError if a `JointHeadProcessor` in the place of `processor` would change what the model computes."""
    if type(processor) not in _REPLACEABLE:
        known = ", ".join(kind.__name__ for kind in _REPLACEABLE)
        raise ValueError(
            f"{where}: heads can be guided with the attention processors {known}, "
            f"got {type(processor).__name__}, which would be dropped (IP-Adapter and PAG bring such processors)"
        )
    if isinstance(processor, FusedJointAttnProcessor2_0) and attn.norm_q is not None:
        raise ValueError(
            f"{where}: diffusers' fused processor leaves out this model's qk-norm; unfuse it first"
        )


def joint_projections(attn: Any, image: Tensor, text: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values [B, H, N + T, D]: image tokens, then text tokens."""
    if attn.fused_projections:
        parts = [attn.to_qkv(image).chunk(3, -1)]
        parts += [] if text is None else [attn.to_added_qkv(text).chunk(3, -1)]
    else:
        parts = [(attn.to_q(image), attn.to_k(image), attn.to_v(image))]
        parts += (
            [] if text is None else [(attn.add_q_proj(text), attn.add_k_proj(text), attn.add_v_proj(text))]
        )
    norms = [(attn.norm_q, attn.norm_k), (attn.norm_added_q, attn.norm_added_k)]
    heads = [_heads(attn, *part, *norm) for part, norm in zip(parts, norms, strict=False)]
    q, k, v = (torch.cat(part, dim=2) for part in zip(*heads, strict=True))
    return q, k, v


def _heads(
    attn: Any, q: Tensor, k: Tensor, v: Tensor, norm_q: Any, norm_k: Any
) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (t.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for t in (q, k, v))  # [B, H, N, D]
    return norm_q(q) if norm_q is not None else q, norm_k(k) if norm_k is not None else k, v


def joint_outputs(attn: Any, out: Tensor, image_tokens: int, joint: bool) -> Tensor | tuple[Tensor, Tensor]:
    project, dropout = attn.to_out
    if not joint:
        return dropout(project(out))
    image, text = out[:, :image_tokens], out[:, image_tokens:]
    return dropout(project(image)), text if attn.context_pre_only else attn.to_add_out(text)
