"""The solver: a small transformer that writes the tokens of a task from the features of a picture, one after
the other or all at once (AiT and AiT-P, arXiv 2301.02229, section 3.3)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from dit_heads.errors import InputError
from dit_heads.settings import Field, settings
from dit_heads.tasks.soft_tokens.features import FeatureConfig, Normaliser
from dit_heads.tasks.soft_tokens.sequences import Task, Vocabulary
from dit_heads.tasks.soft_tokens.soft import probabilities, soft_tokens

Width = Annotated[int, Field(ge=8, le=8192)]
Layers = Annotated[int, Field(ge=0, le=48)]
TASKS: tuple[Task, ...] = ("depth", "instances")


@settings
class SolverConfig:
    """The shape of a solver."""

    vocabulary: Vocabulary
    """What its tokens stand for."""
    features: FeatureConfig = field(default_factory=FeatureConfig)
    """Which features of the transformer it reads."""
    model: str = "embedded"
    """The model whose features it reads."""
    size: Annotated[int, Field(ge=8, le=8192)] = 128
    """Height and width in pixels of the pictures it reads."""
    text_tokens: Annotated[int, Field(ge=1)] = 64
    """Tokens of the empty prompt that the transformer reads."""
    channels: Annotated[int, Field(ge=1)] = 1536
    """Channels of these features."""
    kept: Annotated[int, Field(ge=1)] = 1536
    """Channels that are left without the massive ones."""
    order: Literal["autoregressive", "parallel"] = "parallel"
    """Whether tokens are written one after the other, or all in one pass."""
    width: Width = 192
    """Width of the transformer."""
    heads: Annotated[int, Field(ge=1, le=128)] = 6
    """Attention heads of a layer."""
    encoder_layers: Layers = 2
    """Layers that read the features."""
    decoder_layers: Annotated[int, Field(ge=1, le=48)] = 4
    """Layers that write the tokens."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Dropout while it trains."""

    def __post_init__(self) -> None:
        if self.width % self.heads or self.width % 4:
            raise InputError(f"width: expected a multiple of 4 and of {self.heads} heads, got {self.width}")


@dataclass
class Memory:
    """Keys and values of a decoder layer: those of the features, and those of the tokens so far."""

    features: tuple[Tensor, Tensor]
    tokens: tuple[Tensor, Tensor] | None = None


class DecoderLayer(nn.Module):
    """Attention over tokens, attention over features, and two linear layers; norms come first."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.own, self.own_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.ask, self.read, self.read_out = (nn.Linear(width, n * width) for n in (1, 2, 1))
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def remember(self, features: Float[Tensor, "b n d"]) -> Memory:
        """Keys and values of the features."""
        k, v = self.read(features).chunk(2, -1)
        return Memory((self._split(k), self._split(v)))

    def forward(self, x: Float[Tensor, "b s d"], memory: Memory, causal: bool) -> Float[Tensor, "b s d"]:
        """The tokens after this layer. Under `causal`, they follow those in the memory and join them."""
        q, k, v = map(self._split, self.own(self.norms[0](x)).chunk(3, -1))
        if causal and memory.tokens is not None:
            k, v = torch.cat([memory.tokens[0], k], 2), torch.cat([memory.tokens[1], v], 2)
        if causal and not self.training:
            memory.tokens = (k, v)
        is_first = q.shape[2] == k.shape[2]
        x = x + self._drop(self.own_out(self._attend(q, k, v, causal and is_first)))
        asked = self._split(self.ask(self.norms[1](x)))
        x = x + self._drop(self.read_out(self._attend(asked, *memory.features, False)))
        return x + self._drop(self.mlp(self.norms[2](x)))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return out.transpose(1, 2).flatten(2)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


@dataclass(frozen=True)
class Written:
    """A sequence that a solver wrote.

    Attributes:
        logits: of its tokens, by kind: "depth" [B, S, K]; "box" [B, M, 4, K], "class" [B, M, K] and "mask"
            [B, M, N, K].
        numbers: the likeliest tokens, [B, S].
    """

    logits: Mapping[str, Tensor]
    numbers: Int[Tensor, "b s"]


class Solver(nn.Module):
    """Features of a picture to the tokens of a task.

    Args:
        config: see `SolverConfig`.
        normaliser: of the features; one that changes nothing by default.
    """

    def __init__(self, config: SolverConfig, normaliser: Normaliser | None = None) -> None:
        super().__init__()
        self.config = config
        self.normaliser = normaliser or Normaliser(config.channels, config.kept)
        width, sizes = config.width, config.vocabulary.sizes
        self.input = nn.Linear(config.kept, width)
        layer = nn.TransformerEncoderLayer(
            width, config.heads, 4 * width, config.dropout, "gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(
            layer, config.encoder_layers, nn.LayerNorm(width), enable_nested_tensor=False
        )
        self.decoder = nn.ModuleList(
            DecoderLayer(width, config.heads, config.dropout) for _ in range(config.decoder_layers)
        )
        self.norm = nn.LayerNorm(width)
        self.embeddings = nn.ModuleDict({kind: nn.Embedding(n, width) for kind, n in sizes.items()})
        self.outputs = nn.ModuleDict({kind: nn.Linear(width, n) for kind, n in sizes.items()})
        self.place_embedding = nn.ParameterDict(
            {task: nn.Parameter(torch.randn(self.length(task), width) * 0.02) for task in TASKS}
        )
        # The mask embedding of every token in parallel; what stands before the first one otherwise.
        self.start_embedding = nn.ParameterDict({t: nn.Parameter(torch.randn(width) * 0.02) for t in TASKS})

    def length(self, task: Task) -> int:
        """Number of tokens in the sequence of a task."""
        return len(self.config.vocabulary.kinds(task))

    def read(self, features: Float[Tensor, "b n f"]) -> Float[Tensor, "b n d"]:
        """What the solver makes of the features of square pictures."""
        x = self.input(self.normaliser(features))
        return self.encoder(x + sines(x.shape[1], x.shape[2]).to(x))

    def forward(
        self, features: Float[Tensor, "b n f"], task: Task, numbers: Int[Tensor, "b s"] | None = None
    ) -> dict[str, Tensor]:
        """Logits of a whole sequence, by kind as in `Written`.

        Args:
            features: of the pictures.
            task: "depth" or "instances".
            numbers: the right tokens, which an autoregressive solver reads up to each place.

        Raises:
            InputError: an autoregressive solver without the right tokens.
        """
        memories = self._memories(self.read(features))
        if self.config.order == "parallel":
            x = self.start_embedding[task].expand(len(features), self.length(task), -1)
        elif numbers is None:
            raise InputError("numbers: expected the right tokens for an autoregressive solver, got None")
        else:
            x = self._shifted(task, numbers)
        x = self._decoded(x + self.place_embedding[task], memories)
        return self._logits(x, task)

    @torch.no_grad()
    def write(self, features: Float[Tensor, "b n f"], task: Task, tau: float = math.inf) -> Written:
        """Write the tokens of a task.

        Args:
            features: of the pictures.
            task: "depth" or "instances".
            tau: of soft feedback: an autoregressive solver reads sum_k p_k E_k of a token it wrote, with
                p = softmax(tau * logits) and E the table of embeddings. With infinity it reads the likeliest
                token.
        """
        if self.config.order == "parallel":
            logits = self(features, task)
        else:
            logits = self._step_by_step(features, task, tau)
        return Written(logits, numbers_of(logits, task))

    def _step_by_step(self, features: Tensor, task: Task, tau: float) -> dict[str, Tensor]:
        memories = self._memories(self.read(features))
        found = []
        x = self.start_embedding[task].expand(len(features), -1)
        for place, kind in enumerate(self.config.vocabulary.kinds(task)):
            out = self._decoded((x + self.place_embedding[task][place])[:, None], memories)
            found.append(out)
            p = probabilities(self.outputs[kind](out[:, 0]), tau)
            x = soft_tokens(p, self._table(kind))
        return self._logits(torch.cat(found, 1), task)

    def _decoded(self, x: Tensor, memories: list[Memory]) -> Tensor:
        causal = self.config.order == "autoregressive"
        for layer, memory in zip(self.decoder, memories, strict=True):
            x = layer(x, memory, causal)
        return self.norm(x)

    def _memories(self, read: Tensor) -> list[Memory]:
        layers: Any = self.decoder
        return [layer.remember(read) for layer in layers]

    def _shifted(self, task: Task, numbers: Tensor) -> Tensor:
        """The embedding of the token before each place."""
        parts, at = [], 0
        for kind, run in groupby(self.config.vocabulary.kinds(task)):
            count = len(list(run))
            parts.append(F.embedding(numbers[:, at : at + count], self._table(kind)))
            at += count
        first = self.start_embedding[task].expand(len(numbers), 1, -1)
        return torch.cat([first, torch.cat(parts, 1)[:, :-1]], 1)

    def _table(self, kind: str) -> Tensor:
        table: Any = self.embeddings[kind]
        return table.weight

    def _logits(self, x: Float[Tensor, "b s d"], task: Task) -> dict[str, Tensor]:
        if task == "depth":
            return {"depth": self.outputs["depth"](x)}
        vocabulary = self.config.vocabulary
        each = x.unflatten(1, (vocabulary.objects, vocabulary.each))
        box, name, mask = each[:, :, :4], each[:, :, 4], each[:, :, 5:]
        return {
            kind: self.outputs[kind](part) for kind, part in (("box", box), ("class", name), ("mask", mask))
        }


def numbers_of(logits: Mapping[str, Tensor], task: Task) -> Int[Tensor, "b s"]:
    """The likeliest tokens of a sequence."""
    if task == "depth":
        return logits["depth"].argmax(-1)
    box, name, mask = (logits[kind].argmax(-1) for kind in ("box", "class", "mask"))
    return torch.cat([box, name[..., None], mask], -1).flatten(1)


def sines(count: int, width: int) -> Float[Tensor, "count width"]:
    """Positions of a square grid of `count` places: sines and cosines of row and column (arXiv 1706.03762).

    Raises:
        InputError: for a number that is no square.
    """
    side = math.isqrt(count)
    if side**2 != count:
        raise InputError(f"features: expected those of a square picture, got {count} image tokens")
    rate = torch.exp(-math.log(100.0) * torch.arange(width // 4) / (width // 4))
    place = torch.arange(side)[:, None] * rate  # [side, width / 4]
    wave = torch.cat([place.sin(), place.cos()], -1)
    return torch.cat([wave[:, None].expand(side, side, -1), wave[None].expand(side, side, -1)], -1).flatten(
        0, 1
    )
