"""Instructions for a query in words."""

from __future__ import annotations

from dit_heads.tasks.query import Query, colours_of

CANONICAL = {
    "segment": "Segment every {name} in this image.",
    "segment_classes": "Segment this image: {bindings}.",
    "instances": "Segment each {name} in another colour.",
    "detect": "Detect every {name} and draw a {colour} box around each.",
    "detect_classes": "Detect objects and draw a box around each: {bindings}.",
    "depth": "Show the depth of this scene.",
    "classify": "Fill the frame with one colour: {bindings}.",
}


def canonical(query: Query) -> str:
    """The plain instruction for a query."""
    return CANONICAL[frame_of(query)].format(**slots(query))


def frame_of(query: Query) -> str:
    several = query.task in ("segment", "detect") and len(query.names) > 1
    return f"{query.task}_classes" if several else query.task


def slots(query: Query) -> dict[str, str]:
    """The words that a query puts into an instruction."""
    if not query.names:
        return {}
    colours = colours_of(query) if query.task != "instances" else ("white",)
    bound = [f"{colour} for {name}" for name, colour in zip(query.names, colours, strict=True)]
    return {"name": query.names[0], "colour": colours[0], "bindings": ", ".join(bound)}
