"""See in a browser: from a picture and a question to masks, boxes, depth in space and files."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.demo.browsing import PHONE, ask_about, show, steps

pytest.importorskip("gradio")
pytestmark = pytest.mark.filterwarnings("ignore")  # those of the server's libraries
STAGE = "#dh-see-stage .dh-stage"


def state(page, name):
    page.wait_for_selector(f'{STAGE}[data-state="{name}"]')


def give(page, data, name="a.png"):
    file = {"name": name, "mimeType": "image/png", "buffer": data}
    page.set_input_files('#dh-see-board input[type="file"]', file)


def png(size=(60, 40)) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (*size[::-1], 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def drawn(page) -> list[int]:
    """What the canvas shows, as a checksum and the number of points that are seen."""
    return page.evaluate(
        """() => { const canvas = document.querySelector('.dh-cloud');
        const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
        let sum = 0, seen = 0;
        for (let k = 0; k < data.length; k += 4) {
            seen += data[k + 3] > 0;
            sum = (31 * sum + data[k] + data[k + 1]) % 65521;
        }
        return [sum, seen]; }"""
    )


def test_from_a_question_to_depth_that_is_turned_by_keys(visit):
    page = visit()
    ask_about(page, "How far is everything?")
    assert page.inner_text(f"{STAGE} .dh-note").startswith("Understood: how far each pixel is.")
    assert page.get_attribute(f"{STAGE} .dh-after", "alt") == page.inner_text(f"{STAGE} .dh-told")
    page.get_by_role("button", name="In 3-D").click()
    page.focus(".dh-cloud")
    page.wait_for_timeout(200)
    first = drawn(page)
    page.keyboard.press("ArrowRight")
    page.wait_for_timeout(200)
    assert first[1] > 1000 and drawn(page)[0] != first[0]


@pytest.mark.slow
def test_soft_tokens_answer_and_show_how_certain_they_are(visit):
    page = visit()
    ask_about(page, "How far is everything?", "Soft tokens")
    assert page.inner_text(f"{STAGE} .dh-note").endswith("Read by soft tokens in one look.")
    page.get_by_role("button", name="Certainty").click()
    assert page.get_attribute(f"{STAGE} .dh-after", "alt").startswith("How certain each pixel is")


def test_points_are_turned_by_dragging_and_home_begins_again(visit):
    page = visit()
    ask_about(page, "How far is everything?")
    page.get_by_role("button", name="In 3-D").click()
    page.wait_for_timeout(200)
    first, box = drawn(page), page.locator(".dh-cloud").bounding_box()
    page.mouse.move(box["x"] + 50, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + 120, box["y"] + 70, steps=4)
    page.mouse.up()
    page.wait_for_timeout(200)
    assert drawn(page)[0] != first[0]
    page.focus(".dh-cloud")
    page.keyboard.press("Home")
    page.wait_for_timeout(200)
    assert drawn(page) == first


@pytest.mark.slow
def test_a_picture_of_ones_own_is_asked_about_by_a_suggestion_and_saved(visit):
    page = visit()
    show(page, "See")
    before = page.get_attribute("#dh-see-board .dh-own", "src")
    give(page, png())
    page.wait_for_function(f"document.querySelector('#dh-see-board .dh-own').src != '{before}'")
    page.get_by_role("button", name="Where are the cubes?", exact=True).click()
    state(page, "done")
    assert page.input_value("#dh-see-question") == "Where are the cubes?"
    with page.expect_download() as download:
        page.get_by_role("link", name="Save JSON").click()
    saved = json.loads(Path(download.value.path()).read_text())
    assert saved["images"][0]["height"] == 40 and saved["categories"][0]["name"] == "cube"
    page.get_by_text("The same answer from").click()
    assert "Where are the cubes?" in page.inner_text("#dh-see-command")


@pytest.mark.slow
def test_a_scene_brings_its_question_and_enter_asks(visit):
    page = visit()
    show(page, "See")
    page.click("#dh-see-board .dh-scenes button:nth-child(4)")
    page.wait_for_function("document.querySelector('#dh-see-question').value.startsWith('Is it day')")
    page.press("#dh-see-question", "Enter")
    state(page, "done")
    assert page.locator(f"{STAGE} .dh-parts li").count() == 3 and page.locator(".dh-bar").count() == 3


@pytest.mark.slow
def test_an_answer_is_cancelled_and_the_next_one_comes(visit):
    page = visit()
    show(page, "See")
    steps(page, 400, "#dh-see-board")
    page.click("#dh-see-ask")
    state(page, "running")
    page.click("#dh-see-cancel")
    state(page, "cancelled")
    steps(page, 2, "#dh-see-board")
    page.click("#dh-see-ask")
    state(page, "done")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "told"),
    [(b"no picture", "picture: this file is not a picture"), (b"0" * (21 * 2**20), "larger than 20 MB")],
)
def test_files_that_are_no_pictures_are_refused_in_words(visit, data, told):
    page = visit()
    show(page, "See")
    give(page, data)
    page.wait_for_selector("#dh-see-board .dh-problem:not([hidden])")
    assert told in page.inner_text("#dh-see-board .dh-problem")


@pytest.mark.slow
def test_a_text_that_is_not_understood_is_told_with_what_would_do(visit):
    page = visit(**PHONE)
    show(page, "See")
    page.fill("#dh-see-question", "make it prettier")
    page.tap("#dh-see-ask")
    state(page, "error")
    assert "no task is understood" in page.inner_text(f"{STAGE} .dh-note")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
