"""A drawing as a tab shows it: its stage, both recipes, and which of the buttons is shown."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import gradio as gr

from dit_heads.demo.controls import swapped
from dit_heads.demo.facts import Facts, known_as
from dit_heads.demo.files import quick_uri
from dit_heads.demo.jobs import View
from dit_heads.demo.page import Page, visitor
from dit_heads.demo.sentences import note_of, sentence
from dit_heads.errors import InputError


def drawing(
    page: Page, work: Callable[..., Any], finished: Callable[[Any, Facts], list[Any]], others: int = 2
) -> Any:
    """A handler that draws what the controls say and shows how far it is.

    Args:
        page: the page.
        work: (facts of the model, values of the controls) -> the job. It raises InputError for what does not
            fit.
        finished: (result, facts) -> the stage and the others.
        others: number of outputs beside the stage, which stay as they are until the end; both recipes.
    """
    same = [gr.skip() for _ in range(others)]

    async def draw(request: gr.Request, model: str, *values: Any) -> AsyncIterator[list[Any]]:
        job = None
        try:
            facts = known_as(model, page.models)
            job = page.engine.submit(facts.name, work(facts, *values), visitor(request))
            async for view in job.follow():
                shown = finished(view.result, facts) if view.state == "done" else [_under_way(view), *same]
                yield [*shown, *swapped(not view.over)]
        except InputError as error:
            yield [{"state": "error", "note": sentence(error)}, *same, *swapped(False)]
        finally:
            if job is not None:
                job.cancel()  # does nothing to one that is over

    return draw


def _under_way(view: View) -> dict[str, Any]:
    """The stage of a job that has no picture yet, or ended without one."""
    state = "error" if view.state == "failed" else view.state
    stage: dict[str, Any] = {"state": state, "note": note_of(view)}
    if view.state == "running":
        preview, size = (None, None) if view.preview is None else (quick_uri(view.preview), view.preview.size)
        stage |= {"step": view.step, "steps": view.steps, "preview": preview, "size": size and list(size)}
    return stage


def whole_numbers(given: dict[str, Any], *names: str) -> None:
    """Make whole numbers of what number fields give. Raises InputError for an empty field."""
    for name in names:
        if given[name] is None:
            raise InputError(f"{name}: expected a whole number, got nothing")
        given[name] = int(given[name])
