"""Tokens of pictures in the input of the last text encoder: at their places, never cut, with the words as
the pipeline itself reads them."""

from itertools import chain
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from dit_heads import load_embedded
from dit_heads.embedded.world.text import make_t5_tokenizer
from dit_heads.errors import InputError
from dit_heads.families import training_of
from dit_heads.fusion.splice import SLOT, last_text_encoder, slotted_ids, spliced
from dit_heads.tasks.multimodal import MultimodalInstruction
from tests.saved import PIPELINES

TOKENS = 24


@pytest.fixture(scope="module", params=["sd3", "flux"])
def pipe(request: pytest.FixtureRequest) -> Any:
    return load_embedded(request.param)


def own(pipe: Any, text: str) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        return training_of(pipe.transformer).encode_prompt(pipe, text, TOKENS)


def test_text_without_pictures_is_the_pipelines_own(pipe: Any):
    text = "a red cube on grass"
    with torch.no_grad():
        found = spliced(pipe, [MultimodalInstruction.of(text)], [[]], TOKENS)
    assert all(map(torch.equal, found, own(pipe, text)))


@torch.no_grad()
def test_the_embedding_of_a_word_in_place_of_a_picture_gives_the_sentence_with_the_word(pipe: Any):
    tokenizer, encoder = last_text_encoder(pipe)
    words = tokenizer("striped cube", add_special_tokens=False, return_tensors="pt").input_ids[0]
    picture = encoder.get_input_embeddings()(words)
    instruction = MultimodalInstruction.of("a red <it> on grass.", {"it": None})
    text, _ = spliced(pipe, [instruction], [[picture]], TOKENS)
    wanted, _ = own(pipe, "a red striped cube on grass.")
    assert_close(text[:, -TOKENS:], wanted[:, -TOKENS:])


@torch.no_grad()
def test_the_other_encoders_read_the_words_alone(pipe: Any):
    _, encoder = last_text_encoder(pipe)
    picture = torch.randn(4, encoder.get_input_embeddings().weight.shape[1])
    instruction = MultimodalInstruction.of("make <imagehere> red", [None])
    text, pooled = spliced(pipe, [instruction], [[picture]], TOKENS)
    words, of_words = own(pipe, "make red")
    assert torch.equal(pooled, of_words)
    rest = text.shape[1] - TOKENS
    assert torch.equal(text[:, :rest], words[:, :rest])
    assert not torch.allclose(text[:, rest:], words[:, rest:])


@torch.no_grad()
def test_instructions_are_read_together_as_if_alone(pipe: Any):
    _, encoder = last_text_encoder(pipe)
    width = encoder.get_input_embeddings().weight.shape[1]
    first, second, third = torch.randn(3, 4, width, generator=torch.Generator().manual_seed(0))
    texts = ["put <imagehere> on grass", "make the cube red", "<imagehere> next to <imagehere> at night"]
    shown = [[first], [], [second, third[:2]]]
    asked = [MultimodalInstruction.of(text, parts) for text, parts in zip(texts, shown, strict=True)]
    read: list[int] = []
    hook = encoder.register_forward_hook(lambda _, __, found: read.append(len(found[0])))
    together = spliced(pipe, asked, shown, TOKENS)
    hook.remove()
    assert read == [3] and not encoder._forward_pre_hooks and not encoder._forward_hooks
    alone = [spliced(pipe, [one], [there], TOKENS) for one, there in zip(asked, shown, strict=True)]
    for found, each in zip(together, zip(*alone, strict=True), strict=True):
        assert_close(found, torch.cat(each), rtol=1e-4, atol=1e-5)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=5), st.integers(1, 6), st.integers(0, 20))
def test_slots_stay_in_order_and_words_are_cut_from_the_end(lengths: list[int], slot: int, spare: int):
    words = ["cube " * length for length in lengths]
    slots = [slot] * (len(words) - 1)
    tokens = sum(slots) + 1 + spare
    tokenizer = make_t5_tokenizer()
    ids = slotted_ids(tokenizer, words, slots, tokens).tolist()
    every = [tokenizer(word, add_special_tokens=False).input_ids for word in words]
    assert len(ids) == tokens
    assert ids.count(SLOT) == sum(slots)
    end = ids.index(tokenizer.eos_token_id)
    assert ids[end + 1 :] == [tokenizer.pad_token_id] * (tokens - end - 1)
    assert [k for k in ids[:end] if k != SLOT] == list(chain(*every))[:spare]


def test_what_does_not_fit_is_named():
    pipe: Any = PIPELINES["sd3"]()
    one = MultimodalInstruction.of("<it>", {"it": None})
    with pytest.raises(InputError, match="pictures: expected 1, one a placeholder, got 0"):
        spliced(pipe, [one], [[]], 8)
    with pytest.raises(InputError, match=r"expected embeddings \[tokens, 32\], got the shape \(2, 5\)"):
        spliced(pipe, [one], [[torch.zeros(2, 5)]], 8)
    with pytest.raises(InputError, match="expected room for 9 tokens of pictures and the end of the text"):
        spliced(pipe, [one], [[torch.zeros(9, 32)]], 9)
    pipe.text_encoder_3 = None
    with pytest.raises(InputError, match="expected a pipeline with its text_encoder_3, got one without it"):
        last_text_encoder(pipe)
