"""What a text is about: its noun phrases, the answers it offers, the colours it binds to them."""

from __future__ import annotations

import re

from dit_heads.tasks.palette import COLOURS
from dit_heads.tasks.query import ANYTHING
from dit_heads.tasks.words import singular

_COLOUR = "|".join(COLOURS)
_DETERMINER = (
    r"every single|every|each of the|each|all of the|all the|all|any|some|the|an|a|my|this|these|those|which|"
    r"one|two|three|four|five|six|both|several|many|\d+"
)
_WHERE = r"(?<!\bin )(?<!\bon )(?<!\bat )(?<!\bfrom )(?<!\bbehind )(?<!\bunder )(?<!\bagainst )(?<!\bbeside )"
_IS = r"(?:if|when)(?: (?:it is|it's|there is|there are|this is|you see|it shows|it))?"
# What ends a noun phrase. A colour that follows a noun says how to paint it: "paint the cube white".
_STOP_TEXT = (
    "in on of from for with without around as at by to into onto through using and or but if when is are "
    "was be that which who where what so then has have had does do can could should would will you we i "
    "it they them here there individually separately differently one please alone against until than not "
    "no take takes end begin begins belong belongs next gets becomes show shows uses use put make stands "
    "standing draw paint mark box keep leave up its their his her a an the every each own visible away "
    "apart found again out exactly only first "
)
# Words that instructions use of pictures and not of what is in them.
_GENERIC_TEXT = (
    "image picture photo photograph scene frame mask masks box boxes rectangle rectangles colour color "
    "colours colors pixel pixels background rest everything anything nothing camera depth distance "
    "position location shape area region regions shapes map way place border line outline silhouette "
    "patch patches view part parts class classes object objects thing things item items others other "
    "answer card legend list label labels surface instances instance segmentation detection one ones two "
    "frames photos images pictures kind name viewer point points range metres meters values value edit "
    "same whole left right top bottom middle entire following single all these those each every any them "
    "it this that tightest bounding collection foreground entities front back see can me us detected "
    "number time sort type types "
)
_PAINT = {
    *COLOURS, "grey", "coloured", "colored", "thin", "plain", "flat", "solid", "binary", "unique", 
    "different", "distinct", "new", "another", "own", "separate", "semantic", "dense",
}  # fmt: skip
_STOP, _GENERIC = frozenset(_STOP_TEXT.split()), frozenset(_GENERIC_TEXT.split())
_LEADING = ("class", "classes", "individual", "single", "separate", "visible")
_NOTHING = re.compile(r"^(something|anything|everything|nothing|none|neither|no|not)\b")


def bindings(text: str) -> list[tuple[str, str]]:
    """Names and the colours bound to them: "red for cube, blue for cone", "red if it is a cat, else blue",
    "cube in red and cone in blue"."""
    text = re.sub(r"\bgrey\b", "gray", text.lower())
    end = rf"(?=\s*(?:[,.;:?!]|$)|\s+and\s+(?:{_COLOUR})\b|\s+(?:else|otherwise)\b)"
    forward = re.findall(rf"\b({_COLOUR}) (?:for|{_IS}) (.+?){end}", text)
    found = [(_bare(name), colour) for colour, name in forward]
    if len(found) == 1 and (other := re.search(rf"\b(?:else|otherwise)\D*?\b({_COLOUR})\b", text)):
        found.append((f"no {found[0][0]}", other[1]))
    if not found:
        found = _backward(text)
    short = [(name, colour) for name, colour in found if name and len(name.split()) <= 6]
    return [(name, colour) for name, colour in short if not _rest(name, colour)]


def _rest(name: str, colour: str) -> bool:
    """Whether this is the background: "black for everything else"."""
    return colour == "black" and bool(re.match(r"(everything|anything|rest|background|others?|all)\b", name))


def _backward(text: str) -> list[tuple[str, str]]:
    """ "cube in red and cone in blue"."""
    found = re.findall(rf"([a-z' -]+?) in ({_COLOUR})\b", text)
    if len(found) < 2:
        return []
    lead = r"\b(?:and|that|where|has|see|shows?|colou?r|paint|highlight|you|segment|mark|fill|with)\b"
    return [(_bare(re.split(lead, name)[-1]), colour) for name, colour in found]


def options(text: str) -> list[str]:
    """The answers that a text offers: "is this a cat, a dog or a cow?"; without an "or", its nouns."""
    lower = text.lower()
    match = re.search(r"((?:[\w' -]+,\s*)*[\w' -]+?),?\s+or\s+([\w' -]+)", lower)
    if match is None:
        return [singular(name) for name in noun_phrases(text)]
    lead = r"^.*\b(?:is|are|does|do|did|see|show|shows|between|whether|it|this|that|these|if|as|classify)\b"
    first = re.split(r",\s*", match[1])
    first[0] = re.sub(lead, "", first[0])
    return [name for each in (*first, match[2]) if (name := _bare(each))]


def noun_phrases(text: str) -> list[str]:
    """Noun phrases behind a determiner or a verb of looking, in order, without those about the picture."""
    lower = text.lower().replace("grey", "gray")
    verbs = "find|segment|instances|detect|mask|locate|box|spot|count"
    starts = rf"{_WHERE}\b(?:{_DETERMINER}|{verbs}|for|of|class|how many)\s+"
    found: list[str] = []
    for match in re.finditer(starts, lower):
        found += _list_after(lower[match.end() :])
    return list(dict.fromkeys(name for name in found if name))


def _list_after(rest: str) -> list[str]:
    """The names of "cubes, cones and the red spheres on grass"."""
    rest = re.split(r"[.;:?!]", rest)[0]
    names: list[str] = []
    for part in re.split(r",\s*(?:and\s+)?|\s+and\s+", rest):
        words = re.sub(rf"^(?:(?:{_DETERMINER})\s+)+", "", part.strip()).split()
        words = words[1:] if len(words) > 1 and words[0] in _LEADING else words
        name, complete = _head(words)
        if not name:
            break
        if names and not complete and words[len(name.split())] in ("it", "them", "each", "its", "the"):
            break  # a verb: "and fill it"
        names.append(name)
        if not complete:
            break
    return names


def _head(words: list[str]) -> tuple[str, bool]:
    """The noun phrase that words begin with, "" if it is about the picture; whether it takes all of them."""
    kept: list[str] = []
    for word in words:
        if word in _STOP or (kept and word in _PAINT and kept[-1] not in _PAINT):
            break
        kept.append(word)
    if not kept or kept[-1] in _GENERIC or _NOTHING.match(kept[0]):
        return "", False
    if all(word in _PAINT or word in _GENERIC for word in kept):
        return "", False
    if re.search(r"[^\w' -]", " ".join(kept)):
        return "", False
    return " ".join(kept), len(kept) == len(words)


def _bare(name: str) -> str:
    """A name without its article; "anything" and its like stay, "objects" is `ANYTHING`."""
    name = name.strip(" '\"-")
    if _NOTHING.match(name):
        return name
    name = re.sub(rf"^(?:(?:{_DETERMINER})\s+)+", "", name)
    return ANYTHING if singular(name) == ANYTHING else name
