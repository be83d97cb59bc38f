"""Instructions with pictures in them: text with placeholders, and the pictures that stand for these."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dit_heads.errors import InputError
from dit_heads.io.formats import PICTURE_SUFFIXES

PLACEHOLDER = "<imagehere>"
MOST = 4
"""References in an instruction, as in MIGE (arXiv 2502.21291)."""
_NAMED = re.compile(r"<([^<>\s]+)>")
References = Sequence[Any] | Mapping[str, Any]


@dataclass(frozen=True)
class MultimodalInstruction:
    """Text around pictures.

    Attributes:
        words: the text before, between and after the pictures, one piece more than there are pictures.
        names: the name of each picture, "" for one of `PLACEHOLDER`.
        pictures: the picture of each placeholder, in the order of the text.
    """

    words: tuple[str, ...]
    names: tuple[str, ...] = ()
    pictures: tuple[Any, ...] = ()

    @classmethod
    def of(cls, text: str, references: References = ()) -> MultimodalInstruction:
        """An instruction whose placeholders and pictures fit together.

        Args:
            text: Such as "make the <cube> blue", or "put <imagehere> on grass".
            references: A picture for each `<imagehere>`, in order; or pictures by the names in angle
                brackets. A name may come twice. Without any, the text may hold other words in angle brackets.

        Raises:
            InputError: for other text than a string, for placeholders without a picture, pictures without a
                placeholder, and more than `MOST` pictures.
        """
        if not isinstance(text, str):
            raise InputError(f"prompt: expected text, got {type(text).__name__}")
        if isinstance(references, str | bytes) or not isinstance(references, Mapping | Sequence):
            raise InputError(
                f"references: expected a list of pictures or a mapping of names to pictures, got "
                f"{type(references).__name__}"
            )
        if len(references) > MOST:
            raise InputError(f"references: expected at most {MOST} pictures, got {len(references)}")
        if isinstance(references, Mapping):
            return cls._of_names(text, references)
        words = text.split(PLACEHOLDER)
        if len(words) - 1 != len(references):
            raise InputError(
                f"references: expected {len(words) - 1}, one for each {PLACEHOLDER} of the prompt, got "
                f"{len(references)}"
            )
        return cls(tuple(words), ("",) * len(references), tuple(references))

    @classmethod
    def _of_names(cls, text: str, references: Mapping[str, Any]) -> MultimodalInstruction:
        words = _NAMED.split(text)
        names = tuple(words[1::2])
        if missing := [name for name in names if name not in references]:
            raise InputError(f"references: expected a picture for <{missing[0]}>, got none")
        if unused := [name for name in references if name not in names]:
            raise InputError(f"prompt: expected <{unused[0]}> in it, since there is a picture for it")
        return cls(tuple(words[::2]), names, tuple(references[name] for name in names))

    @property
    def text(self) -> str:
        """The instruction in words alone: names without their brackets, nothing for `PLACEHOLDER`."""
        joined = [part for pair in zip(self.words, (*self.names, ""), strict=True) for part in pair]
        return re.sub(r"\s+([,.;:?!])", r"\1", " ".join("".join(joined).split()))

    @property
    def in_words(self) -> MultimodalInstruction:
        """The instruction without pictures: their names, or "the picture N" for the N-th `PLACEHOLDER`."""
        named = tuple(name or f"the picture {n}" for n, name in enumerate(self.names, 1))
        return MultimodalInstruction((replace(self, names=named).text,))

    @property
    def distinct(self) -> tuple[Any, ...]:
        """The pictures in the order of the text, once where a name comes twice."""
        keys = (name or n for n, name in enumerate(self.names))
        return tuple(dict(zip(keys, self.pictures, strict=True)).values())


def instruction_in(folder: Path, text: str, read: Callable[[Path], Any]) -> MultimodalInstruction:
    """An instruction with the pictures in `references/` of a folder: by the names in angle brackets, or in
    the order of their names for `<imagehere>`.

    Args:
        folder: the folder.
        text: the instruction.
        read: makes a picture of its file.

    Raises:
        InputError: as of `MultimodalInstruction.of`, with the folder.
    """
    there = sorted(p for p in (folder / "references").glob("*") if p.suffix.lower() in PICTURE_SUFFIXES)
    shown = {path.stem: read(path) for path in there}
    try:
        given = list(shown.values()) if PLACEHOLDER in text or not shown else shown
        return MultimodalInstruction.of(text, given)
    except InputError as error:
        raise InputError(f"{error} ('{folder}')") from error
