"""Joint captions of In-Context LoRA (arXiv 2410.23775): an optional trigger, a summary, each panel behind its
marker; identities such as `<Leo>` that several panels share; what a text encoder would cut off."""

from __future__ import annotations

import re
import warnings
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dit_heads.errors import InputError
from dit_heads.tasks.markers import PATTERN, PLACES, counted, families

_MARKER = re.compile(PATTERN)
_ANY_CASE = re.compile(PATTERN, re.IGNORECASE)
_IDENTITY = re.compile(r"<[A-Za-z][A-Za-z0-9_-]*>")
_BROKEN_IDENTITY = re.compile(r"<[A-Za-z][^\s<>]*|\b[A-Z][A-Za-z0-9_-]*>")  # not "a -> b" or "<3"


def _check_markers(found: Sequence[str]) -> None:
    known = [*PLACES.values(), counted(len(found), "scenes"), counted(len(found), "images")]
    if not found or tuple(found) not in known:
        forms = "[LEFT] [RIGHT], [TOP] [BOTTOM], the four corners, [SCENE-1] [SCENE-2] ..., [IMAGE1] ..."
        raise InputError(
            f"markers: expected each once and in order: {forms}; got {' '.join(found) or 'none'}"
        )


@dataclass(frozen=True)
class JointCaption:
    """A caption in its parts; `str()` joins them, `parse` takes them apart again.

    Runs of white space become one space.

    Attributes:
        summary: the text before the first marker.
        panels: the text behind each marker.
        markers: the marker of each panel.
        trigger: a word that comes first of all, or "".

    Raises:
        InputError: for empty panels, markers that are no family in order, and markers inside other parts.

    >>> str(JointCaption("Two views of <Leo>.", ("<Leo> smiles.", "<Leo> runs."), markers(1, 2)))
    'Two views of <Leo>. [LEFT] <Leo> smiles. [RIGHT] <Leo> runs.'
    """

    summary: str
    panels: tuple[str, ...]
    markers: tuple[str, ...]
    trigger: str = ""

    def __post_init__(self) -> None:
        for name in ("summary", "trigger"):
            object.__setattr__(self, name, _one_line(getattr(self, name)))
        object.__setattr__(self, "panels", tuple(_one_line(panel) for panel in self.panels))
        object.__setattr__(self, "markers", tuple(self.markers))
        _check_markers(self.markers)
        if len(self.panels) != len(self.markers):
            raise InputError(f"panels: expected {len(self.markers)}, one a marker, got {len(self.panels)}")
        if empty := [m for m, panel in zip(self.markers, self.panels, strict=True) if not panel]:
            raise InputError(f"panels: expected words behind each marker, got none behind {', '.join(empty)}")
        for part in (self.summary, self.trigger, *self.panels):
            if found := _ANY_CASE.findall(part):
                raise InputError(f"caption: expected no marker inside a part, got {found[0]} in {part!r}")

    def __str__(self) -> str:
        marked = [f"{m} {panel}" for m, panel in zip(self.markers, self.panels, strict=True)]
        return " ".join(part for part in (self.trigger, self.summary, *marked) if part)

    @classmethod
    def parse(cls, text: str, *, trigger: str = "") -> JointCaption:
        """Take a joint caption apart.

        Args:
            text: the caption. What precedes the first marker is the summary.
            trigger: word that it begins with, which only the caller can tell from the summary.

        Raises:
            InputError: the markers or the trigger are not there.
        """
        head, *panels = (_one_line(part) for part in _MARKER.split(text))
        trigger = _one_line(trigger)
        if trigger and not f"{head} ".startswith(f"{trigger} "):
            raise InputError(f"trigger: expected the caption to begin with {trigger!r}, got {text[:60]!r}")
        return cls(head.removeprefix(trigger), tuple(panels), markers_in(text), trigger)


def markers_in(text: str) -> tuple[str, ...]:
    """The panel markers of any text, in order."""
    return tuple(_MARKER.findall(text))


def without_markers(text: str) -> str:
    """A text with a space in place of each panel marker."""
    return _MARKER.sub(" ", text)


def check_caption(caption: str | JointCaption, rows: int, columns: int) -> JointCaption | None:
    """Take apart a caption of a grid. The trainer and `InContextPipeline` share this rule, so that what is
    trained can be generated.

    Args:
        caption: the caption.
        rows, columns: of the grid.

    Returns:
        Its parts; None for a caption without any marker.

    Raises:
        InputError: unless there is a marker for each panel, once and in order, of one family that names this
            grid, in capitals, with words behind each.
    """
    if isinstance(caption, str) and not _ANY_CASE.search(caption):
        return None
    text, panels = str(caption), rows * columns
    if lower := [marker for marker in _ANY_CASE.findall(text) if marker != marker.upper()]:
        raise InputError(f"the caption has {lower[0]}, expected markers in capitals: {lower[0].upper()}")
    found = markers_in(text)
    fitting = families(rows, columns)
    choices = " or ".join(" ".join(family) for family in fitting)
    if found not in fitting:
        raise InputError(
            f"the caption has markers of {len(set(found))} panels, expected {panels}, each once and in "
            f"order, behind {choices}; got {len(found)}, behind {' '.join(found)}"
        )
    return JointCaption.parse(caption) if isinstance(caption, str) else caption


def _one_line(text: str) -> str:
    return " ".join(text.split())


# --- identities ---


def identities(caption: JointCaption) -> dict[str, tuple[int, ...]]:
    """The identities of a caption, such as `<Leo>`.

    Returns:
        The panels that show each identity (0 = the first), by its tag.

    Raises:
        InputError: for a tag that is not closed, or not made of letters, digits, `-` and `_`.
    """
    for part in (caption.summary, *caption.panels):
        if broken := _BROKEN_IDENTITY.search(_IDENTITY.sub(" ", part)):
            raise InputError(f"identity: expected a tag such as <Leo>, got {broken[0]!r} in {part!r}")
    names = dict.fromkeys(_IDENTITY.findall(" ".join((caption.summary, *caption.panels))))
    return {
        name: tuple(k for k, panel in enumerate(caption.panels) if name in _IDENTITY.findall(panel))
        for name in names
    }


# --- length ---


def warn_of_cuts(pipe: Any, captions: Mapping[str, str], tokens: int) -> None:
    """Warn of words that no text encoder of a pipeline reads.

    Args:
        pipe: a pipeline with its tokenizers.
        captions: the name of each caption, such as its set's, by its words.
        tokens: the limit of the last encoder, a T5.
    """
    names = sorted(name for name in pipe.components if name.startswith("tokenizer"))
    limits = [None] * (len(names) - 1) + [tokens]
    for caption, label in captions.items():
        check_length([getattr(pipe, name) for name in names], caption, limits, label)


def check_length(
    tokenizers: Sequence[Any], caption: str, max_lengths: Sequence[int | None], label: str = "caption"
) -> tuple[str, ...]:
    """Find the words at the end of a caption that no text encoder would read, and warn of them.

    A word counts as read when one encoder reads all of it. CLIP's cut at 77 tokens loses nothing while a T5
    reads on.

    Args:
        tokenizers: transformers' tokenizers that read the caption side by side, as SD3's three or FLUX's two
            do; None for one that was left out.
        caption: the caption.
        max_lengths: limit of each tokenizer in tokens, start and end tokens counted; None for its
            `model_max_length`.
        label: name of the caption, with which the warning begins.

    Returns:
        The words that are lost.

    Raises:
        InputError: no tokenizer is left, or the lengths of the lists differ.
    """
    if len(max_lengths) != len(tokenizers):
        raise InputError(f"max_lengths: expected {len(tokenizers)}, one a tokenizer, got {len(max_lengths)}")
    encoders = [
        (tokenizer, tokenizer.model_max_length if limit is None else limit)
        for tokenizer, limit in zip(tokenizers, max_lengths, strict=True)
        if tokenizer is not None
    ]
    if not encoders:
        raise InputError("tokenizers: expected at least one that is not None, got none")
    words = caption.split()
    lost = tuple(words[max(_words_read(tokenizer, words, limit) for tokenizer, limit in encoders) :])
    if lost:
        who = ", ".join(
            f"{type(tokenizer).__name__} reads {limit} of {_tokens(tokenizer, words)} tokens"
            for tokenizer, limit in encoders
        )
        warnings.warn(f"{label}: {who}; these words are lost: {' '.join(lost)}", stacklevel=2)
    return lost


def _words_read(tokenizer: Any, words: Sequence[str], limit: int) -> int:
    """How many words fit, whole, into `limit` tokens. A search by halves, since not every tokenizer can say
    which characters a token came from."""
    if _tokens(tokenizer, words) <= limit:
        return len(words)
    fits = range(len(words))
    return max(0, bisect_right(fits, limit, key=lambda count: _tokens(tokenizer, words[:count])) - 1)


def _tokens(tokenizer: Any, words: Sequence[str]) -> int:
    return len(tokenizer(" ".join(words), truncation=False, verbose=False).input_ids)
