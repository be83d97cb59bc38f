"""In-context and Train in a browser: from a click to a set, from files to a LoRA that draws."""

import base64
import io

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from PIL import Image

from dit_heads.demo.limits import Limits
from dit_heads.demo.serve import running
from tests.demo.browsing import PHONE, show, steps
from tests.demo.test_set_files import sets, zipped
from tests.saved import tiny_pipeline, tiny_vae

pytest.importorskip("gradio")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # those of the server's libraries
]
STAGE, TRAINING = "#dh-set-stage .dh-stage", ".dh-training"


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    torch.manual_seed(1)
    parts = {**tiny_pipeline().components, "vae": tiny_vae(8, 8, 8, 8)}
    folder = str(tmp_path_factory.mktemp("model") / "small")
    StableDiffusion3Pipeline(**parts).save_pretrained(folder)
    with running([folder], port=0, limits=Limits(steps=400)) as address:
        yield address


def state(page, part, *names):
    page.wait_for_selector(", ".join(f'{part}[data-state="{name}"]' for name in names))


def describe(page, *texts):
    page.fill('#dh-set-board [data-text="summary"]', "two.")
    for number, text in enumerate(texts):
        page.fill(f'#dh-set-board textarea[data-text="{number}"]', text)


def image(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB")


def png(colour: str, size=(200, 200)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, format="PNG")
    return buffer.getvalue()


def give(page, number, data):
    page.locator(f'#dh-set-board .dh-panel[data-panel="{number}"] .dh-well').click()
    file = {"name": "a.png", "mimeType": "image/png", "buffer": data}
    page.set_input_files('#dh-set-board input[type="file"]', file)


def test_from_texts_and_a_given_picture_to_a_set(visit):
    page = visit("In-context")
    describe(page, "a cat", "a dog")
    give(page, 1, png("red"))
    page.wait_for_selector('#dh-set-board [data-panel="1"] .dh-kept')
    steps(page, 2)
    page.click("#dh-set-draw")
    state(page, STAGE, "done")
    drawn = image(page.get_attribute(f"{STAGE} .dh-after", "src"))
    assert drawn.size == (256, 128)
    assert drawn.crop((128, 0, 256, 128)).tobytes() == Image.new("RGB", (128, 128), "red").tobytes()
    assert page.locator(".dh-cells figure").count() == 2
    # The result's left panel is kept, the given one is drawn instead.
    page.click('.dh-cells [aria-label="Keep panel left"]')
    page.wait_for_selector('#dh-set-board [data-panel="0"] .dh-kept')
    page.locator('#dh-set-board [data-panel="1"] .dh-link').click()
    page.click("#dh-set-draw")
    page.wait_for_function("document.querySelectorAll('#dh-set-stage .dh-shelf button').length == 2")
    again = image(page.get_attribute(f"{STAGE} .dh-after", "src"))
    assert again.crop((0, 0, 128, 128)).tobytes() == drawn.crop((0, 0, 128, 128)).tobytes()
    assert again.crop((128, 0, 256, 128)).tobytes() != drawn.crop((128, 0, 256, 128)).tobytes()


def test_a_set_is_cancelled_and_the_next_one_is_drawn(visit):
    page = visit("In-context")
    describe(page, "a cat", "a dog")
    steps(page, 400)
    page.click("#dh-set-draw")
    state(page, STAGE, "running")
    page.click("#dh-set-cancel")
    state(page, STAGE, "cancelled")
    steps(page, 2)
    page.click("#dh-set-draw")
    state(page, STAGE, "done")


@pytest.mark.parametrize(
    ("part", "file", "told"),
    [
        ("#dh-set-board", ("a.png", b"no picture"), "picture: this file is not a picture"),
        ("#dh-lora-rack", ("a.safetensors", b"no LoRA"), "expected a safetensors file"),
        ("#dh-lora-rack", ("a.ckpt", b"no LoRA"), "A LoRA is a .safetensors file here"),
    ],
)
def test_files_of_another_kind_are_refused_in_words(visit, part, file, told):
    page = visit("In-context")
    sent = {"name": file[0], "mimeType": "application/octet-stream", "buffer": file[1]}
    page.set_input_files(f'{part} input[type="file"]', sent)
    page.wait_for_selector(f"{part} .dh-problem:not([hidden])")
    assert told in page.inner_text(f"{part} .dh-problem")


def test_a_missing_text_is_told_and_a_phone_needs_no_scrolling_sideways(visit):
    page = visit("In-context", **PHONE)
    page.tap("#dh-set-draw")
    state(page, STAGE, "error")
    assert "please describe each panel" in page.inner_text(f"{STAGE} .dh-note")
    for tab in ("In-context", "Train"):
        page.get_by_role("tab", name=tab).click()
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def bring(page, files):
    file = {"name": "sets.zip", "mimeType": "application/zip", "buffer": zipped(files)}
    page.set_input_files("#dh-set-drop .dh-files", file)


def test_from_a_zip_to_a_lora_that_is_used_by_one_click_after_a_reload(visit):
    page = visit("Train")
    bring(page, sets(1) | {"set1/1.png": b"x"})
    page.wait_for_selector("#dh-set-drop .dh-problems li")
    assert "set1: expected 2 pictures, got 1" in page.inner_text("#dh-set-drop .dh-problems")
    bring(page, sets(2, (128, 128)))
    page.get_by_text("2 sets, ready to learn from.").wait_for()
    page.fill("#dh-train-name input, #dh-train-name textarea", "mine")
    steps(page, 200, "#dh-train")
    page.click("#dh-train")
    state(page, TRAINING, "running")
    page.reload()
    show(page, "Train")
    page.wait_for_selector(f"{TRAINING} .dh-drawn img")
    page.click("#dh-train-stop")
    state(page, TRAINING, "done")
    assert page.inner_text(f"{TRAINING} .dh-note").startswith("Stopped after")
    with page.expect_download() as download:
        page.click(f'{TRAINING} [data-do="save"]')
    assert download.value.suggested_filename == "mine.safetensors"
    page.get_by_role("tab", name="Train").click()
    page.click("#dh-train-use")
    page.wait_for_selector('#dh-lora-rack .dh-chip[aria-pressed="true"]')
    assert page.inner_text("#dh-lora-rack .dh-weight span") == "mine"
    page.wait_for_selector("#dh-set-board .dh-panel")
    page.click("#dh-set-draw")
    state(page, STAGE, "done")
    assert page.inner_text(f"{STAGE} .dh-note").startswith("mine 1")
