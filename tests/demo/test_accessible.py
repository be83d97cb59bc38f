"""The page is for all: axe-core finds nothing serious in it, and it is used without a mouse."""

import pytest

from tests.demo.browsing import PHONE, WIDE, ask, ask_about, findings, open_tabs, picture, settings_in, state

pytest.importorskip("gradio")
pytest.importorskip("axe_playwright_python")
pytestmark = pytest.mark.filterwarnings("ignore")  # those of the server's libraries


def test_axe_finds_nothing_serious_when_the_page_is_opened(visit):
    assert findings(visit()) == []


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", [WIDE, PHONE], ids=["wide", "phone"])
def test_axe_finds_nothing_serious_on_any_tab(visit, scheme, screen):
    page = visit(color_scheme=scheme, **screen)
    ask(page)
    state(page, "done")
    ask_about(page, "Is it day or night?" if scheme == "dark" else "How far is everything?")
    found = {name: findings(page) for name in open_tabs(page)}
    assert len(found) >= 2 and {name: each for name, each in found.items() if each} == {}


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_in_what_is_refused(visit, scheme):
    page = visit(color_scheme=scheme)
    page.fill("#dh-prompt textarea", " ")
    page.click("#dh-draw")
    state(page, "error")
    page.fill("#dh-head-map .dh-text", "nose")
    page.keyboard.press("Enter")
    assert page.is_visible("#dh-head-map .dh-problem") and findings(page) == []


def test_a_picture_is_drawn_with_the_keyboard_alone(visit):
    page = visit()
    page.focus("#dh-prompt textarea")
    page.keyboard.press("Control+A")
    page.keyboard.type("a dog")
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.classList.contains('dh-cell')"):
            break
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Space")
    page.focus("#dh-draw")
    page.keyboard.press("Enter")
    state(page, "done")
    kept = settings_in(picture(page))
    assert (kept["prompt"], kept["heads"]) == ("a dog", "L1H0")


@pytest.mark.slow
def test_every_picture_and_control_of_a_tab_has_a_name(visit):
    page = visit()
    ask(page)
    state(page, "done")
    ask_about(page, "Where are the cubes?")
    nameless = """() => [...document.querySelectorAll('img, button, input, textarea, select, a')].filter(
        (each) => each.checkVisibility() && !each.closest('[aria-hidden=true]') && !each.alt && !each.title
            && !each.ariaLabel && !each.innerText?.trim() && !each.labels?.length
            && !each.querySelector('[aria-label], [title]')
            && !(each.tagName == 'IMG' && each.closest('button[aria-label]'))
    ).map((each) => each.outerHTML.slice(0, 200))"""
    assert {name: each for name in open_tabs(page) if (each := page.evaluate(nameless))} == {}
