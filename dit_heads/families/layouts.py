"""Where each transformer class keeps its blocks, attentions and heads. A new model is one entry in `LAYOUTS`.

Reads module names and shapes only, so it works on the `meta` device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from dit_heads.errors import InputError
from dit_heads.heads import HeadId, HeadSet

JOINT, IMAGE_ONLY = "attn", "attn2"


@dataclass(frozen=True)
class Residuals:
    """A list of ControlNet residuals that a transformer adds after its blocks `blocks`: after each one the
    residual number `pick(place of the block among these, length of the list, arguments of the call)`."""

    argument: str
    blocks: range
    pick: Callable[[int, int, Mapping[str, Any]], int]


@dataclass(frozen=True)
class Layout:
    """The addressable parts of one transformer.

    `family` names the processor that its attentions take. `blocks[b]` is the path of block b; `heads[b]` and
    `image_only_heads[b]` count the heads of its joint and its image-only attention (0: none). `final` is
    the path of the modulated norm after the last block. `block_arguments` are the arguments of a block in
    order; of the transformer's own, `batched` have one row a sample.
    """

    model: str
    family: str
    blocks: tuple[str, ...]
    heads: tuple[int, ...]
    image_only_heads: tuple[int, ...]
    final: str
    block_arguments: tuple[str, ...]
    batched: tuple[str, ...]
    residuals: tuple[Residuals, ...]

    def resolve(self, heads: HeadSet) -> tuple[HeadId, ...]:
        """Every single head of the set, sorted. Raises ValueError naming what this model lacks."""
        return heads.resolve(self.heads, self.image_only_heads)

    def every_head(self) -> tuple[HeadId, ...]:
        """All heads, sorted, those of image-only attention too."""
        kinds = ((False, self.heads), (True, self.image_only_heads))
        found = (
            HeadId(block, head, only)
            for only, counts in kinds
            for block, count in enumerate(counts)
            for head in range(count)
        )
        return tuple(sorted(found))

    def attentions(self, block: int) -> tuple[str, ...]:
        """Names of the attention modules in a block."""
        return (JOINT, IMAGE_ONLY) if self.image_only_heads[block] else (JOINT,)

    def count(self, head: HeadId) -> int:
        """Heads of the attention that `head` belongs to."""
        return (self.image_only_heads if head.image_only else self.heads)[head.block]


def attention_name(head: HeadId) -> str:
    return IMAGE_ONLY if head.image_only else JOINT


def layout_of(transformer: nn.Module) -> Layout:
    """The layout of a transformer of a known class or of a subclass of it. Raises ValueError for any
    other."""
    for kind in type(transformer).__mro__:
        if kind.__name__ in LAYOUTS:
            return LAYOUTS[kind.__name__](transformer)
    raise InputError(f"transformer: expected one of {', '.join(LAYOUTS)}, got {type(transformer).__name__}")


def _sd3(transformer: Any) -> Layout:
    blocks = transformer.transformer_blocks
    residuals = Residuals(
        "block_controlnet_hidden_states", range(len(blocks)), lambda b, n, _: int(b / (len(blocks) / n))
    )
    return Layout(
        model=type(transformer).__name__,
        family="sd3",
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
            residuals.argument,
        ),
        residuals=(residuals,),
    )


def _flux(transformer: Any) -> Layout:
    """Double-stream blocks first, then single-stream ones, numbered through: 0-18 and 19-56 in FLUX.1."""
    double, single = len(transformer.transformer_blocks), len(transformer.single_transformer_blocks)
    blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
    residuals = (
        Residuals(
            "controlnet_block_samples",
            range(double),
            lambda b, n, call: b % n if call.get("controlnet_blocks_repeat") else b // math.ceil(double / n),
        ),
        Residuals(
            "controlnet_single_block_samples",
            range(double, double + single),
            lambda b, n, _: b // math.ceil(single / n),
        ),
    )
    return Layout(
        model=type(transformer).__name__,
        family="flux",
        blocks=(
            *(f"transformer_blocks.{b}" for b in range(double)),
            *(f"single_transformer_blocks.{b}" for b in range(single)),
        ),
        heads=tuple(block.attn.heads for block in blocks),
        image_only_heads=(0,) * len(blocks),
        final="norm_out",
        block_arguments=(
            "hidden_states",
            "encoder_hidden_states",
            "temb",
            "image_rotary_emb",
            "joint_attention_kwargs",
        ),
        batched=(
            "hidden_states",
            "encoder_hidden_states",
            "pooled_projections",
            "timestep",
            "guidance",
            *(r.argument for r in residuals),
        ),
        residuals=residuals,
    )


LAYOUTS: dict[str, Callable[[Any], Layout]] = {
    "SD3Transformer2DModel": _sd3,
    "FluxTransformer2DModel": _flux,
}
