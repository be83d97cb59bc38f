"""The little English grammar that instructions and questions need: plurals, articles, lists."""

from __future__ import annotations

import re
from collections.abc import Sequence

IRREGULAR = {
    "person": "people", "man": "men", "woman": "women", "child": "children", "mouse": "mice",
    "foot": "feet", "tooth": "teeth", "goose": "geese", "knife": "knives", "leaf": "leaves",
    "shelf": "shelves", "wolf": "wolves", "sheep": "sheep", "fish": "fish", "deer": "deer",
    "scissors": "scissors", "skis": "skis", "glasses": "glasses", "bus": "buses", "lens": "lenses",
    "cactus": "cacti", "potato": "potatoes", "tomato": "tomatoes", "trousers": "trousers",
    "shorts": "shorts", "pants": "pants", "jeans": "jeans",
}  # fmt: skip
_SINGULAR = {many: one for one, many in IRREGULAR.items()}
_NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DETERMINERS = ("a", "an", "the", "no", "not", "some", "something", "anything", "nothing", "none", "neither")


def plural(name: str) -> str:
    """"red cube" -> "red cubes"; of "bottle of water" the head: "bottles of water"."""
    head, joint, rest = name.partition(" of ")
    *before, noun = head.split(" ")
    return " ".join([*before, _plural(noun)]) + joint + rest


def singular(name: str) -> str:
    """"red cubes" -> "red cube"; what is no plural stays as it is."""
    head, joint, rest = name.partition(" of ")
    *before, noun = head.split(" ")
    return " ".join([*before, _singular(noun)]) + joint + rest


def indefinite(name: str) -> str:
    """"cube" -> "a cube"; what has an article or a number, or denies, stays as it is."""
    if name.split(" ")[0].lower() in (*_DETERMINERS, *_NUMBERS) or name in _SINGULAR:
        return name
    return ("an " if re.match(r"(?i)[aeio]|u(?!ni|se)|hour", name) else "a ") + name


def listed(parts: Sequence[str], word: str = "and") -> str:
    """"a, b and c"."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} {word} {parts[-1]}"


def _plural(noun: str) -> str:
    if noun in IRREGULAR:
        return IRREGULAR[noun]
    if re.search(r"(s|x|z|ch|sh)$", noun):
        return noun + "es"
    return noun[:-1] + "ies" if re.search(r"[^aeiou]y$", noun) else noun + "s"


def _singular(noun: str) -> str:
    if noun in _SINGULAR:
        return _SINGULAR[noun]
    if re.search(r"(ss|us|is)$", noun) or not noun.endswith("s") or len(noun) < 4:
        return noun
    if noun.endswith("ies"):
        return noun[:-3] + "y"
    return noun[:-2] if re.search(r"(s|x|z|ch|sh)es$", noun) and not noun.endswith("ses") else noun[:-1]
