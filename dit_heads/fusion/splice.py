"""Embeddings of an instruction with pictures in it: their tokens stand in the last text encoder's input."""

from __future__ import annotations

from collections.abc import Sequence
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
    instruction: MultimodalInstruction,
    pictures: Sequence[Float[Tensor, "t d"]],
    tokens: int,
) -> tuple[Float[Tensor, "1 L D"], Float[Tensor, "1 P"]]:
    """Text embeddings and pooled ones of an instruction. Without pictures they are the pipeline's own.

    The last text encoder, a T5, reads the words with the tokens of the pictures between them. The others
    read the words alone.

    Args:
        pipe: an SD3 or FLUX pipeline with its text encoders.
        instruction: the words, with a place for each picture.
        pictures: the embeddings of each picture, as wide as those of the last text encoder.
        tokens: that the last text encoder reads. Words that are beyond are cut, tokens of pictures never.

    Raises:
        InputError: for another number of pictures than the instruction has, for embeddings of another
            width, and if the pictures leave no room for the end of the text.
    """
    if len(pictures) != len(instruction.pictures):
        raise InputError(
            f"pictures: expected {len(instruction.pictures)}, one a placeholder, got {len(pictures)}"
        )
    own = 1 if pictures else tokens  # what the pipeline's own call reads by the T5 gives way to `read` below
    with quiet_libraries():  # of words that are cut, callers warn by `warn_of_cuts`
        text, pooled = training_of(pipe.transformer).encode_prompt(pipe, instruction.text, own)
    if not pictures:
        return text, pooled
    tokenizer, encoder = last_text_encoder(pipe)
    embed = encoder.get_input_embeddings()
    width = embed.weight.shape[1]
    if strange := [part for part in pictures if part.ndim != 2 or part.shape[1] != width]:
        raise InputError(
            f"pictures: expected embeddings [tokens, {width}], got the shape {tuple(strange[0].shape)}"
        )
    ids = slotted_ids(tokenizer, instruction.words, [len(part) for part in pictures], tokens)
    ids = ids.to(embed.weight.device)
    found = embed(ids.clamp(min=0))
    found[ids == SLOT] = torch.cat(list(pictures)).to(found)
    read = encoder(inputs_embeds=found[None])[0]
    return torch.cat([text[:, : text.shape[1] - own], read.to(text)], 1), pooled


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
    for piece, slot in zip(words, (*slots, 0), strict=True):
        kept = tokenizer(piece, add_special_tokens=False).input_ids[:room]
        room -= len(kept)
        ids += [*kept, *[SLOT] * slot]
    ids.append(tokenizer.eos_token_id)
    return torch.tensor(ids + [tokenizer.pad_token_id] * (tokens - len(ids)))
