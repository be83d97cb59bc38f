"""The page in a browser: headless Chromium on a running demo of the tiny model."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from dit_heads.io.pictures import png_bytes
from tests.demo.browsing import PHONE, ask, open_tabs, picture, settings_in, show, state
from tests.saved import red

pytestmark = pytest.mark.filterwarnings("ignore")  # those of the server's libraries


def test_from_a_click_on_heads_to_their_picture(visit):
    page = visit()
    page.click('[data-head="L1H2"]')
    page.click('[data-block="L2"]')
    assert page.input_value(".dh-text") == "L1H2, L2"
    ask(page)
    state(page, "done")
    kept = settings_in(picture(page))
    assert (kept["heads"], kept["prompt"]) == ("L1H2, L2", "a cat")
    assert page.get_attribute(".dh-after", "alt") == "a cat"
    assert page.is_visible(".dh-split")
    page.get_by_text("The same picture from").click()
    assert "--heads" in page.inner_text("#dh-command")


@pytest.mark.slow
def test_dragging_paints_heads_and_keys_walk_over_them(visit):
    page = visit()
    page.locator('[data-head="L2H3"]').scroll_into_view_if_needed()
    first, last = (page.locator(f'[data-head="L0H{n}"]').bounding_box() for n in (0, 3))
    page.mouse.move(first["x"] + 5, first["y"] + 5)
    page.mouse.down()
    page.mouse.move(last["x"] + 5, last["y"] + 5, steps=20)
    page.mouse.up()
    assert page.input_value(".dh-text") == "L0"
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Space")
    assert page.input_value(".dh-text") == "L0, L1H1"
    assert page.get_attribute('[data-head="L1H1"]', "aria-selected") == "true"


@pytest.mark.slow
def test_names_that_are_no_heads_are_told_at_once(visit):
    page = visit()
    page.fill(".dh-text", "L9")
    page.keyboard.press("Enter")
    assert "Block L9 is not in this model" in page.inner_text(".dh-problem")


@pytest.mark.slow
def test_a_head_set_file_of_a_search_chooses_heads_and_colours_the_map(visit):
    page = visit()
    found = {"heads": ["L0H1"], "unguided": 0.5, "scores": [{"L0H1": 0.75, "L2H3": 0.25}]}
    file = {"name": "heads.json", "mimeType": "application/json", "buffer": json.dumps(found).encode()}
    page.set_input_files('#dh-head-map input[type="file"]', file)
    page.wait_for_selector('[data-head="L0H1"].dh-plus')
    assert page.input_value(".dh-text") == "L0H1"
    assert page.get_attribute('[data-head="L2H3"]', "aria-label") == "L2H3, \u22120.250"
    with page.expect_download() as download:
        page.click('#dh-head-map [data-do="save"]')
    assert json.loads(Path(download.value.path()).read_text()) == {"heads": ["L0H1"]}


@pytest.mark.slow
def test_a_picture_that_is_opened_again_sets_the_page(visit):
    page = visit()
    page.click('[data-head="L2H1"]')
    ask(page, "a dog")
    state(page, "done")
    data = picture(page)
    other = visit()
    file = {"name": "a.png", "mimeType": "image/png", "buffer": data}
    other.set_input_files('#dh-stage input[type="file"]', file)
    other.wait_for_function("document.querySelector('#dh-prompt textarea').value == 'a dog'")
    assert other.input_value(".dh-text") == "L2H1"
    assert picture(other) == data


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("a.png", b"no picture", "picture"),
        ("a.jpg", b"no picture", "Only PNG files keep their settings"),
        ("a.png", png_bytes(Image.new("RGB", (8, 8)), {"model": "other"}), "expected one of this page"),
        ("a.png", b"0" * (21 * 2**20), "larger than 20 MB"),
    ],
)
def test_files_that_are_no_pictures_of_the_page_are_refused_in_words(visit, name, data, told):
    page = visit()
    file = {"name": name, "mimeType": "image/png", "buffer": data}
    page.set_input_files('#dh-stage input[type="file"]', file)
    state(page, "error")
    assert told in page.inner_text(".dh-note")


@pytest.mark.slow
def test_cancel_stops_the_picture_and_the_next_one_is_drawn(visit):
    page = visit()
    ask(page, steps=400)
    state(page, "running")
    page.click("#dh-cancel")
    state(page, "cancelled")
    ask(page, steps=2)
    state(page, "done")


@pytest.mark.slow
def test_leaving_the_page_frees_the_queue(visit):
    page = visit()
    ask(page, steps=400)
    state(page, "running")
    page.reload()
    show(page)
    ask(page, steps=2)
    state(page, "done")


@pytest.mark.slow
def test_two_visitors_get_their_own_pictures(visit):
    pages = [visit(), visit()]
    for number, page in enumerate(pages):
        page.click(f'[data-head="L{number}H0"]')
        ask(page, f"visitor {number}")
    for number, page in enumerate(pages):
        state(page, "done")
        kept = settings_in(picture(page))
        assert (kept["prompt"], kept["heads"]) == (f"visitor {number}", f"L{number}H0")


@pytest.mark.slow
def test_the_gallery_brings_pictures_and_settings_back(visit):
    page = visit()
    for prompt in ("first", "second"):
        ask(page, prompt)
        page.wait_for_selector(f'.dh-shelf button[title="{prompt}"]')
    page.click('.dh-shelf button[title="first"]')
    page.wait_for_function("document.querySelector('#dh-prompt textarea').value == 'first'")
    assert settings_in(picture(page))["prompt"] == "first"


@pytest.mark.slow
def test_a_phone_needs_no_scrolling_sideways(visit):
    page = visit(**PHONE)
    page.tap('[data-head="L1H1"]')
    ask(page)
    state(page, "done")
    for name in open_tabs(page):
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), name


@pytest.mark.slow
def test_dark_mode_is_dark(visit):
    page = visit(color_scheme="dark")
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(int(part) for part in re.findall(r"\d+", colour)[:3]) < 64


@pytest.mark.slow
def test_a_search_outlives_its_page_and_its_heads_go_to_guide(visit, monkeypatch):
    monkeypatch.setattr("dit_heads.demo.hunting.load_objective", lambda name, known: red)
    page = visit("Hunt")
    page.fill("#dh-hunt-prompts textarea", "a cat\na dog")
    page.click("#dh-hunt")
    page.wait_for_selector('.dh-board[data-state="running"]')
    page.reload()
    show(page, "Hunt")
    page.wait_for_selector('.dh-board[data-state="done"]')
    found = page.input_value("#dh-hunt-map .dh-text")
    page.click("#dh-hunt-use")
    page.wait_for_function(f"document.querySelector('#dh-head-map .dh-text').value == '{found}'")
    assert found and page.is_visible("#dh-head-map")
