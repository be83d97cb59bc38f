"""CLIP's loss against the formula, and its towers against what the SD3 pipeline reads of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dit_heads.embedded.nets.clip import WIDTH, Clip, ClipLoss, make_text_tower, retrieval, tokenize
from dit_heads.embedded.world.captions import caption
from dit_heads.embedded.world.scenes import COLOURS, Scene, Solid
from dit_heads.embedded.world.text import make_clip_tokenizer
from dit_heads.training.loop import Part

TOKENIZER = make_clip_tokenizer()
BATCH = 4
SCENES = [Scene((Solid("cube", colour),)) for colour in COLOURS[:BATCH]]
IMAGES = np.arange(BATCH, dtype=np.uint8).repeat(128 * 128 * 3).reshape(BATCH, 128, 128, 3)


class Told(nn.Module):
    """A CLIP that gives picture i and text i of a batch the vectors that it is told."""

    def __init__(self, first: Tensor, second: Tensor, scale: float = math.log(3.0)) -> None:
        super().__init__()
        self.texts, self.scale = (first, second), torch.tensor([scale, scale])

    def embed_images(self, pixels: Tensor) -> Tensor:
        return torch.eye(BATCH)

    def embed_texts(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        return self.texts


def told_loss(clip: Any) -> tuple[float, float]:
    loss, figures = ClipLoss(clip, TOKENIZER, IMAGES, SCENES, batch=BATCH)(
        Part(0), torch.Generator().manual_seed(0)
    )
    return loss.item(), float(figures["right"])


@pytest.fixture(scope="module")
def clip() -> Clip:
    torch.manual_seed(0)
    return Clip(len(TOKENIZER)).eval()


def test_loss_of_aligned_and_of_mismatched_pairs():
    eye, normaliser = torch.eye(BATCH), math.log(math.exp(3) + BATCH - 1)
    aligned, mismatched = normaliser - 3, normaliser
    assert told_loss(Told(eye, eye)) == pytest.approx((aligned, 1.0))
    assert told_loss(Told(eye.roll(1, 0), eye.roll(1, 0))) == pytest.approx((mismatched, 0.0))
    assert told_loss(Told(eye.roll(1, 0), eye))[0] == pytest.approx((aligned + mismatched) / 2)


def test_the_inverse_temperature_ends_at_100():
    wrong = torch.eye(BATCH).roll(1, 0)
    assert told_loss(Told(wrong, wrong, scale=20.0))[0] == pytest.approx(100.0)


def test_retrieval_counts_own_captions_that_score_highest():
    eye = torch.eye(BATCH)
    loud = eye.clone()
    loud[0, 1:3] = 2  # the first caption suits the second and third picture best
    told: Any = Told(eye, loud)
    assert retrieval(told, TOKENIZER, IMAGES, SCENES) == [1.0, 0.5]


@pytest.mark.parametrize("layers", [2, 3])
def test_text_towers_give_what_the_pipeline_reads(layers: int):
    torch.manual_seed(0)
    tower = make_text_tower(len(TOKENIZER), layers, "gelu").eval()
    ids = tokenize(TOKENIZER, ["a large red cube on grass", "a cone"])
    with torch.no_grad():
        out = tower(input_ids=ids, output_hidden_states=True)
    assert len(out.hidden_states) == layers + 1
    assert out.hidden_states[-2].shape == (2, 32, WIDTH)
    assert not torch.equal(out.hidden_states[-2], out.hidden_states[-1])
    assert out[0] is out.text_embeds and out.text_embeds.shape == (2, WIDTH)
    # an eos id of 2 makes transformers pool at the largest id instead of the first eos
    assert tower.config.eos_token_id == TOKENIZER.eos_token_id != 2
    first_eos = [7, 3]
    pooled = out.last_hidden_state[torch.arange(2), first_eos]
    torch.testing.assert_close(out.text_embeds, tower.text_projection(pooled))


def test_padding_says_nothing_to_the_pooled_vector(clip: Clip):
    short = TOKENIZER("a red cube", return_tensors="pt").input_ids
    with torch.no_grad():
        for bare, padded in zip(
            clip.embed_texts(short), clip.embed_texts(tokenize(TOKENIZER, ["a red cube"])), strict=True
        ):
            torch.testing.assert_close(bare, padded)


def test_embeddings_are_unit_vectors_of_one_width(clip: Clip):
    with torch.no_grad():
        seen = clip.embed_images(torch.zeros(2, 3, 128, 128))
        said = clip.embed_texts(tokenize(TOKENIZER, [caption(s) for s in SCENES[:2]]))
    for vectors in (seen, *said):
        assert vectors.shape == (2, WIDTH)
        torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(2))


def test_long_captions_are_cut_to_the_position_table():
    assert tokenize(TOKENIZER, ["red cube " * 50, ""]).shape == (2, 32)
