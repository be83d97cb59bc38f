"""Where each transformer class keeps its blocks, attentions and heads. A new model is one entry in `LAYOUTS`.

Reads module names and shapes only, so it works on the `meta` device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from dit_heads.heads import HeadId, HeadSet

JOINT, IMAGE_ONLY = "attn", "attn2"


@dataclass(frozen=True)
class Layout:
    """The addressable parts of one transformer.

    `blocks[b]` is the path of block b; `heads[b]` and `image_only_heads[b]` count the heads of its joint and
    its image-only attention (0: none). `final` is the path of the modulated norm after the last block.
    `block_arguments` are the arguments of a block in order; of the transformer's own, `batched` have one row
    a sample."""

    model: str
    blocks: tuple[str, ...]
    heads: tuple[int, ...]
    image_only_heads: tuple[int, ...]
    final: str
    block_arguments: tuple[str, ...]
    batched: tuple[str, ...]

    def resolve(self, heads: HeadSet) -> tuple[HeadId, ...]:
        """Every single head of the set, sorted. Raises ValueError naming what this model lacks."""
        return heads.resolve(self.heads, self.image_only_heads)

    def attentions(self, block: int) -> tuple[str, ...]:
        """Names of the attention modules in a block."""
        return (JOINT, IMAGE_ONLY) if self.image_only_heads[block] else (JOINT,)

    def count(self, head: HeadId) -> int:
        """Heads of the attention that `head` belongs to."""
        return (self.image_only_heads if head.image_only else self.heads)[head.block]


def attention_name(head: HeadId) -> str:
    return IMAGE_ONLY if head.image_only else JOINT


def layout_of(transformer: nn.Module) -> Layout:
    """The layout of a transformer of a known class or of a subclass of it. Raises ValueError for any other."""
    for kind in type(transformer).__mro__:
        if kind.__name__ in LAYOUTS:
            return LAYOUTS[kind.__name__](transformer)
    raise ValueError(f"transformer: expected one of {', '.join(LAYOUTS)}, got {type(transformer).__name__}")


def _sd3(transformer: Any) -> Layout:
    blocks = transformer.transformer_blocks
    return Layout(
        model=type(transformer).__name__,
        blocks=tuple(f"transformer_blocks.{b}" for b in range(len(blocks))),
        heads=tuple(block.attn.heads for block in blocks),
        image_only_heads=tuple(block.attn2.heads if block.attn2 is not None else 0 for block in blocks),
        final="norm_out",
        block_arguments=("hidden_states", "encoder_hidden_states", "temb", "joint_attention_kwargs"),
        batched=(
            "hidden_states",
            "encoder_hidden_states",
            "pooled_projections",
            "timestep",
            "block_controlnet_hidden_states",
        ),
    )


LAYOUTS: dict[str, Callable[[Any], Layout]] = {"SD3Transformer2DModel": _sd3}
