"""What the tabs of a page share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from dit_heads.demo.drawing import Cache
from dit_heads.demo.engine import Engine
from dit_heads.demo.facts import Facts
from dit_heads.demo.limits import Limits
from dit_heads.demo.shelf import Shelf

QUIET: dict[str, Any] = {
    "show_progress": "hidden",
    "api_visibility": "private",
    "concurrency_limit": None,
    "trigger_mode": "multiple",
}
"""How the events of our tabs are connected: the engine alone bounds them, and our own parts show progress."""


@dataclass
class Page:
    """One page: its engine and models, and the places where tabs meet.

    Attributes:
        engine: draws.
        models: the facts of each model, by its name; the first one is shown at the start.
        tabs: the tab bar, once it is built.
        loras, sets: that visitors brought; LoRAs that were trained here, too.
        rack: In-context's picker of LoRAs, and its model, for tabs that make LoRAs.
        heads, strength: Guide's head map and its sliders of scale and softness, for tabs that find heads.
        on_load: what runs when a page is opened: (function, inputs, outputs, JavaScript that gives inputs).
    """

    engine: Engine
    models: Mapping[str, Facts]
    cache: Cache = field(default_factory=Cache)
    tabs: gr.Tabs | None = None
    loras: Shelf = field(init=False)
    sets: Shelf = field(init=False)
    heads: gr.HTML | None = None
    strength: list[gr.Slider] = field(default_factory=list)
    rack: list[Any] = field(default_factory=list)
    on_load: list[tuple[Callable[..., Any], list[Any], list[Any], str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        most = self.limits.uploads
        self.loras = Shelf("lora", self.limits.shelf, self.limits.shelf_bytes)
        self.sets = Shelf("sets", most, most * self.limits.sets_bytes, seconds=3600)

    def leave(self, owner: str | None) -> None:
        """What happens when a visitor's page is closed: their jobs end, and what they brought is deleted."""
        self.engine.cancel_all(owner)
        self.loras.leave(owner)
        self.sets.leave(owner)

    @property
    def limits(self) -> Limits:
        return self.engine.limits

    @property
    def first(self) -> Facts:
        return next(iter(self.models.values()))


def visitor(request: gr.Request | None) -> str | None:
    """Who asks: the session of a page."""
    return getattr(request, "session_hash", None)


def cancelling(page: Page) -> Callable[..., None]:
    """A handler that cancels what a visitor's page draws."""

    def cancel(request: gr.Request) -> None:
        page.engine.cancel_all(visitor(request))

    return cancel
