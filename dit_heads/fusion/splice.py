"""Embeddings of an instruction with pictures in it: their tokens stand in the last text encoder's input."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dit_heads.errors import InputError
from dit_heads.families import training_of
from dit_heads.io.quiet import quiet_libraries
from dit_heads.tasks.multimodal import MultimodalInstruction

SLOT = -1  # in place of a token's id


def spliced(
    pipe: Any,
    instructions: Sequence[MultimodalInstruction],
    pictures: Sequence[Sequence[Float[Tensor, "_ d"]]],
    tokens: int,
) -> tuple[Float[Tensor, "B L D"], Float[Tensor, "B P"]]:
    """Text embeddings and pooled ones of instructions. Without pictures they are the pipeline's own.

    The last text encoder, a T5, reads the words with the tokens of the pictures between them. The others
    read the words alone. Each of them reads all instructions in one go.

    Args:
        pipe: an SD3 or FLUX pipeline with its text encoders.
        instructions: the words of each, with a place for each picture.
        pictures: of each instruction, the embeddings of its pictures, as wide as those of the last text
            encoder.
        tokens: that the last text encoder reads. Words that are beyond are cut, tokens of pictures never.

    Raises:
        InputError: for another number of pictures than an instruction has, for embeddings of another
            width, and if the pictures leave no room for the end of the text.
    """
    for one, there in zip(instructions, pictures, strict=True):
        if len(there) != len(one.pictures):
            raise InputError(f"pictures: expected {len(one.pictures)}, one a placeholder, got {len(there)}")
    texts = [one.text for one in instructions]
    reading = _reading(pipe, instructions, pictures, tokens) if any(map(len, pictures)) else nullcontext()
    with reading, quiet_libraries():  # of words that are cut, callers warn by `warn_of_cuts`
        return training_of(pipe.transformer).encode_prompt(pipe, texts, tokens)


@contextmanager
def _reading(
    pipe: Any,
    instructions: Sequence[MultimodalInstruction],
    pictures: Sequence[Sequence[Tensor]],
    tokens: int,
) -> Iterator[None]:
    """Let the last text encoder read pictures between the words of those instructions that have some."""
    tokenizer, encoder = last_text_encoder(pipe)
    embed, parts = encoder.get_input_embeddings(), [part for there in pictures for part in there]
    width = embed.weight.shape[1]
    if strange := [part for part in parts if part.ndim != 2 or part.shape[1] != width]:
        raise InputError(
            f"pictures: expected embeddings [tokens, {width}], got the shape {tuple(strange[0].shape)}"
        )
    slotted = {
        row: slotted_ids(tokenizer, one.words, [len(part) for part in there], tokens)
        for row, (one, there) in enumerate(zip(instructions, pictures, strict=True))
        if len(there)
    }

    def with_pictures(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        ids = args[0].clone()  # [B, tokens], as the pipeline reads the words alone
        for row, own in slotted.items():
            ids[row] = own
        found = embed(ids.clamp(min=0))
        found[ids == SLOT] = torch.cat(parts).to(found)
        return (None, *args[1:]), {**kwargs, "inputs_embeds": found}

    hook = encoder.register_forward_pre_hook(with_pictures, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def last_text_encoder(pipe: Any) -> tuple[Any, Any]:
    """The tokenizer and the model of the last text encoder: `text_encoder_3` of SD3, `text_encoder_2` of
    FLUX. Raises InputError for a pipeline without it."""
    name = max(name for name in pipe.components if name.startswith("text_encoder"))
    found = getattr(pipe, name.replace("text_encoder", "tokenizer")), getattr(pipe, name)
    if None in found:
        raise InputError(f"pipe: expected a pipeline with its {name}, got one without it")
    return found


def slotted_ids(
    tokenizer: Any, words: Sequence[str], slots: Sequence[int], tokens: int
) -> Int[Tensor, " tokens"]:
    """Ids of text with slots between its pieces, ended and padded. Words are cut from the end on.

    Args:
        tokenizer: a T5's.
        words: pieces of text, one more than there are slots.
        slots: number of tokens between two pieces.
        tokens: length of the result.

    Raises:
        InputError: if the slots leave no room for the end of the text.
    """
    room = tokens - 1 - sum(slots)
    if room < 0:
        raise InputError(
            f"tokens: expected room for {sum(slots)} tokens of pictures and the end of the text, got {tokens}"
        )
    ids: list[int] = []
    pieces = _tokenized(tokenizer, len(tokenizer), tuple(words))
    for piece, slot in zip(pieces, (*slots, 0), strict=True):
        kept = piece[:room]
        room -= len(kept)
        ids += [*kept, *[SLOT] * slot]
    ids.append(tokenizer.eos_token_id)
    return torch.tensor(ids + [tokenizer.pad_token_id] * (tokens - len(ids)))


@lru_cache(4096)
def _tokenized(tokenizer: Any, _: int, words: tuple[str, ...]) -> list[list[int]]:
    """Ids of pieces of text. Runs read the same text again and again.

    Args:
        tokenizer: a T5's.
        _: number of its tokens, by which it is told from itself with fewer.
        words: the pieces.
    """
    return tokenizer(list(words), add_special_tokens=False).input_ids
