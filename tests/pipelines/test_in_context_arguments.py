"""Arguments of InContextPipeline: what stock pipelines take is taken, what cannot work is refused first."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dit_heads.errors import InputError
from dit_heads.pipelines import InContextPipeline
from tests.pipelines.made import BASES, CAPTION, OTHER, STEPS, TRIO, photo, pixels, sd3, seeded


@pytest.fixture(scope="module")
def sets() -> InContextPipeline:
    return InContextPipeline(sd3())


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("given", [None, {0: photo(0)}])
def test_a_callback_may_return_nothing(base, given):
    sets, seen = InContextPipeline(BASES[base]()), []
    call = STEPS | {"grid": TRIO, "given": given, "output_type": "np"}
    expected = sets(CAPTION, generator=seeded(), **call).images

    def watch(pipe: Any, step: int, time: Any, tensors: dict[str, Any]) -> None:
        seen.append(step)

    got = sets(CAPTION, generator=seeded(), callback_on_step_end=watch, **call).images
    assert np.array_equal(got, expected) and seen == [0, 1, 2]


@pytest.mark.parametrize("given", [None, {0: photo(0)}])
def test_a_callback_that_returns_something_else_is_refused(sets, given):
    with pytest.raises(
        InputError, match=r"callback_on_step_end: expected .* a dict of tensors or None, got 5"
    ):
        sets(CAPTION, grid=TRIO, given=given, callback_on_step_end=lambda *_: 5, **STEPS)


@pytest.mark.parametrize(
    ("name", "near"), [("panel_prompt", "panel_prompts"), ("guidance_scal", "guidance_scale"), ("xyz", None)]
)
def test_a_misspelt_argument_is_named_with_what_is_near(sets, name, near):
    hint = f"; did you mean {near}" if near else "$"
    with pytest.raises(
        InputError, match=rf"{name}: InContextPipeline and its Stable.* no such argument{hint}"
    ):
        sets(CAPTION, grid=TRIO, **{name: 1})


@pytest.mark.parametrize("name", ["num_inference_steps", "num_images_per_prompt"])
@pytest.mark.parametrize("value", [0, -1, 1.5])
def test_no_steps_and_no_pictures_are_refused(sets, name, value):
    with pytest.raises(InputError, match=rf"{name}: expected a whole number of at least 1, got {value}"):
        sets(CAPTION, grid=TRIO, **{name: value})


@pytest.mark.parametrize("given", [None, {0: photo(0)}])
def test_a_wrong_number_of_generators_is_refused_before_anything_is_encoded(sets, given, monkeypatch):
    monkeypatch.setattr(sets.pipe, "encode_prompt", None)
    monkeypatch.setattr(sets.pipe.vae, "encode", None)
    call = {"grid": TRIO, "given": given, "num_images_per_prompt": 2}
    with pytest.raises(InputError, match="generator: expected one, or 4, one a picture, got a list of 3"):
        sets([CAPTION, OTHER], generator=[seeded()] * 3, **call)


def test_a_prompt_without_markers_is_drawn_where_that_is_meant(sets):
    with pytest.raises(
        InputError, match=r"markers: expected each once .* got none; marker_style='none' allows"
    ):
        sets("two hills", grid=TRIO, **STEPS)
    got = sets(
        "two hills", grid=TRIO, marker_style="none", generator=seeded(), output_type="np", **STEPS
    ).images
    stock = {"height": 16, "width": 48, "generator": seeded(), "output_type": "np"}
    assert np.array_equal(got, sets.pipe("two hills", **stock, **STEPS).images)


def test_markers_in_small_letters_are_refused(sets):
    with pytest.raises(InputError, match=r"prompt: .* the caption has \[left\], expected .* \[LEFT\]"):
        sets(CAPTION.lower(), grid=TRIO, **STEPS)


# --- given panels ---


def turned_alpha() -> Image.Image:
    """Shown, a quarter turn clockwise: transparent above, red below."""
    picture = Image.new("RGBA", (32, 16), (0, 0, 0, 0))
    picture.paste((200, 0, 0, 255), (16, 0, 32, 16))
    picture.getexif()[0x0112] = 6
    return picture


def test_a_given_panel_is_the_same_by_path_and_as_an_image(sets, tmp_path):
    picture = turned_alpha()
    picture.save(tmp_path / "p.png", exif=picture.getexif())
    with Image.open(tmp_path / "p.png") as opened:
        for panel in (tmp_path / "p.png", str(tmp_path / "p.png"), opened):
            shown = pixels(sets(CAPTION, grid=TRIO, given={0: panel}, fit="pad", **STEPS).panels[0][0])
            assert shown[12, 8].tolist() == [200, 0, 0]
            assert shown[3, 8].tolist() == [255, 255, 255]
            assert shown[12, 1].tolist() == [255, 255, 255]  # a tall picture, between bars


def test_a_damaged_picture_that_is_only_opened_is_refused(sets, tmp_path):
    photo(0, 64, 64).save(tmp_path / "p.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "p.png").read_bytes()[:900])
    with (
        Image.open(tmp_path / "cut.png") as opened,
        pytest.raises(InputError, match="given: expected a picture that can be read: "),
    ):
        sets(CAPTION, grid=TRIO, given={0: opened}, **STEPS)


@pytest.mark.parametrize(
    ("panel", "message"),
    [
        (photo(0, 8, 8), "given: 8 x 8 pixels are enlarged 2.0 times for a panel of 16 x 16"),
        (photo(0, 1, 64), "given: 64 x 1 pixels are enlarged 16.0 times for a panel of 16 x 16"),
        (photo(0, 400, 16), "given: of 16 x 400 pixels a panel of 16 x 16 shows 4 %"),
        (torch.zeros(3, 400, 16), "given: of 16 x 400 pixels a panel of 16 x 16 shows 4 %"),
    ],
)
def test_given_panels_that_lose_detail_are_warned_of(sets, panel, message):
    with pytest.warns(UserWarning, match=message):
        sets(CAPTION, grid=TRIO, given={0: panel}, **STEPS)
