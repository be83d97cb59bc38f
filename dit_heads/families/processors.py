"""Shared parts of the families' attention processors.

They perturb heads in the last rows of a batch and otherwise compute what the processors they replace do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from dit_heads.compat import dispatch_attention_fn
from dit_heads.errors import InputError

HEAD_WEIGHTS = "head_weights"  # the key under which a block's weights travel to its processors
QKV = tuple[Float[Tensor, "b h n d"], Float[Tensor, "b h n d"], Float[Tensor, "b h n d"]]


class HeadPerturbation(Protocol):
    """A rule for the output of perturbed heads, such as `guidance.perturb.Perturbation`."""

    @property
    def name(self) -> str: ...

    def __call__(
        self, out: Tensor, q: Tensor, k: Tensor, v: Tensor, u: Tensor, image: slice, /
    ) -> Tensor: ...


@dataclass(frozen=True)
class HeadWeights:
    """The weights of perturbed heads in one block.

    Attributes:
        u: U [R, H] by name of the attention, for the last R rows of the batch.
        text_tokens: number of text tokens in the sequence, which a single-stream block cannot tell itself.
    """

    u: Mapping[str, Float[Tensor, "r h"]]
    text_tokens: int


class HeadProcessor:
    """Replaces a processor, and calls it where there is nothing to perturb.

    `replaceable` lists the processor classes whose attention a family's own processor computes.

    Args:
        replaced: the processor that stood there before.
        name: name of the attention module in its block.
        perturbation: rule for the output of perturbed heads.
    """

    replaceable: tuple[type, ...]

    def __init__(self, replaced: Any, name: str, perturbation: HeadPerturbation) -> None:
        self.replaced, self.name, self.perturbation = replaced, name, perturbation

    def __deepcopy__(self, memo: object) -> HeadProcessor:
        raise InputError("pipe: a model under head guidance cannot be copied; detach first")

    @property
    def _attention_backend(self) -> Any:
        """The replaced processor's backend, which diffusers reads and sets here. SD3's has none."""
        return self.replaced._attention_backend

    @_attention_backend.setter
    def _attention_backend(self, backend: Any) -> None:
        self.replaced._attention_backend = backend

    @property
    def _parallel_config(self) -> Any:
        return self.replaced._parallel_config

    @_parallel_config.setter
    def _parallel_config(self, config: Any) -> None:
        self.replaced._parallel_config = config

    @classmethod
    def check_replaceable(cls, processor: object, attn: Any, where: str) -> None:
        """Check that this class can replace a processor without changing what the model computes.

        Args:
            processor: the processor that stands there now.
            attn: its attention module.
            where: path of the module, for the error message.

        Raises:
            InputError: for a processor whose attention this class does not compute.
        """
        if type(processor) not in cls.replaceable:
            known = ", ".join(kind.__name__ for kind in cls.replaceable)
            raise InputError(
                f"{where}: heads can be guided with the attention processors {known}, got "
                f"{type(processor).__name__}, which would be dropped (IP-Adapter and PAG bring such ones)"
            )

    def _weights(self, head_weights: HeadWeights | None) -> Tensor | None:
        return None if head_weights is None else head_weights.u.get(self.name)

    def _perturbed(
        self, qkv: QKV, u: Float[Tensor, "r h"], image: slice, mask: Tensor | None = None
    ) -> Float[Tensor, "b n c"]:
        """Attention [B, N, H D] with the heads of the last rows perturbed."""
        q, k, v = qkv
        clean = len(q) - len(u)
        out = self._attend(q, k, v, mask)
        moved = self.perturbation(out[clean:], q[clean:], k[clean:], v[clean:], u.to(q.dtype), image)
        out = torch.cat([out[:clean], moved]) if clean else moved
        return out.transpose(1, 2).flatten(2)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Attention by the backend of the replaced processor, or by torch's own if it has none."""
        if not hasattr(self, "_attention_backend"):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        out = dispatch_attention_fn(
            q.transpose(1, 2),  # the dispatcher's [B, N, H, D]
            k.transpose(1, 2),
            v.transpose(1, 2),
            attn_mask=mask,
            backend=self._attention_backend,
            parallel_config=getattr(self.replaced, "_parallel_config", None),
        )
        return out.transpose(1, 2)


# --- attentions with the projections of diffusers' `Attention` class ---


def joined(parts: list[QKV]) -> QKV:
    """One or two token sequences as one, [B, H, N, D] each."""
    if len(parts) == 1:
        return parts[0]
    (q, k, v), (q2, k2, v2) = parts
    return torch.cat([q, q2], 2), torch.cat([k, k2], 2), torch.cat([v, v2], 2)


def image_heads(attn: Any, tokens: Float[Tensor, "b n c"]) -> QKV:
    """Queries, keys and values [B, H, N, D] of image tokens, normalised."""
    if attn.fused_projections:
        return _heads(attn, attn.to_qkv(tokens).chunk(3, -1), attn.norm_q, attn.norm_k)
    return _heads(attn, (attn.to_q(tokens), attn.to_k(tokens), attn.to_v(tokens)), attn.norm_q, attn.norm_k)


def text_heads(attn: Any, tokens: Float[Tensor, "b t c"]) -> QKV:
    """Queries, keys and values [B, H, T, D] of text tokens, normalised."""
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


def explicit_attention(
    q: Float[Tensor, "b h n d"], k: Float[Tensor, "b h m d"], v: Float[Tensor, "b h m d"]
) -> Float[Tensor, "b n h*d"]:
    """softmax(q k^T / sqrt(d)) v, computed through its attention map."""
    a = torch.softmax(q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2), -1, dtype=q.dtype)
    return (a @ v).transpose(1, 2).flatten(2)
