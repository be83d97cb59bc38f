"""Instructions in words: our own paraphrases of each task, and those that a language model adds.

The phrases lie in `phrases/`, one a line; the first of a file is the plain one. Which are kept for tests of
unseen phrasings is decided by the text of a phrase alone, so it stays when others are added.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from string import Formatter
from typing import Literal

from dit_heads.errors import InputError
from dit_heads.tasks.query import Query, colours_of
from dit_heads.tasks.words import indefinite, listed, plural

Split = Literal["seen", "unseen"]
Writer = Callable[[str], str]
"""Text of a prompt -> what a language model writes after it."""
Reads = Callable[[str], bool]
"""Text -> whether a model knows all of its words."""
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
    reads: Reads = bool,
) -> str:
    """One of the instructions for a query.

    Args:
        key: Decides which, such as a sample's name and epoch: the same key always takes the same one.
        more: Phrases beside our own, such as those of `rewritten`.
        reads: Whether the text encoder knows all words of an instruction. Others are not chosen, unless it
            cannot even read the plain one.
    """
    choice = _choice(query, split, tuple(more), reads)
    return choice[number_of(key) % len(choice)]


@functools.lru_cache(4096)
def _choice(query: Query, split: Split, more: tuple[str, ...], reads: Reads) -> tuple[str, ...]:
    slots = _slots(query)
    every = tuple(phrase.format(**slots) for phrase in (*phrases(frame_of(query), split), *more))
    read = tuple(text for text in every if reads(text)) if reads(canonical(query)) else ()
    return read or every


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


def read_phrases(path: Path) -> dict[str, tuple[str, ...]]:
    """More phrases from a JSON file, by their frames: {"depth": ["How deep is it?", ...], ...}.

    Args:
        path: Of the file, such as one that holds what `rewritten` gave for each frame.

    Raises:
        InputError: for another file, frames that do not exist, phrases that the router takes for another
            task or that have other slots than the task, and phrases that are kept for tests.
    """
    from dit_heads.tasks.router import means

    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"phrases: expected a JSON file, cannot read '{path}': {error}") from error
    if not isinstance(found, dict) or not all(_texts(each) for each in found.values()):
        raise InputError(f"phrases: expected lists of phrases by {', '.join(FRAMES)} in '{path}'")
    for frame, given in found.items():
        slots = set[str]().union(*map(slots_of, phrases(frame)))
        for phrase in given:
            if phrase in phrases(frame, "unseen"):
                raise InputError(f"phrases: expected none that is kept for tests, got {phrase!r} in '{path}'")
            if not _slots_within(phrase, slots) or not means(phrase, frame):
                raise InputError(f"phrases: expected such as mean {frame}, got {phrase!r} in '{path}'")
    return {frame: tuple(given) for frame, given in found.items()}


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


def _texts(found: object) -> bool:
    return isinstance(found, list) and all(isinstance(each, str) for each in found)


def _slots_within(phrase: str, slots: set[str]) -> bool:
    try:
        return slots_of(phrase) <= slots
    except ValueError:
        return False


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
    return number_of(phrase) % 4 == 0


def number_of(text: str) -> int:
    """A number that looks random, and is always the same for a text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
