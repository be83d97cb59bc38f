"""Tokenizers of the embedded models. Every word of the captions is one token."""

from __future__ import annotations

import functools
import itertools
import re
import string
from importlib import resources
from typing import Any

import numpy as np
from transformers import CLIPTokenizer, T5Tokenizer

CLIP_LENGTH = 32
_PUNCTUATION = (",", ".", ":", ";", "?", "!")
_CLIP_SPLIT = re.compile(r"[a-z]+|[0-9]|[^\sa-z0-9]+")


@functools.cache
def vocabulary() -> tuple[str, ...]:
    """Every word of the training captions, in its own case (T5 keeps it), without trailing punctuation."""
    text = resources.files("dit_heads.embedded.world").joinpath("vocabulary.txt").read_text("utf-8")
    return tuple(text.split())


def collect_vocabulary(scenes: int = 40_000) -> list[str]:
    """The words in the captions of many training scenes, from which `vocabulary.txt` was made."""
    from dit_heads.embedded.world.captions import CARDS, GRIDS, joint_caption, varied_caption
    from dit_heads.embedded.world.data import scene_of

    rng = np.random.default_rng(0)
    words: set[str] = set()
    for index in range(scenes):
        words.update(split_words(varied_caption(scene_of("train", index), rng)))
    for rows, columns in GRIDS * 40:
        panels = [f"a plain {rng.choice(list(CARDS))} card"] * (rows * columns)
        words.update(split_words(joint_caption(panels, rows, columns, rng)))
    return sorted(words)


def split_words(text: str) -> list[str]:
    """Words as T5 sees them: split at spaces, without trailing punctuation."""
    return [w for w in (word.rstrip("".join(_PUNCTUATION)) for word in text.split()) if w]


def unknown_words(prompt: str) -> list[str]:
    """The words of a prompt that the embedded text encoders have never seen, in order and without repeats."""
    known = set(vocabulary())
    return list(dict.fromkeys(w for w in split_words(prompt) if w not in known))


def is_known(text: str) -> bool:
    """Whether the embedded text encoders have seen every word."""
    return not unknown_words(text)


def make_t5_tokenizer() -> T5Tokenizer:
    """A unigram model whose pieces are whole words, so that an unknown word is a single `<unk>`."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(mark, -2.0) for mark in _PUNCTUATION]
    pieces += [("▁" + word, -1.0) for word in vocabulary()]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)


def make_clip_tokenizer() -> CLIPTokenizer:
    """Byte pairs that build each lower-case word of the vocabulary. Other words are split into letters."""
    vocab: dict[str, int] = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    for character in string.ascii_lowercase + string.digits + string.punctuation:
        for piece in (character, character + "</w>"):
            vocab.setdefault(piece, len(vocab))
    merges: list[str] = []
    for word in sorted({w for v in vocabulary() for w in _CLIP_SPLIT.findall(v.lower())}):
        _learn(word, vocab, merges)
    pairs: Any = [tuple(m.split(" ")) for m in merges]
    return CLIPTokenizer(vocab=vocab, merges=pairs, model_max_length=CLIP_LENGTH)


def _learn(word: str, vocab: dict[str, int], merges: list[str]) -> None:
    """Add the merges that turn the pieces of a word, after the existing merges, into one token."""
    pieces = [*word[:-1], word[-1] + "</w>"]
    ranks = {m: k for k, m in enumerate(merges)}
    while len(pieces) > 1:
        pairs = enumerate(itertools.pairwise(pieces))
        rank, k = min((ranks.get(f"{a} {b}", len(ranks)), k) for k, (a, b) in pairs)
        a, b = pieces[k], pieces[k + 1]
        if rank == len(ranks):
            a, b, k = pieces[0], pieces[1], 0
            ranks[f"{a} {b}"] = len(merges)
            merges.append(f"{a} {b}")
            vocab.setdefault(a + b, len(vocab))
        pieces[k : k + 2] = [a + b]
