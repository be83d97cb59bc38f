"""The pictures of docs/demo.md, made of a running demo: `python -m benchmarks.screenshots`.

It needs Chromium and Playwright (`pip install '.[dev]'`), and takes minutes, as it searches and trains.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from PIL import Image
from playwright.sync_api import ViewportSize, sync_playwright

from benchmarks.demo import demo
from dit_heads.io.atomic import atomic_file

WAIT = 20 * 60 * 1000  # milliseconds that a search or a training may take
WIDE: ViewportSize = {"width": 1280, "height": 900}
PHONE: ViewportSize = {"width": 390, "height": 1180}
GAP = 24


@dataclass(frozen=True)
class Shots:
    """Make the pictures of docs/demo.md anew."""

    address: str | None = None
    """Of a running demo, whose pages are free of jobs; without it, one is started."""
    out: Path = Path("docs")
    """Folder of the pictures."""
    chromium: Path = Path(os.environ.get("CHROMIUM", "/usr/bin/chromium"))
    """The browser."""
    tabs: tuple[str, ...] = ("Guide", "Hunt", "In-context", "Train", "See", "Edit")
    """Tabs to show; the pictures of several tabs need all of them."""


def turn_to(page: Any, tab: str) -> None:
    """Turn to a tab."""
    page.get_by_role("tab", name=tab, exact=True).click()
    page.wait_for_timeout(500)


def done(page: Any, part: str) -> None:
    """Wait until a part has its result."""
    page.wait_for_selector(f'{part}[data-state="done"]')
    page.wait_for_timeout(500)


def set_number(page: Any, name: str, value: int) -> None:
    """Set a slider that is in sight by its field."""
    field = page.locator(f'[aria-label="number input for {name}"]:visible')
    field.fill(str(value))
    field.press("Tab")


def guide(page: Any) -> None:
    """A picture with heads, over the one without them."""
    page.click("#dh-draw")
    done(page, "#dh-stage .dh-stage")


def hunt(page: Any) -> None:
    """What a short search has found."""
    set_number(page, "Budget", 24)
    page.click("#dh-hunt")
    done(page, ".dh-board")


def in_context(page: Any) -> None:
    """The first example, drawn."""
    page.locator("#dh-set-board .dh-tries .dh-small").first.click()
    page.wait_for_selector('#dh-lora-rack .dh-chip[aria-pressed="true"]')
    page.click("#dh-set-draw")
    done(page, "#dh-set-stage .dh-stage")


def train(page: Any) -> None:
    """A short training, with its loss and its drawings."""
    set_number(page, "Sets", 8)
    set_number(page, "Steps", 40)
    page.click("#dh-train")
    done(page, ".dh-training")


def see(page: Any) -> None:
    """How far everything in a scene is, as points in space."""
    page.click("#dh-see-board .dh-scenes button:nth-child(2)")
    page.wait_for_function("document.querySelector('#dh-see-question').value.startsWith('How far')")
    page.click("#dh-see-ask")
    done(page, "#dh-see-stage .dh-stage")
    page.get_by_role("button", name="In 3-D").click()


def edit(page: Any) -> None:
    """The first example, edited inside of a mask that is found."""
    page.click("#dh-edit-board .dh-scenes button:nth-child(1)")
    page.click('#dh-edit-board [data-area="inside"]')
    page.click('#dh-edit-board [data-do="find"]')
    page.wait_for_selector("#dh-edit-board .dh-reach:not([hidden])")
    page.click("#dh-edit-paint")
    page.wait_for_selector("#dh-edit-stage .dh-after:not([hidden])")
    done(page, "#dh-edit-stage .dh-stage")


SHOTS: dict[str, Callable[[Any], None]] = {
    "Guide": guide,
    "Hunt": hunt,
    "In-context": in_context,
    "Train": train,
    "See": see,
    "Edit": edit,
}


def shot(page: Any, screen: ViewportSize, *, dark: bool = False, whole: bool = True) -> Image.Image:
    """The page as it is now on a screen, as far as it goes down or as much as the screen shows."""
    page.set_viewport_size(screen)
    page.emulate_media(color_scheme="dark" if dark else "light")
    page.evaluate("(dark) => document.body.classList.toggle('dark', dark)", dark)
    page.evaluate("window.scrollTo(0, 0); document.activeElement?.blur()")
    page.mouse.move(0, 0)
    page.wait_for_timeout(500)
    return Image.open(io.BytesIO(page.screenshot(full_page=whole))).convert("RGB")


def beside(images: list[Image.Image]) -> Image.Image:
    """Pictures of one height in a row."""
    width = sum(image.width + GAP for image in images) - GAP
    row = Image.new("RGB", (width, images[0].height), "white")
    for number, image in enumerate(images):
        row.paste(image, (number * (image.width + GAP), 0))
    return row


def save(image: Image.Image, path: Path) -> None:
    """A small PNG: 256 colours."""
    with atomic_file(path) as file:
        image.quantize(256, kmeans=2, dither=Image.Dither.NONE).save(file, "png", optimize=True)
    print(f"{path}: {image.width} x {image.height}, {path.stat().st_size / 1024:.0f} KB", flush=True)


def take(page: Any, shots: Shots) -> None:
    """Use each tab, and take its pictures."""
    for tab in shots.tabs:
        turn_to(page, tab)
        SHOTS[tab](page)
        save(shot(page, WIDE), shots.out / f"demo-{tab.lower()}.png")
    if set(shots.tabs) != set(SHOTS):
        return
    turn_to(page, "Guide")
    save(shot(page, WIDE, dark=True, whole=False), shots.out / "demo-dark.png")
    phones = []
    for number, tab in enumerate(SHOTS):
        turn_to(page, tab)
        phones.append(shot(page, PHONE, dark=number % 2 == 1, whole=False))
    save(beside(phones), shots.out / "demo-phone.png")


def main(shots: Shots) -> None:
    """Open the demo in a browser, and take the pictures."""
    running = nullcontext((shots.address,)) if shots.address else demo(("embedded", "embedded/flux"))
    with running as (address, *_), sync_playwright() as started:
        browser = started.chromium.launch(executable_path=str(shots.chromium), args=["--no-sandbox"])
        page = browser.new_page(viewport=WIDE)
        page.set_default_timeout(WAIT)
        page.goto(address)
        page.wait_for_selector("#dh-head-map .dh-cell")
        take(page, shots)


if __name__ == "__main__":
    main(tyro.cli(Shots))
