"""Pre-trains T5: learned queries must recover each caption's attributes from its tokens.

A T5 that is trained together with SD3 remains a bag of words: CLIP's tokens already tell SD3 which attribute
belongs to which solid and which solid comes first. But CLIP reads only 32 tokens, too few for a caption of
several panels, and FLUX reads no CLIP tokens at all and has no positions of text. So the tokens of T5 have to
carry this information. A real T5 learns that by pre-training on text, ours learns it here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import T5EncoderModel

from dit_heads.embedded.nets.clip import tokenize
from dit_heads.embedded.nets.judge import SLOTS, attribute_heads, attribute_logits, attribute_losses, labels
from dit_heads.embedded.nets.sd3 import WIDTH, make_t5
from dit_heads.embedded.world.captions import (
    GRIDS,
    described,
    padded_length,
    scenes_caption,
    varied_caption,
)
from dit_heads.embedded.world.data import ATTRIBUTES
from dit_heads.embedded.world.scenes import Scene
from dit_heads.training.loop import Part

BACKWARD = 3  # heads of the T5 that initially attend to earlier tokens only
PANELS = max(rows * columns for rows, columns in GRIDS)
ANCHOR = 5.0  # weight of the distance to the anchor
LENGTHS = (32, 32, 32, 32, 64, 128)  # T5 tokens; it must learn to ignore padding of any length


def make_directed_t5(vocab_size: int) -> T5EncoderModel:
    """A T5 with half of its heads initially blind to later tokens.

    Heads that all start alike see the same bag of words from every position: after 1,300 steps they had not
    learned the order of solids. Started this way, they learn it in 150 steps.
    """
    t5 = make_t5(vocab_size)
    block: Any = t5.encoder.block[0]
    bias = block.layer[0].SelfAttention.relative_attention_bias.weight  # [buckets, heads]
    with torch.no_grad():
        bias[len(bias) // 2 + 1 :, :BACKWARD] -= 4.0  # the second half of the buckets is for later tokens
    return t5


class Reader(nn.Module):
    """A T5, and an attention layer in which queries for each panel, and for each solid in it from left to
    right, read its tokens. Like FLUX, it has no positions of text."""

    def __init__(self, t5: T5EncoderModel) -> None:
        super().__init__()
        self.t5 = t5
        self.query = nn.Parameter(torch.randn(PANELS, 1 + SLOTS, WIDTH) * 0.5)
        self.attention = nn.MultiheadAttention(WIDTH, 6, batch_first=True)
        self.norm = nn.LayerNorm(WIDTH)
        self.whole, self.solid = attribute_heads(WIDTH)

    def forward(self, tokens: Float[Tensor, "b n d"], panels: int = 1) -> dict[str, Tensor]:
        """Logits, as the judge has them, of B * panels pictures, from T5's tokens of B captions. The panels
        of a caption are consecutive."""
        queries = self.query[:panels].flatten(0, 1).expand(len(tokens), -1, -1)
        answers = self.norm(queries + self.attention(queries, tokens, tokens, need_weights=False)[0])
        answers = answers.unflatten(1, (panels, 1 + SLOTS)).flatten(0, 1)
        return attribute_logits(answers, self.whole, self.solid)

    def read(self, ids: Int[Tensor, "b n"], panels: int = 1) -> dict[str, Tensor]:
        """The logits of captions, given as token ids."""
        return self(self.t5(input_ids=ids).last_hidden_state, panels)


@dataclass(frozen=True)
class Captions:
    """A batch of captions with equally many panels, and the numbers of the scenes that they describe."""

    texts: list[str]
    scenes: Int[Tensor, " n"]  # B * panels
    panels: int
    length: int  # T5 tokens


class ReaderLoss:
    """Cross-entropy of every attribute of random captions, half of them joint captions of several panels.

    Args:
        reader: the model.
        tokenizer: T5's tokenizer.
        scenes: scenes whose captions are drawn.
        batch: number of captions per step.
        anchor: a frozen T5. The relative squared distance to its tokens of single captions is added to the
            loss, so that transformers trained on that T5 have little to relearn.
    """

    def __init__(
        self,
        reader: Reader,
        tokenizer: Any,
        scenes: Sequence[Scene],
        batch: int = 64,
        anchor: T5EncoderModel | None = None,
    ) -> None:
        self.reader, self.tokenizer, self.scenes, self.batch = reader, tokenizer, scenes, batch
        self.truth, self.anchor = labels(scenes), anchor

    def __call__(self, part: Part, generator: torch.Generator) -> tuple[Tensor, Mapping[str, float | Tensor]]:
        rng = np.random.default_rng(int(torch.randint(2**31, (), generator=generator)))
        drawn = self._joint(rng) if rng.random() < 0.5 else self._single(rng)
        device = self.reader.query.device
        ids = tokenize(self.tokenizer, drawn.texts, drawn.length).to(device)
        tokens = self.reader.t5(input_ids=ids).last_hidden_state
        truth = {name: true[drawn.scenes].to(device) for name, true in self.truth.items()}
        losses = attribute_losses(self.reader(tokens, drawn.panels), truth)
        total = torch.stack([*losses.values()]).sum()
        kind = "joint" if drawn.panels > 1 else "single"
        figures: dict[str, float | Tensor] = {f"{kind}_{k}": losses[k] for k in ("shape", "texture", "count")}
        if self.anchor is not None and drawn.panels == 1:
            with torch.no_grad():
                kept = self.anchor(input_ids=ids).last_hidden_state
            distance = (tokens - kept).pow(2).mean() / kept.pow(2).mean()
            total, figures["distance"] = total + ANCHOR * distance, distance.detach()
        return total, figures

    def _single(self, rng: np.random.Generator) -> Captions:
        length = int(rng.choice(LENGTHS))
        which = rng.integers(len(self.scenes), size=self.batch)
        say = described if length == max(LENGTHS) else varied_caption
        return Captions([say(self.scenes[i], rng) for i in which], torch.from_numpy(which), 1, length)

    def _joint(self, rng: np.random.Generator) -> Captions:
        rows, columns = GRIDS[int(rng.integers(len(GRIDS)))]
        panels = rows * columns
        which = rng.integers(len(self.scenes), size=(max(2, 2 * self.batch // panels), panels))
        texts = [scenes_caption([self.scenes[i] for i in each], rows, columns, rng) for each in which]
        length = padded_length(texts) + int(rng.choice((0, 0, 0, 32, 96)))
        return Captions(texts, torch.from_numpy(which).flatten(), panels, length)


@torch.no_grad()
def reading(
    reader: Reader, tokenizer: Any, scenes: Sequence[Scene], captions: Sequence[str], panels: int = 1
) -> float:
    """Share of the solids in captions whose attributes are all read correctly, each at its own place.

    The scenes are listed panel by panel, caption by caption.
    """
    truth = labels(scenes)
    logits = reader.read(tokenize(tokenizer, list(captions), padded_length(captions)), panels)
    right = torch.stack([logits[name].argmax(-1) == truth[name] for name in ATTRIBUTES]).all(0)
    return right[truth["shape"] >= 0].float().mean().item()
