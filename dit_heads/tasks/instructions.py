"""Instructions in words: our own paraphrases of each task, and those that a language model adds.

The phrases lie in `phrases/`, one a line; the first of a file is the plain one. Which are kept for tests of
unseen phrasings is decided by the text of a phrase alone, so it stays when others are added.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable, Sequence
from importlib import resources
from string import Formatter
from typing import Literal

from dit_heads.errors import InputError
from dit_heads.tasks.query import Query, colours_of
from dit_heads.tasks.words import indefinite, listed, plural

Split = Literal["seen", "unseen"]
Writer = Callable[[str], str]
"""Text of a prompt -> what a language model writes after it."""
FRAMES = ("segment", "segment_classes", "instances", "detect", "detect_classes", "depth", "classify")
_ASK = (
    "Write {count} different ways to give the instruction below to an image model. Vary wording, length and "
    "form (order, question, wish). Keep the meaning, and keep each of {slots} exactly as written. One a "
    "line, nothing else.\n\nInstruction: {phrase}\n"
)


@functools.cache
def phrases(frame: str, split: Split | None = None) -> tuple[str, ...]:
    """Phrases with slots in braces.

    Args:
        frame: One of `FRAMES`: a task, or `_classes` of one that names several.
        split: "seen", for training; "unseen", a quarter of all, for tests alone; None for both.
    """
    if frame not in FRAMES:
        raise InputError(f"frame: expected one of {', '.join(FRAMES)}, got {frame!r}")
    text = resources.files("dit_heads.tasks").joinpath(f"phrases/{frame}.txt").read_text("utf-8")
    first, *rest = text.splitlines()
    if split is None:
        return (first, *rest)
    chosen = [phrase for phrase in rest if _unseen(phrase) == (split == "unseen")]
    return (first, *chosen) if split == "seen" else tuple(chosen)


def canonical(query: Query) -> str:
    """The plain instruction for a query."""
    return fill(phrases(frame_of(query))[0], query)


def instruction(
    query: Query,
    key: str,
    split: Split = "seen",
    more: Sequence[str] = (),
    reads: Callable[[str], bool] = lambda text: True,
) -> str:
    """One of the instructions for a query.

    Args:
        key: Decides which, such as a sample's name and epoch: the same key always takes the same one.
        more: Phrases beside our own, such as those of `rewritten`.
        reads: Whether the text encoder knows all words of an instruction. Others are not chosen, unless it
            cannot even read the plain one.
    """
    every = [fill(phrase, query) for phrase in (*phrases(frame_of(query), split), *more)]
    read = [text for text in every if reads(text)] if reads(canonical(query)) else []
    choice = read or every
    return choice[_number(key) % len(choice)]


def frame_of(query: Query) -> str:
    """Which phrases serve a query."""
    several = query.task in ("segment", "detect") and len(query.names) > 1
    return f"{query.task}_classes" if several else query.task


def fill(phrase: str, query: Query) -> str:
    """A phrase with the query's names and colours in its slots."""
    return phrase.format(**_slots(query))


def rewritten(query_frame: str, write: Writer, *, rounds: int = 3, count: int = 10) -> list[str]:
    """More phrases from a language model, such as `language_model("Qwen/...")`, that are checked.

    One is kept if it has the slots of the phrase that it rewrites and no others, is one line of sensible
    length, still means the task to the router, and shares at most 70 % of its words with any that is there
    (as in SELF-GUIDE, arXiv 2407.12874, and TCIA, arXiv 2508.20374: faithful, diverse).

    Args:
        query_frame: One of `FRAMES`.
        rounds: How many of our seen phrases are rewritten.
        count: How many ways to ask for in each round.
    """
    from dit_heads.tasks.router import means

    seen, kept = phrases(query_frame, "seen"), []
    for phrase in seen[:rounds]:
        slots = ", ".join(sorted(f"{{{name}}}" for name in slots_of(phrase))) or "the words"
        answer = write(_ASK.format(count=count, slots=slots, phrase=phrase))
        for line in answer.splitlines():
            new = re.sub(r"^\s*(\d+[.)]|[-*])\s*", "", line).strip().strip('"')
            others = (*phrases(query_frame), *kept)
            if _keeps(new, phrase) and means(new, query_frame) and not any(_alike(new, o) for o in others):
                kept.append(new)
    return kept


def language_model(name: str, max_new_tokens: int = 512) -> Writer:
    """A writer from a text-generation model of transformers; greedy, so the same every time."""
    from transformers import pipeline

    generate = pipeline("text-generation", model=name)

    def write(prompt: str) -> str:
        chat = [{"role": "user", "content": prompt}]
        found = generate(chat, max_new_tokens=max_new_tokens, do_sample=False, return_full_text=False)
        return str(found[0]["generated_text"])

    return write


def slots_of(phrase: str) -> set[str]:
    """The names in braces. Raises ValueError for braces that do not match."""
    return {name for _, name, _, _ in Formatter().parse(phrase) if name is not None}


def _keeps(new: str, phrase: str) -> bool:
    try:
        same = slots_of(new) == slots_of(phrase)
    except ValueError:
        return False
    return same and 1 <= len(new.split()) <= 40


def _alike(a: str, b: str) -> bool:
    one, two = (set(re.findall(r"[a-z]+", text.lower())) for text in (a, b))
    return len(one & two) > 0.7 * max(len(one | two), 1)


def _slots(query: Query) -> dict[str, str]:
    if not query.names:
        return {}
    colours = colours_of(query) if query.task != "instances" else ("white",)
    pairs = list(zip(query.names, colours, strict=True))
    return {
        "name": query.names[0],
        "plural": plural(query.names[0]),
        "colour": colours[0],
        "list": listed([indefinite(name) for name in query.names]),
        "or_list": listed([indefinite(name) for name in query.names], "or"),
        "bindings": ", ".join(f"{colour} for {name}" for name, colour in pairs),
        "in_colours": listed([f"{name} in {colour}" for name, colour in pairs]),
        "choices": ", ".join(f"{colour} if it is {indefinite(name)}" for name, colour in pairs),
    }


def _unseen(phrase: str) -> bool:
    return _number(phrase) % 4 == 0


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
