"""The tokenizers: every caption in whole words, back and forth; padding, ends and limits."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer, T5Tokenizer

from dit_heads.embedded.world.captions import (
    CARDS,
    GRIDS,
    NAMES,
    NUMBERS,
    caption,
    described,
    instruction,
    joint_caption,
    partial,
    reworded,
    varied_caption,
)
from dit_heads.embedded.world.scenes import (
    COLOURS,
    GROUNDS,
    SHAPES,
    SIZES,
    TEXTURES,
    Scene,
    Solid,
    sample_scene,
)
from dit_heads.embedded.world.text import (
    CLIP_LENGTH,
    collect_vocabulary,
    make_clip_tokenizer,
    make_t5_tokenizer,
    unknown_words,
    vocabulary,
)

CLIP, T5 = make_clip_tokenizer(), make_t5_tokenizer()
BOS, EOS = 0, 1  # of CLIP, which pads with EOS
T5_PAD, T5_EOS, T5_UNKNOWN = 0, 1, 2

KINDS = (lambda scene, rng: caption(scene), reworded, partial, described, instruction, varied_caption)


@st.composite
def captions(draw: st.DrawFn) -> str:
    """Any caption of any scene, those of composites too."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    kind = draw(st.sampled_from(KINDS))
    rows, columns = draw(st.sampled_from([(1, 1), *GRIDS]))
    scenes = [sample_scene(int(seed)) for seed in rng.integers(30_000_000, size=rows * columns)]
    panels = [kind(scene, rng) for scene in scenes]
    return panels[0] if len(panels) == 1 else joint_caption(panels, rows, columns, rng)


@settings(max_examples=150, deadline=None)
@given(captions())
def test_t5_knows_every_word_and_gives_the_caption_back(text: str):
    ids = T5(text).input_ids
    assert T5_UNKNOWN not in ids and ids[-1] == T5_EOS
    assert len(ids) == len(re.findall(r"[,.:;?!]|[^\s,.:;?!]+", text)) + 1  # words, punctuation, end
    assert T5.decode(ids, skip_special_tokens=True) == text
    assert not unknown_words(text)


@settings(max_examples=150, deadline=None)
@given(captions())
def test_clip_reads_every_word_as_one_token(text: str):
    ids = CLIP(text, truncation=False).input_ids
    assert [CLIP.convert_ids_to_tokens(i) for i in ids[1:-1]] == _clip_pieces(text.lower())
    assert (ids[0], ids[-1]) == (BOS, EOS) and EOS not in ids[:-1]


def _clip_pieces(text: str) -> list[str]:
    """Letters by the word, digits and marks one by one; only the last of a run of marks ends a word."""
    runs = re.findall(r"[a-z]+|[0-9]|[^\sa-z0-9]+", text)
    return [p for run in runs for p in ([run + "</w>"] if run.isalpha() else [*run[:-1], run[-1] + "</w>"])]


def test_the_longest_canonical_caption_fits_clip():
    solid = Solid("cylinder", "orange", "striped", "large", shiny=True)
    text = caption(Scene((solid,) * 3, "grass", "day", "line drawing"))
    ids = CLIP(text, truncation=False).input_ids
    assert len(ids) == 30 <= CLIP_LENGTH
    assert len(T5(text).input_ids) == 29 <= 32


def test_clip_pads_with_the_end_and_cuts_long_texts():
    ids = CLIP(["a red cube", ""], padding="max_length").input_ids
    assert [len(i) for i in ids] == [32, 32]
    assert ids[0][4:] == [EOS] * 28 and ids[1] == [BOS] + [EOS] * 31
    long = CLIP("a red cube " * 20, truncation=True).input_ids
    assert len(long) == 32 and long[-1] == EOS and EOS not in long[:-1]


def test_t5_pads_after_the_end_and_cuts_long_texts():
    ids = T5(["a red cube", ""], padding="max_length", max_length=8).input_ids
    assert ids[0][3:] == [T5_EOS] + [T5_PAD] * 4 and ids[1] == [T5_EOS] + [T5_PAD] * 7
    long = T5("a red cube " * 20, truncation=True, max_length=8).input_ids
    assert len(long) == 8 and long[-1] == T5_EOS


def test_words_outside_the_vocabulary():
    assert T5("a zebra on snow").input_ids[1:-1] == [T5_UNKNOWN, *T5("on snow").input_ids[:-1]]
    ids = CLIP("zebra").input_ids
    assert EOS not in ids[:-1] and "".join(CLIP.convert_ids_to_tokens(ids[1:-1])) == "zebra</w>"


def test_case_matters_to_t5_only():
    assert T5("Show").input_ids != T5("show").input_ids
    assert CLIP("Show A Red CUBE").input_ids == CLIP("show a red cube").input_ids


@pytest.mark.parametrize("tokenizer", [CLIP, T5])
def test_a_stored_tokenizer_is_the_same(tokenizer: CLIPTokenizer | T5Tokenizer, tmp_path: Path):
    tokenizer.save_pretrained(tmp_path)
    again = type(tokenizer).from_pretrained(tmp_path)
    texts = ["[TOP-LEFT] a large shiny red cube, on snow at sunset.", "Show <Leo>: a zebra?", ""]
    call = {"padding": "max_length", "max_length": 32, "truncation": True}
    assert again(texts, **call).input_ids == tokenizer(texts, **call).input_ids


def test_the_vocabulary_holds_the_words_of_the_world():
    words = vocabulary()
    assert list(words) == sorted(set(words))
    assert set(words) >= {*SHAPES, *COLOURS, *GROUNDS, *SIZES, *TEXTURES[1:], *NAMES, *CARDS, *NUMBERS[:3]}
    assert set(collect_vocabulary(scenes=200)) <= set(words)
