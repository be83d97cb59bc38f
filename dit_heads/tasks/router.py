"""From free text to a query: "how far is everything?" is depth, "where are the cubes?" is detection of cubes.

Signs of each task are weighed, and names are read from the text's noun phrases. There is no model in it, so
it is fast, the same every time, and says what it does not understand.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from dit_heads.errors import InputError
from dit_heads.tasks.instructions import fill, frame_of
from dit_heads.tasks.noun_phrases import bindings, noun_phrases, options
from dit_heads.tasks.query import ANYTHING, Query, Task
from dit_heads.tasks.words import singular

EXAMPLES = (
    '"segment the cube", "show each cube in another colour", "where are the cubes?", '
    '"how far is everything?" and "is this a cat or a dog?"'
)
_LEAST = 2.0  # of all signs together, for a task to be understood
SIGNS: dict[Task, dict[str, float]] = {
    "depth": {
        r"\bdepths?\b|\bdeep\b": 5, r"\bdistan\w+": 4, r"\bfar(ther)?\b|\bnear\b|\bcloser?\b": 3,
        r"\bmet(re|er)s?\b": 2, r"\brange\b|\bgeometry\b|three-dimensional|\b3-?d\b": 3, r"\baway\b": 1,
        r"\bhow (far|close|near|deep)\b": 2,
    },
    "detect": {
        r"\bbox\w*|\bbounding\b|\brectang\w+": 5, r"\bdetect\w*|\blocat\w+|\bspot\b": 4, r"\bframe[sd]?\b": 3,
        r"\b(the|this|whole|your) frame\b": -3, r"\bborder\b|\bstraight sides\b": 2,
        r"\bcount\b|\bhow many\b": 2,
        r"\bfind\b|\bwhere\b|\bposition\b|\blook(ing)? for\b|\bpoint (out|to|at)\b|\bsearch\b": 2.5,
        r"\b(are|is) there (any|some)\b|\bcan you (see|find)\b|\bany \w+ (here|in)\b": 2, r"\bcircle\b": 1,
    },
    "segment": {
        r"\bsegment\w*|\bsemantic\b": 4, r"\bmask\w*": 5, r"\bpixels?\b|\bpixel by pixel\b": 2.5,
        r"\bsilhouettes?\b|\bcut ?out\b|\bcut\b|\bisolate\b|\bextract\b|\bseparate\b|\bsplit\b": 3,
        r"\bwhite\b": 1.5, r"\bblack\b": 1.5, r"\b(region|area|shape|patch|parts?)\b": 1.5,
        r"\bbackground\b": 1.5,
        r"\bblack out\b|\bpixel by pixel\b|\bwhere is what\b|\bwhat is where\b": 3,
        r"\bhighlight\b|\bpick out\b|\bcover\w*|\bmap\b|\brecolou?r": 1,
        r"\bpaint\b|\bfill\b|\bcolou?r\b": 0.5,
    },
    "instances": {
        r"\binstances?\b|\bcolou?r of its own\b|\bseparate (mask|patch\w*)\b": 6,
        r"\bcolou?r by colou?r\b": 2,
        r"\bindividual\w*|\bseparately\b|\bone by one\b|\bone at a time\b|\bapart\b": 4,
        r"\bfrom the others\b": 4,
        r"\b(different|distinct|unique|own|another|separate|new|differently) (flat |mask )?colou?r\w*": 5,
        r"\bdiffer(s|ent|ently)?\b|\bdistinct\b|\bunique\b|\bevery single\b|\bsingle objects\b|\bno two\b": 3,
        r"\bone colou?r for one\b|\bone colou?r\b(?!:)|\bused twice\b|\bno other\b|\bcolou?r for each\b": 4,
        r"\bon its own\b": 3, r"\bits own\b|\beach one\b|\bcount\b|\bhow many\b": 1.5,
    },
    "classify": {
        r"\bclassif\w+|\bcategor\w+|\brecogni[sz]e\b|\bidentif\w+": 5,
        r"\b(is|are) (it|this|that|these)\b": 4,
        r"\bwhat (is|do|does|kind|sort|type|class)\b|\bwhich (is|of|one|kind|class)\b": 3,
        r"\banswer\b|\breply\b|\bdecide\b|\bchoose\b|\bvote\b|\bselect\b|\bsort\b|\bname\b": 4,
        r"\b(plain|flat|solid|right|one plain|one flat|one) (colou?r|card)\b|\bcard\b|\bblank\b": 4,
        r"\b(if|when) (it|this|you|there (is|are) [a-z])": 4, r"\bor\b": 2,
        r"\b(the|whole|your) frame\b|\bfill everything\b": 3,
        r"\bdoes it\b|\bis there an?\b": 3,
        r"\btell me what\b|\blabel the image\b|\bwhole picture\b|\bwhat you see\b": 4,
    },
}  # fmt: skip


def route(text: str, known: Sequence[str] = ()) -> Query:
    """The query that a text asks for.

    Args:
        text: A question or an order, in English.
        known: Names of classes that the model knows; others are then refused. Any, by default.

    Raises:
        InputError: if no task or no name can be made out, or a name is not known; it says what would do.
    """
    bound = bindings(text)
    task = _task(text, len(bound))
    if task == "depth":
        return Query("depth")
    if len(bound) > 1:
        names, colours = zip(*bound, strict=True)
        return Query(task, tuple(_known(name, known) for name in names), tuple(colours))
    names = tuple(dict.fromkeys(_known(name, known) for name in _names(text, task)))
    return _query(task, names, text)


def means(phrase: str, frame: str) -> bool:
    """Whether a phrase with slots is understood as the task whose frame it is to serve."""
    task: Task = next(t for t in SIGNS if t == frame.removesuffix("_classes"))
    names = {"depth": (), "instances": ("cube",), "classify": ("cube", "cone")}.get(task, ("cube",))
    query = Query(task, ("cube", "cone") if frame.endswith("_classes") else names)
    try:
        found = route(fill(phrase, query))
    except InputError:
        return False
    return frame_of(found) == frame


def scores(text: str) -> dict[Task, float]:
    """The weight of the signs of each task in a text."""
    lower = text.lower()
    return {
        task: sum(weight for sign, weight in signs.items() if re.search(sign, lower))
        for task, signs in SIGNS.items()
    }


def _task(text: str, bound: int) -> Task:
    found = scores(re.sub(r"(?i)\b(white|black)\b", "", text) if bound > 1 else text)
    if bound > 1:  # colours with a meaning: there are neither of depth nor of single objects
        found |= {"depth": 0.0, "instances": 0.0}
        found["segment"] += 2
        found["detect"] -= 1  # "find these" may go with any answer; boxes weigh more
    best = max(found, key=lambda task: found[task])
    if found[best] < _LEAST:
        raise InputError(f"text: no task is understood in {text[:200]!r}; try such as {EXAMPLES}")
    if best == "segment" and bound < 2 and found["instances"] >= 4:
        return "instances"
    return best


def _names(text: str, task: Task) -> list[str]:
    if task == "classify":
        return options(text)
    return [singular(name) for name in noun_phrases(text)]


def _query(task: Task, names: tuple[str, ...], text: str) -> Query:
    if task == "classify" and len(names) == 1:
        names = (names[0], f"no {names[0]}")
    if task == "classify" and not names:
        raise InputError(f'text: {text[:200]!r} names no answers; try such as "is this a cat or a dog?"')
    if not names and (task in ("detect", "instances") or re.search(r"(?i)\b(objects?|things)\b", text)):
        names = (ANYTHING,)
    if not names:
        raise InputError(f'text: {text[:200]!r} names nothing to segment; try such as "segment the cube"')
    if task == "instances" and len(names) > 1:
        raise InputError(f"text: expected one class for {task}, got {', '.join(names)}; ask for one")
    return Query(task, names)


def _known(name: str, known: Sequence[str]) -> str:
    if not known or name == ANYTHING:
        return name
    for each in known:
        if each.lower() in (name.lower(), singular(name).lower()):
            return each
    raise InputError(f"text: {name!r} is not known; there are {', '.join(known)}")
