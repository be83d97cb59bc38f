"""Task tokenizers: VQ-VAEs of depth maps and of masks, each within its box (AiT, arXiv 2301.02229, section
3.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch.nn.functional as F
from diffusers import VQModel
from jaxtyping import Float, Int
from torch import Tensor, nn

from dit_heads.errors import InputError
from dit_heads.settings import Field, settings
from dit_heads.tasks.soft_tokens.codebook import Codebook
from dit_heads.tasks.soft_tokens.maps import DepthRange
from dit_heads.tasks.soft_tokens.soft import soft_tokens

Kind = Literal["depth", "mask"]
INPUTS = {"depth": 3, "mask": 1}  # see `depth_input`; a mask in [-1, 1]
OUTPUTS = {"depth": 2, "mask": 1}  # a depth value and a logit of sky; a logit of the mask
NORM_GROUPS = 8
Count = Annotated[int, Field(ge=1, le=8192)]


@settings
class TokenizerConfig:
    """The shape of a tokenizer."""

    kind: Kind
    """What it reads: depth or mask."""
    size: Count = 128
    """Height and width of a map, or of a mask's crop, in pixels."""
    patch: Annotated[int, Field(ge=1, le=16)] = 2
    """Pixels along each side that the first convolution reads at once."""
    channels: tuple[Count, ...] = (32, 48, 64, 96)
    """Channels of each resolution. Each but the first halves it."""
    codes: Annotated[int, Field(ge=2, le=65536)] = 128
    """Number of codes."""
    dimension: Count = 64
    """Numbers in a code."""
    decay: Annotated[float, Field(gt=0, lt=1)] = 0.99
    """Decay of the codebook's averages."""
    near: float = 2.0
    """Metres, the nearest depth."""
    far: float = 60.0
    """Metres, the farthest depth."""

    def __post_init__(self) -> None:
        DepthRange(self.near, self.far)
        if self.size % self.stride:
            raise InputError(f"size: expected a multiple of {self.stride}, got {self.size}")
        if odd := [c for c in self.channels if c % NORM_GROUPS]:
            raise InputError(f"channels: expected multiples of {NORM_GROUPS}, got {odd}")

    @property
    def stride(self) -> int:
        """Pixels along each side of a token."""
        return self.patch * 2 ** (len(self.channels) - 1)

    @property
    def side(self) -> int:
        """Tokens along each side."""
        return self.size // self.stride

    @property
    def tokens(self) -> int:
        """Number of tokens of a map or mask."""
        return self.side**2


@dataclass(frozen=True)
class Decoded:
    """What a depth tokenizer puts out.

    Attributes:
        values: depth in [-1, 1] and beyond, by `DepthRange`.
        sky: logits of sky.
    """

    values: Float[Tensor, "b h w"]
    sky: Float[Tensor, "b h w"]

    @classmethod
    def of(cls, output: Float[Tensor, "b 2 h w"]) -> Decoded:
        """The two channels of the output."""
        return cls(output[:, 0], output[:, 1])


class Tokenizer(nn.Module):
    """Maps to tokens and back. Encoder and decoder are those of diffusers' `VQModel`, whose own codebook is
    trained by gradients and is therefore left out; ours follows the vectors.

    Args:
        config: see `TokenizerConfig`.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        pixels = config.patch**2
        self.net: Any = VQModel(
            in_channels=INPUTS[config.kind] * pixels,
            out_channels=OUTPUTS[config.kind] * pixels,
            down_block_types=("DownEncoderBlock2D",) * len(config.channels),
            up_block_types=("UpDecoderBlock2D",) * len(config.channels),
            block_out_channels=config.channels,
            latent_channels=config.dimension,
            num_vq_embeddings=config.codes,
            norm_num_groups=NORM_GROUPS,
            mid_block_add_attention=False,
        )
        del self.net.quantize
        self.codebook = Codebook(config.codes, config.dimension, config.decay)

    def encode(self, maps: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """The vectors of a map, one a token, row by row, before they become codes."""
        self._check(maps)
        grid = self.net.encode(F.pixel_unshuffle(maps, self.config.patch)).latents
        return grid.flatten(2).transpose(1, 2)

    def tokenize(self, maps: Float[Tensor, "b c h w"]) -> Int[Tensor, "b n"]:
        """The tokens of a map."""
        return self.codebook.nearest(self.encode(maps))

    def decode(self, vectors: Float[Tensor, "b n d"]) -> Float[Tensor, "b c h w"]:
        """The map of codes, or of means of codes."""
        side = self.config.side
        grid = vectors.transpose(1, 2).unflatten(2, (side, side))
        return F.pixel_shuffle(self.net.decode(grid, force_not_quantize=True).sample, self.config.patch)

    def decode_tokens(self, numbers: Int[Tensor, "b n"]) -> Float[Tensor, "b c h w"]:
        """The map of tokens."""
        return self.decode(self.codebook.look_up(numbers))

    def decode_soft(self, probability: Float[Tensor, "b n k"]) -> Float[Tensor, "b c h w"]:
        """The map of soft tokens."""
        return self.decode(soft_tokens(probability, self.codebook.codes))

    @property
    def range(self) -> DepthRange:
        """The range of depth."""
        return DepthRange(self.config.near, self.config.far)

    def _check(self, maps: Tensor) -> None:
        wanted = (INPUTS[self.config.kind], self.config.size, self.config.size)
        if tuple(maps.shape[1:]) != wanted:
            raise InputError(
                f"maps: expected [b, {', '.join(map(str, wanted))}] for {self.config.kind}, "
                f"got {list(maps.shape)}"
            )
