"""The Hunt tab: its work and its handlers."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("gradio")
pytest.importorskip("matplotlib")

from dit_heads.demo import hunting
from dit_heads.demo.drawing import Drawing
from dit_heads.demo.facts import facts_of
from dit_heads.demo.limits import Limits
from dit_heads.demo.page import Page
from dit_heads.demo.tabs import hunt
from dit_heads.errors import InputError
from tests.saved import red

ANN = SimpleNamespace(session_hash="ann")


@pytest.fixture
def page(roomy, model, monkeypatch):
    monkeypatch.setattr(hunting, "load_objective", lambda name, known: red)
    return Page(roomy, {model: facts_of(model)})


def views(stream):
    async def all_of():
        return [shown async for shown in stream]

    return asyncio.run(all_of())


def test_a_search_shows_its_pictures_and_ends_with_heads_and_a_sheet(page, model, monkeypatch):
    shown = views(hunt._starting(page)(ANN, hunt.ANY, "", "a cat\na dog", 16, 2))
    board, found, *_, kept = shown[-1]
    assert board["state"] == "done" and board["sheet"].startswith("data:image/png")
    assert any(view[0].get("pictures") for view in shown)
    assert found["value"]["text"].count("L") >= 1 and found["value"]["scores"]
    again = views(hunt._going_on(page)(kept))
    assert again[-1][0]["told"] == board["told"]
    _, value, scale, softness = hunt._using(page)(found["value"])
    assert value["text"] == found["value"]["text"] and (scale, softness) == (3.0, 1.0)


def test_a_search_is_cancelled_by_the_page_that_started_it(page):
    async def start_and_cancel():
        last: Any = None
        async for shown in hunt._starting(page)(ANN, hunt.ANY, "", "a cat", 240, 1):
            hunt._cancelling(page)(shown[-1])
            last = shown
        return last

    assert asyncio.run(start_and_cancel())[0]["state"] in ("cancelled", "done")


def test_a_search_lets_pictures_go_first_and_finds_the_same(page, model, settings):
    work = hunting.hunting(model, "a cat", "", "clip", 16, 2, page.limits)
    alone = page.engine.submit(model, work).wait(60)
    job, over = page.engine.submit(model, work), []
    for seed in range(2):
        page.engine.submit(model, Drawing(settings(seed=seed))).wait(60)
        over.append(job.over)
    found = job.wait(60)
    assert over == [False, False]
    assert (found.gains, found.sheet.tobytes()) == (alone.gains, alone.sheet.tobytes())


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (("", 48, 3), "prompts: expected 1 to 8"),
        (("a\n" * 9, 48, 3), "prompts: expected 1 to 8"),
        (("x" * 2000, 48, 3), "prompts: expected at most"),
        (("a cat", 9999, 3), "budget, heads"),
    ],
)
def test_a_search_beyond_the_limits_is_refused_in_words(model, asked, told):
    text, budget, count = asked
    with pytest.raises(InputError, match=told):
        hunting.hunting(model, text, "", "clip", budget, count, Limits())


def test_a_style_stands_before_each_prompt(model):
    work = hunting.hunting(model, "a cat\na dog", "poster", "clip", 48, 3, Limits())
    assert work.prompts == ("poster, a cat", "poster, a dog")


def test_without_a_search_to_go_on_with_the_tab_is_as_it_was(page):
    ((board, _, start, cancel, *_, kept),) = views(hunt._going_on(page)(""))
    assert board["state"] == "empty" and board["note"] == hunt._IDLE and kept == ""
    assert (start["value"], start["visible"], cancel["visible"]) == ("Search", True, False)
