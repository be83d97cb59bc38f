"""How T5 learns to read before a transformer does: queries look in its tokens for what captions say.

A T5 that learns with SD3 from nothing stays a bag of words, since CLIP's tokens tell SD3 which attribute
belongs to which solid, and which solid comes first. But CLIP reads 32 tokens, so a caption of several panels
is lost on it; and FLUX reads no CLIP tokens, and its attention knows no order of text. So all of this has to
be in each T5 token. A real T5 has it from pre-training on text; this one has it from here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import T5EncoderModel

from dit_heads.embedded.nets.clip import tokenize
from dit_heads.embedded.nets.judge import SLOTS, attribute_heads, attribute_logits, attribute_losses, labels
from dit_heads.embedded.nets.sd3 import WIDTH, make_t5
from dit_heads.embedded.world.captions import described, varied_caption
from dit_heads.embedded.world.scenes import Scene
from dit_heads.training.loop import Part

BACKWARD = 3  # heads of the T5 that begin by looking at earlier tokens alone
LENGTHS = (32, 32, 32, 32, 64, 128)  # tokens: padding of any length says nothing


def make_directed_t5(vocab_size: int) -> T5EncoderModel:
    """A T5 half of whose heads begin blind to later tokens. Heads that begin alike all see the same bag of
    words from everywhere: after 1,300 steps the order of solids was not found. So it is in 150."""
    t5 = make_t5(vocab_size)
    block: Any = t5.encoder.block[0]
    bias = block.layer[0].SelfAttention.relative_attention_bias.weight  # [buckets, heads]
    with torch.no_grad():
        bias[len(bias) // 2 + 1 :, :BACKWARD] -= 4.0  # the second half of the buckets lies ahead
    return t5


class Reader(nn.Module):
    """A T5, and one attention layer by which the whole picture and each solid from left to right ask its
    tokens for their attributes. It has no positions of text, as FLUX has none."""

    def __init__(self, t5: T5EncoderModel) -> None:
        super().__init__()
        self.t5 = t5
        self.query = nn.Parameter(torch.randn(1 + SLOTS, WIDTH) * 0.5)
        self.attention = nn.MultiheadAttention(WIDTH, 6, batch_first=True)
        self.norm = nn.LayerNorm(WIDTH)
        self.whole, self.solid = attribute_heads(WIDTH)

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        """Token ids [B, L] -> logits as the judge gives them of a picture."""
        tokens = self.t5(input_ids=ids).last_hidden_state
        asked = self.query.expand(len(ids), -1, -1)
        read = self.norm(asked + self.attention(asked, tokens, tokens, need_weights=False)[0])
        return attribute_logits(read, self.whole, self.solid)


class ReaderLoss:
    """Cross-entropy of every attribute of random captions of scenes."""

    def __init__(self, reader: Reader, tokenizer: Any, scenes: Sequence[Scene], batch: int = 64) -> None:
        self.reader, self.tokenizer, self.scenes, self.batch = reader, tokenizer, scenes, batch
        self.truth = labels(scenes)

    def __call__(self, part: Part, generator: torch.Generator) -> tuple[Tensor, Mapping[str, float | Tensor]]:
        which = torch.randint(len(self.scenes), (self.batch,), generator=generator)
        length = LENGTHS[int(torch.randint(len(LENGTHS), (), generator=generator))]
        rng = np.random.default_rng(int(torch.randint(2**31, (), generator=generator)))
        say = described if length == max(LENGTHS) else varied_caption
        captions = [say(self.scenes[i], rng) for i in which.tolist()]
        device = self.reader.query.device
        said = self.reader(tokenize(self.tokenizer, captions, length).to(device))
        truth = {name: true[which].to(device) for name, true in self.truth.items()}
        losses = attribute_losses(said, truth)
        total = torch.stack([*losses.values()]).sum()
        return total, {k: losses[k] for k in ("shape", "colour", "count")}


@torch.no_grad()
def reading(reader: Reader, tokenizer: Any, scenes: Sequence[Scene], captions: Sequence[str]) -> float:
    """Share of the solids of captions whose shape and colour are read at their place from left to right."""
    truth, said = labels(scenes), reader(tokenize(tokenizer, list(captions), max(LENGTHS)))
    there = truth["shape"] >= 0
    right = [said[name].argmax(-1) == truth[name] for name in ("shape", "colour")]
    return (right[0] & right[1])[there].float().mean().item()
