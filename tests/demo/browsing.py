"""What browser tests of the demo share: the steps of a visitor, and what axe-core says of a page."""

import base64
import io
import json
from typing import Any

from PIL import Image

WIDE = {"viewport": {"width": 1280, "height": 900}}
PHONE: dict[str, Any] = {"viewport": {"width": 375, "height": 740}, "has_touch": True, "is_mobile": True}


TABS = {
    "Guide": "#dh-head-map .dh-cell",
    "Hunt": "#dh-hunt-prompts",
    "In-context": "#dh-set-board .dh-panel",
    "Train": "#dh-train-name",
    "See": "#dh-see-board .dh-scenes button",
    "Edit": "#dh-edit-board .dh-scenes button",
}
"""What is seen of each tab once it is there."""


def show(page, tab="Guide"):
    """Wait for the page that was opened, and turn to a tab."""
    page.wait_for_selector(TABS["Guide"])
    page.get_by_role("tab", name=tab, exact=True).click()
    page.wait_for_selector(TABS[tab])


def state(page, name):
    """Wait until the stage of Guide says this."""
    page.wait_for_selector(f'#dh-stage .dh-stage[data-state="{name}"]')


def ask(page, prompt="a cat", steps=None):
    """Ask for a picture in Guide."""
    page.fill("#dh-prompt textarea", prompt)
    if steps:
        if not page.get_by_label("number input for Steps").is_visible():
            page.get_by_role("button", name="More settings").click()
        page.get_by_label("number input for Steps").fill(str(steps))
        page.get_by_label("number input for Steps").press("Tab")
    page.click("#dh-draw")


def steps(page, count, part="#dh-set-board"):
    """Set the number of steps in the tab of a part."""
    tab = page.locator(".dh-columns").filter(has=page.locator(part))
    field = tab.get_by_label("number input for Steps")
    if not field.is_visible():
        tab.get_by_role("button", name="More settings").click()
    field.fill(str(count))
    field.press("Tab")


def ask_about(page, question, answered_by=None):
    """Ask about the picture that See shows at first, and wait for the answer."""
    show(page, "See")
    if answered_by:
        page.get_by_label(answered_by).check()
    page.fill("#dh-see-question", question)
    page.click("#dh-see-ask")
    page.wait_for_selector('#dh-see-stage .dh-stage[data-state="done"]')


def picture(page) -> bytes:
    """The picture that is shown."""
    return base64.b64decode(page.get_attribute("#dh-stage .dh-after", "src").partition(",")[2])


def settings_in(data: bytes) -> dict:
    """The settings that a picture keeps."""
    return json.loads(Image.open(io.BytesIO(data)).info["parameters"])


def open_tabs(page):
    """Every tab by its name, opened one after the other, with all that is folded in it."""
    for name in page.get_by_role("tab").all_inner_texts():
        page.get_by_role("tab", name=name, exact=True).click()
        page.wait_for_timeout(200)
        folded = page.locator("button.label-wrap:not(.open):visible")
        while folded.count():
            folded.first.click()
        page.wait_for_timeout(300)
        yield name


def findings(page) -> list[str]:
    """What axe-core takes for serious or critical, each with where it is."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [
        f"{each['impact']} {each['id']}: {node['target']} {node['html'][:160]} {node.get('failureSummary')}"
        for each in found
        if each["impact"] in ("serious", "critical")
        for node in each["nodes"]
    ]
