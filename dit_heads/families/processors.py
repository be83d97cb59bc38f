"""What the attention processors of all families share: they perturb heads of the last rows of a batch, and
otherwise do what they replace."""

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
    `text_tokens` of the sequence are text, which a single-stream block cannot see for itself."""

    u: Mapping[str, Float[Tensor, "r h"]]
    text_tokens: int


class HeadProcessor:
    """Takes the place of a processor, and calls it where there is nothing to perturb. `name` tells a block's
    attentions apart; `replaceable` are the classes whose attention a family's own processor computes."""

    replaceable: tuple[type, ...]

    def __init__(self, replaced: Any, name: str, perturbation: HeadPerturbation) -> None:
        self.replaced, self.name, self.perturbation = replaced, name, perturbation

    def __deepcopy__(self, memo: object) -> HeadProcessor:
        raise InputError("pipe: a model under head guidance cannot be copied; detach first")

    @property
    def _attention_backend(self) -> Any:
        """The replaced processor's, which diffusers reads and sets here; SD3's has none."""
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
        """Raise ValueError if this class in the place of `processor` would change what the model computes."""
        if type(processor) not in cls.replaceable:
            known = ", ".join(kind.__name__ for kind in cls.replaceable)
            raise InputError(
                f"{where}: heads can be guided with the attention processors {known}, got "
                f"{type(processor).__name__}, which would be dropped (IP-Adapter and PAG bring such ones)"
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
        """As the replaced processor does: by its backend, or by torch's attention if it knows of none."""
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
    """One sequence of the tokens of all parts."""
    if len(parts) == 1:
        return parts[0]
    (q, k, v), (q2, k2, v2) = parts
    return torch.cat([q, q2], 2), torch.cat([k, k2], 2), torch.cat([v, v2], 2)


def image_heads(attn: Any, tokens: Tensor) -> QKV:
    if attn.fused_projections:
        return _heads(attn, attn.to_qkv(tokens).chunk(3, -1), attn.norm_q, attn.norm_k)
    return _heads(attn, (attn.to_q(tokens), attn.to_k(tokens), attn.to_v(tokens)), attn.norm_q, attn.norm_k)


def text_heads(attn: Any, tokens: Tensor) -> QKV:
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


def explicit_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v of [B, H, N, D] as [B, N, H D], with the map made."""
    a = torch.softmax(q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2), -1, dtype=q.dtype)
    return (a @ v).transpose(1, 2).flatten(2)
