"""Edit in a browser: pictures for names, a mask by brush and keys, the result over what was before."""

import io

import numpy as np
import pytest
from PIL import Image

from tests.demo.browsing import PHONE, show, steps

pytest.importorskip("gradio")
pytestmark = pytest.mark.filterwarnings("ignore")  # those of the server's libraries
BOARD, STAGE = "#dh-edit-board", "#dh-edit-stage .dh-stage"


def png(size=(60, 40)) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (*size[::-1], 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def opened(visit, **options):
    page = visit(**options)
    show(page, "Edit")
    steps(page, 2, BOARD)
    return page


def paint(page, state="done"):
    page.click("#dh-edit-paint")
    page.wait_for_selector(f'{STAGE}[data-state="{state}"]')
    return page.inner_text(f"{STAGE} .dh-note")


@pytest.mark.slow
def test_a_stroke_of_the_brush_is_the_mask_of_the_edit(visit):
    page = opened(visit)
    page.click(f'{BOARD} [data-area="inside"]')
    canvas = page.locator(f"{BOARD} .dh-mask")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 80, box["y"] + 80)
    page.mouse.down()
    page.mouse.move(box["x"] + 200, box["y"] + 150, steps=4)
    page.mouse.up()
    assert page.inner_text(f"{BOARD} .dh-covered").startswith("The mask covers ")
    assert "inside the mask" in paint(page)
    assert page.get_attribute(f"{STAGE} .dh-before", "alt") == "The picture before the edit"
    page.click(f'{BOARD} [data-do="undo"]')
    assert "all black" in paint(page, "error")
    page.focus(f"{BOARD} .dh-mask")
    page.keyboard.press("Space")
    assert "inside the mask" in paint(page)


@pytest.mark.slow
def test_a_name_gets_a_slot_and_needs_its_picture(visit):
    page = opened(visit, **PHONE)
    page.fill("#dh-edit-instruction", "put <dog> here")
    assert "references: expected a picture for <dog>" in paint(page, "error")
    page.click(f'{BOARD} [data-slot="dog"] .dh-well')
    file = {"name": "a.png", "mimeType": "image/png", "buffer": png()}
    page.set_input_files(f'{BOARD} input[type="file"]', file)
    page.wait_for_selector(f'{BOARD} [data-slot="dog"] img')
    assert page.input_value("#dh-edit-instruction") == "put <dog> here"
    assert paint(page).startswith("Edited")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
