"""The page: its tabs, its API, and how it is served."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from dit_heads.demo.api import add_api
from dit_heads.demo.page import QUIET, Page, visitor
from dit_heads.demo.tabs import edit, guide, hunt, in_context, see, train
from dit_heads.demo.theme import part

TABS: dict[str, Callable[[Page], None]] = {
    "Guide": guide.build,
    "Hunt": hunt.build,
    "In-context": in_context.build,
    "Train": train.build,
    "See": see.build,
    "Edit": edit.build,
}
"""Every tab by its name; a new one is a module and a line here."""

_TOP = """
<header class="dh-top"><svg viewBox="0 0 34 34" aria-hidden="true">{dots}</svg>
<div><h1>dit-heads</h1><p>What single attention heads do to a picture</p></div></header>
"""


def build(page: Page) -> gr.Blocks:
    """The whole page as Gradio blocks."""
    with gr.Blocks(title="dit-heads", analytics_enabled=False, delete_cache=(60, 900)) as blocks:
        add_api(page)  # first, as the first function of a name keeps it
        gr.HTML(_TOP.format(dots=_dots()), padding=False)
        with gr.Tabs() as page.tabs:
            for name, lay_out in TABS.items():
                with gr.Tab(name, id=name.lower()):
                    lay_out(page)
        for function, inputs, outputs, script in page.on_load:
            blocks.load(function, inputs, outputs, js=script, **QUIET)
        blocks.unload(_leaving(page))
    return blocks


def _leaving(page: Page) -> Callable[..., None]:
    def leave(request: gr.Request) -> None:
        page.leave(visitor(request))

    return leave


def _dots(chosen: Sequence[tuple[int, int]] = ((0, 2), (1, 0), (2, 3), (3, 1))) -> str:
    """The sign: a few heads among many."""
    return "".join(
        f'<circle cx="{5 + 8 * x}" cy="{5 + 8 * y}" r="{3.4 if (y, x) in chosen else 2}"'
        f"{' class=dh-on' if (y, x) in chosen else ''}></circle>"
        for y in range(4)
        for x in range(4)
    )


def look() -> dict[str, Any]:
    """Theme and style sheet, as `launch` takes them."""
    from dit_heads.demo.theme import theme

    return {"theme": theme(), "css": part("page.css")}
