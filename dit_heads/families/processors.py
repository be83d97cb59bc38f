"""Attention processors that perturb heads of the last rows of a batch, and otherwise do what they replace."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.attention_processor import FusedJointAttnProcessor2_0, JointAttnProcessor2_0
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor
from jaxtyping import Float
from torch import Tensor

from dit_heads.errors import InputError

# How weights reach a processor: as an argument of the block, never as state. Gradient checkpointing runs
# blocks a second time, long after the call, and must see the same.
HEAD_WEIGHTS = "head_weights"
QKV = tuple[Tensor, Tensor, Tensor]


class HeadPerturbation(Protocol):
    """What perturbed heads put out; `guidance.perturb.Perturbation` is one."""

    @property
    def name(self) -> str: ...

    def __call__(
        self, out: Tensor, q: Tensor, k: Tensor, v: Tensor, u: Tensor, image: slice, /
    ) -> Tensor: ...


@dataclass(frozen=True)
class HeadWeights:
    """U [R, H] of each perturbed attention of a block, by its name; it is for the last R rows of the batch.
    `text_tokens` of the sequence are text, which a single-stream block of FLUX cannot see for itself."""

    u: Mapping[str, Float[Tensor, "r h"]]
    text_tokens: int


class HeadProcessor:
    """What the processors of all models share. `name` tells a block's attentions apart."""

    replaceable: tuple[type, ...]

    def __init__(self, replaced: Any, name: str, perturbation: HeadPerturbation) -> None:
        self.replaced, self.name, self.perturbation = replaced, name, perturbation
        self._attention_backend = getattr(replaced, "_attention_backend", None)
        self._parallel_config = getattr(replaced, "_parallel_config", None)

    @classmethod
    def check_replaceable(cls, processor: object, attn: Any, where: str) -> None:
        """Raise ValueError if this class in the place of `processor` would change what the model computes."""
        if type(processor) not in cls.replaceable:
            known = ", ".join(kind.__name__ for kind in cls.replaceable)
            raise InputError(
                f"{where}: heads can be guided with the attention processors {known}, got "
                f"{type(processor).__name__}, which would be dropped (IP-Adapter and PAG bring such ones)"
            )
        if isinstance(processor, FusedJointAttnProcessor2_0) and attn.norm_q is not None:
            raise InputError(
                f"{where}: diffusers' fused processor leaves out this model's qk-norm; unfuse it first"
            )

    def _weights(self, head_weights: HeadWeights | None) -> Tensor | None:
        return None if head_weights is None else head_weights.u.get(self.name)

    def _perturbed(self, qkv: QKV, u: Tensor, image: slice, mask: Tensor | None = None) -> Tensor:
        """Attention [B, N, H D] with the heads of the last rows perturbed."""
        q, k, v = qkv
        clean = len(q) - len(u)
        out = self._attend(q, k, v, mask)
        moved = self.perturbation(out[clean:], q[clean:], k[clean:], v[clean:], u.to(q.dtype), image)
        out = torch.cat([out[:clean], moved]) if clean else moved
        return out.transpose(1, 2).flatten(2)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """By the backend of the replaced processor, or else the one that is active in diffusers, which SD3's
        stock processor would ignore."""
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # the dispatcher's [B, N, H, D]
        out = dispatch_attention_fn(
            q,
            k,
            v,
            attn_mask=mask,
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
        return out.transpose(1, 2)


class JointHeadProcessor(HeadProcessor):
    """SD3's joint attention, image tokens first, and SD3.5's image-only one."""

    replaceable = (JointAttnProcessor2_0, FusedJointAttnProcessor2_0)

    def __call__(
        self,
        attn: Any,
        hidden_states: Float[Tensor, "b n c"],
        encoder_hidden_states: Float[Tensor, "b t c"] | None = None,
        attention_mask: Tensor | None = None,
        head_weights: HeadWeights | None = None,
        **kwargs: Any,
    ) -> Tensor | tuple[Tensor, Tensor]:
        u = self._weights(head_weights)
        if u is None:
            return self.replaced(attn, hidden_states, encoder_hidden_states, attention_mask, **kwargs)
        qkv = joint_projections(attn, hidden_states, encoder_hidden_states)
        image_tokens = hidden_states.shape[1]
        out = self._perturbed(qkv, u, slice(0, image_tokens))  # the stock processor ignores its mask as well
        return joint_outputs(attn, out, image_tokens, joint=encoder_hidden_states is not None)


class FluxHeadProcessor(HeadProcessor):
    """FLUX's attention, text tokens first, in double-stream and single-stream blocks."""

    replaceable = (FluxAttnProcessor,)

    def __call__(
        self,
        attn: Any,
        hidden_states: Float[Tensor, "b n c"],
        encoder_hidden_states: Float[Tensor, "b t c"] | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
        head_weights: HeadWeights | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        u = self._weights(head_weights)
        if u is None or head_weights is None:
            return self.replaced(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)
        if attention_mask is not None and self.perturbation.name != "identity":
            raise InputError(
                f"attention_mask: only identity is defined under one, got {self.perturbation.name!r}"
            )
        qkv = flux_projections(attn, hidden_states, encoder_hidden_states, image_rotary_emb)
        out = self._perturbed(qkv, u, slice(head_weights.text_tokens, None), attention_mask)
        return flux_outputs(attn, out, encoder_hidden_states)


def joint_projections(attn: Any, image: Tensor, text: Tensor | None) -> QKV:
    """SD3's queries, keys and values [B, H, N + T, D]: image tokens, then text tokens."""
    parts = [_image_heads(attn, image)] + ([] if text is None else [_text_heads(attn, text)])
    return _joined(parts)


def flux_projections(attn: Any, image: Tensor, text: Tensor | None, rotary: Any) -> QKV:
    """FLUX's queries, keys and values [B, H, T + N, D], text tokens first; a single-stream block has both
    in `image`."""
    q, k, v = _joined([*([] if text is None else [_text_heads(attn, text)]), _image_heads(attn, image)])
    if rotary is None:
        return q, k, v
    turned: Any = [apply_rotary_emb(t, rotary, sequence_dim=2) for t in (q, k)]
    return *turned, v


def flux_outputs(attn: Any, out: Tensor, text: Tensor | None) -> Tensor | tuple[Tensor, Tensor]:
    """FLUX's output projections of attention [B, T + N, C], for image and text apart; single-stream blocks
    have none."""
    if text is None:
        return out
    project, dropout = attn.to_out
    return dropout(project(out[:, text.shape[1] :])), attn.to_add_out(out[:, : text.shape[1]])


def _joined(parts: list[QKV]) -> QKV:
    """One sequence of the tokens of all parts."""
    if len(parts) == 1:
        return parts[0]
    (q, k, v), (q2, k2, v2) = parts
    return torch.cat([q, q2], 2), torch.cat([k, k2], 2), torch.cat([v, v2], 2)


def _image_heads(attn: Any, tokens: Tensor) -> QKV:
    if attn.fused_projections:
        return _heads(attn, attn.to_qkv(tokens).chunk(3, -1), attn.norm_q, attn.norm_k)
    return _heads(attn, (attn.to_q(tokens), attn.to_k(tokens), attn.to_v(tokens)), attn.norm_q, attn.norm_k)


def _text_heads(attn: Any, tokens: Tensor) -> QKV:
    if attn.fused_projections:
        projected = attn.to_added_qkv(tokens).chunk(3, -1)
    else:
        projected = attn.add_q_proj(tokens), attn.add_k_proj(tokens), attn.add_v_proj(tokens)
    return _heads(attn, projected, attn.norm_added_q, attn.norm_added_k)


def _heads(attn: Any, projected: Any, norm_q: Any, norm_k: Any) -> QKV:
    q, k, v = (t.unflatten(-1, (attn.heads, -1)) for t in projected)  # [B, N, H, D]
    q = q if norm_q is None else norm_q(q)  # before the transpose: fused kernels would copy it
    k = k if norm_k is None else norm_k(k)
    return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


def joint_outputs(attn: Any, out: Tensor, image_tokens: int, joint: bool) -> Tensor | tuple[Tensor, Tensor]:
    """SD3's output projections of attention [B, N + T, C], for image and text apart."""
    project, dropout = attn.to_out
    if not joint:
        return dropout(project(out))
    image, text = out[:, :image_tokens], out[:, image_tokens:]
    return dropout(project(image)), text if attn.context_pre_only else attn.to_add_out(text)


# By the family of a layout.
PROCESSORS: dict[str, type[HeadProcessor]] = {"sd3": JointHeadProcessor, "flux": FluxHeadProcessor}
