"""A reference picture as tokens for a text encoder: what it means, fused with how it looks (MIGE, arXiv
2502.21291, section 3.2)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from diffusers.models.embeddings import get_2d_sincos_pos_embed
from jaxtyping import Float
from torch import Tensor, nn

from dit_heads.errors import InputError
from dit_heads.families import pipelines_of
from dit_heads.training.widen import input_of


@dataclass(frozen=True)
class FusionConfig:
    """Sizes of a `ReferenceEncoder`.

    Attributes:
        vision: width of the tokens of the vision tower.
        patches: width of the transformer's patch embeddings.
        text: width of the text encoder's embeddings.
        tokens: number of tokens that a picture becomes.
        width: width of the encoder, a multiple of `heads`.
        heads: attention heads of each layer.
        layers: layers of the semantic branch.
    """

    vision: int
    patches: int
    text: int
    tokens: int = 32
    width: int = 768
    heads: int = 8
    layers: int = 2

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not isinstance(value, int) or value < 1:
                raise InputError(f"{name}: expected a whole number of at least 1, got {value!r}")
        if self.width % self.heads:
            raise InputError(f"width: expected a multiple of {self.heads} heads, got {self.width}")


class ReferenceEncoder(nn.Module):
    """Turns the tokens of a vision tower and the patches of a picture's latents into text embeddings.

    Queries read the vision tower (a Q-Former of `config.layers` layers). Their result, the semantic tokens,
    reads the patches by attention whose output starts at zero, so that an untrained encoder gives the
    semantic tokens alone.

    Args:
        config: its sizes.
    """

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        self.config, width = config, config.width
        self.queries = nn.Parameter(torch.randn(config.tokens, width) / width**0.5)
        self.read_vision = nn.Linear(config.vision, width)
        layer = nn.TransformerDecoderLayer(
            width, config.heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.semantic = nn.TransformerDecoder(layer, config.layers)
        self.read_patches = nn.Sequential(
            nn.Linear(config.patches, width), nn.GELU(), nn.Linear(width, width)
        )
        self.look = nn.MultiheadAttention(width, config.heads, batch_first=True)
        self.norm, self.project = nn.LayerNorm(width), nn.Linear(width, config.text)
        nn.init.zeros_(self.look.out_proj.weight)
        nn.init.zeros_(self.look.out_proj.bias)

    def forward(
        self,
        vision: Float[Tensor, "B n v"] | None,
        patches: Float[Tensor, "B m p"] | None,
    ) -> Float[Tensor, "B t d"]:
        """Text embeddings of reference pictures.

        Args:
            vision: tokens of the vision tower; None leaves out what a picture means.
            patches: embedded patches of the latents; None leaves out how it looks.

        Raises:
            InputError: if both are left out.
        """
        given = patches if vision is None else vision
        if given is None:
            raise InputError("vision, patches: expected at least one of them, got neither")
        tokens = self.queries.expand(len(given), -1, -1)
        if vision is not None:
            tokens = self.semantic(tokens, self.read_vision(vision))
        if patches is not None:
            seen = self.read_patches(patches + positions(patches))
            tokens = tokens + self.look(tokens, seen, seen, need_weights=False)[0]
        return self.project(self.norm(tokens))


def reference_embeddings(
    encoder: ReferenceEncoder,
    transformer: Any,
    vision: Float[Tensor, "B n v"] | None,
    latents: Float[Tensor, "B C h w"] | None,
) -> Float[Tensor, "B t d"]:
    """Reference pictures as text embeddings. Gradients reach the encoder alone.

    Args:
        encoder: the encoder.
        transformer: that embeds the latents.
        vision: tokens of the vision tower, as `objectives.ImageTower` makes them; None leaves them out.
        latents: of the pictures, normalised; None leaves them out.

    Raises:
        InputError: if both are left out.
    """
    weight = encoder.project.weight
    with torch.no_grad():
        patches = None if latents is None else patches_of(transformer, latents).to(weight)
    return encoder(None if vision is None else vision.to(weight), patches)


def positions(patches: Float[Tensor, "B m p"]) -> Float[Tensor, "1 m p"]:
    """Sines and cosines of the places of the patches of a square picture, row by row.

    Raises:
        InputError: for a number of patches that is no square, and a width that is no multiple of 4.
    """
    _, count, width = patches.shape
    side = round(count**0.5)
    if side**2 != count or width % 4:
        raise InputError(f"patches: expected a square of patches of a width 4 n, got {count} of {width}")
    return get_2d_sincos_pos_embed(width, side, output_type="pt", device=patches.device)[None].to(patches)


def patches_of(transformer: Any, latents: Float[Tensor, "B C h w"]) -> Float[Tensor, "B m p"]:
    """Latents as a transformer itself embeds them, without positions. It reads no source beside them.

    Args:
        transformer: of a family whose input is known, widened or not.
        latents: normalised latents.
    """
    module = transformer.get_submodule(input_of(transformer).path)
    packed = pipelines_of(transformer).pack(latents.to(next(module.parameters()).dtype))
    if packed.ndim == 4:
        return module(_continued(packed, module.weight.shape[1], 1)).flatten(2).transpose(1, 2)
    return module(_continued(packed, module.weight.shape[1], -1))


def _continued(latents: Tensor, channels: int, axis: int) -> Tensor:
    """Zeros in the channels of a source."""
    shape = list(latents.shape)
    shape[axis] = channels - shape[axis]
    return torch.cat([latents, latents.new_zeros(shape)], axis)
