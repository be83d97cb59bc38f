"""Hunt: which heads raise a score, found while one watches."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import gradio as gr

from dit_heads.demo.components import chosen_text, component, map_value
from dit_heads.demo.facts import Facts
from dit_heads.demo.files import png_uri, quick_uri
from dit_heads.demo.hunting import Hunted, Seen, hunting
from dit_heads.demo.jobs import Job, View
from dit_heads.demo.page import QUIET, Page, visitor
from dit_heads.demo.sentences import sentence
from dit_heads.errors import InputError

PROMPTS = "a large red cube on grass\na small blue sphere on sand"
STYLES = ("line drawing", "pixel art", "poster", "vintage")
ANY = "Pictures that match their prompts better"
STYLE = "A style"
DRAWN = "gain of each head that was drawn"

# The board keeps the id of its search in the browser, where a page that is loaded again finds it.
REMEMBERED = "() => { try { return localStorage.getItem('dit-heads-search') || '' } catch { return '' } }"


def build(page: Page) -> None:
    """Lay the tab out and connect it."""
    facts = page.first
    with gr.Row(equal_height=False, elem_classes="dh-columns"):
        with gr.Column(scale=5, min_width=320):
            aim = gr.Radio([ANY, STYLE], value=ANY, label="Look for heads that give")
            style = gr.Dropdown(
                list(STYLES), value=STYLES[0], label="Style", allow_custom_value=True, visible=False
            )
            prompts = gr.Textbox(
                PROMPTS if facts.embedded else "",
                label="Prompts",
                info="One a line, up to eight",
                lines=3,
                max_length=page.limits.characters,
                elem_id="dh-hunt-prompts",
            )
            with gr.Row():
                budget = gr.Slider(
                    16, 240, 48, step=8, label="Budget", info="Pictures to draw, about", min_width=150
                )
                count = gr.Slider(1, 6, 3, step=1, label="Heads", info="How many to find", min_width=150)
            start = gr.Button("Search", variant="primary", size="lg", elem_id="dh-hunt")
            cancel = gr.Button("Cancel", size="lg", visible=False, elem_id="dh-hunt-cancel")
        with gr.Column(scale=6, min_width=320):
            board = component("hunt_board", {"state": "empty", "note": _IDLE})
            found = component("head_map", map_value(facts, scores={}), "dh-hunt-map", visible=False)
            use = gr.Button("Use these heads in Guide", visible=False, elem_id="dh-hunt-use")
    kept = gr.Textbox(visible=False)  # the id of the search
    outputs = [board, found, start, cancel, use, kept]
    aim.change(lambda aim: gr.update(visible=aim == STYLE), aim, style, **QUIET)
    start.click(_starting(page), [aim, style, prompts, budget, count], outputs, **QUIET)
    cancel.click(_cancelling(page), [kept], None, **QUIET)
    guide: list[Any] = [page.tabs, page.heads, *page.strength]
    use.click(_using(page), [found], guide, **QUIET)
    page.on_load.append((_going_on(page), [kept], outputs, REMEMBERED))


_IDLE = (
    "A search ranks all heads by one gradient, draws pictures with the most promising ones, and keeps those "
    "that raise the score of a CLIP model most. It goes on when the page is reloaded."
)


def _starting(page: Page) -> Any:
    async def start(
        request: gr.Request, aim: str, style: str, prompts: str, budget: float, count: float
    ) -> AsyncIterator[Any]:
        facts = page.first
        try:
            words = (style or "") if aim == STYLE else ""
            objective = "clip" if facts.embedded else "pickscore"
            work = hunting(facts.name, prompts or "", words, objective, budget, count, page.limits)
            # An owner of its own: a search outlives its page.
            job = page.engine.submit(facts.name, work, f"search of {visitor(request)}")
        except InputError as error:
            yield _board({"state": "error", "note": sentence(error)}, over=True, kept="")
            return
        async for shown in _followed(job, facts):
            yield shown

    return start


def _going_on(page: Page) -> Any:
    async def go_on(kept: str) -> AsyncIterator[Any]:
        """The search that a page has started before it was loaded again."""
        try:
            job = page.engine.job(kept if isinstance(kept, str) else "")
        except InputError:
            yield _board({"state": "empty", "note": _IDLE}, over=True, kept="")
            return
        async for shown in _followed(job, page.first):
            yield shown

    return go_on


async def _followed(job: Job, facts: Facts) -> AsyncIterator[Any]:
    async for view in job.follow():
        if view.state == "done" and isinstance(view.result, Hunted):
            yield _ended(view.result, facts, job.id)
        else:
            yield _board(_shown(view), view.over, job.id)


def _board(board: dict[str, Any], over: bool, kept: str) -> list[Any]:
    hidden = gr.update(visible=False)
    # With their labels, as a tab that was not shown yet loses what is not sent again.
    start, cancel = gr.update(value="Search", visible=over), gr.update(value="Cancel", visible=not over)
    return [{**board, "search": kept}, hidden, start, cancel, hidden, kept]


def _shown(view: View) -> dict[str, Any]:
    seen = view.preview if isinstance(view.preview, Seen) else Seen()
    note = view.note
    if view.state == "waiting":
        note = f"Waiting: {view.position} before you in the queue" if view.position else "Starting"
    elif view.state == "running" and view.step:
        note = f"{view.note} \u00b7 picture {view.step} of about {view.steps}"
    elif view.state == "cancelled":
        note = "Cancelled."
    return {
        "state": "error" if view.state == "failed" else view.state,
        "note": note,
        "step": view.step,
        "steps": view.steps,
        "pictures": [{"src": quick_uri(image), "heads": heads} for image, heads in seen.pictures],
    }


def _ended(found: Hunted, facts: Facts, kept: str) -> list[Any]:
    told = (
        f"{found.heads} raise the score from {found.unguided:.3f} to {found.guided:.3f} "
        f"({found.pictures} pictures)"
    )
    strength = {"scale": found.scale, "softness": found.softness}
    sheet = png_uri(found.sheet, {"heads": str(found.heads), **strength})
    value = {**map_value(facts, str(found.heads), found.gains, DRAWN), "presets": []}
    return [
        {"state": "done", "note": told, "told": told, "sheet": sheet, "search": kept},
        gr.update(value=value, visible=True),
        gr.update(value="Search", visible=True),
        gr.update(visible=False),
        gr.update(value="Use these heads in Guide", visible=True),
        kept,
    ]


def _cancelling(page: Page) -> Any:
    def cancel(kept: str) -> None:
        try:
            page.engine.job(kept if isinstance(kept, str) else "").cancel()
        except InputError:
            return

    return cancel


def _using(page: Page) -> Any:
    def use(found: Any) -> list[Any]:
        """Guide, with the heads that were found at the strength that they were found at."""
        scores = found.get("scores") if isinstance(found, dict) else None
        value = map_value(page.first, chosen_text(found), scores or {}, DRAWN)
        return [gr.Tabs(selected="guide"), value, 3.0, 1.0]

    return use
