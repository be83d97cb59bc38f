"""InContextPipeline refuses what it cannot honour, and says why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from dit_heads.loras.sets.grid import Grid
from dit_heads.pipelines.in_context import InContextPipeline
from tests.pipelines.made import CAPTION, STEPS, TRIO, flux_fill, photo, pixels, sd3

TWO = "a cat [LEFT] by day [RIGHT] by night"
ERRORS: dict[str, tuple[dict[str, Any], str]] = {
    "no prompt": ({"prompt": None}, "prompt: expected a joint caption .* got none"),
    "no prompts": ({"prompt": []}, "prompt: expected a joint caption .* got none"),
    "no text": ({"prompt": 5}, "prompt: expected a joint caption, .* got 5"),
    "no markers": ({"prompt": "a cat"}, "markers: expected each once"),
    "too few panels": ({"prompt": TWO}, r"prompt: expected a caption for each of the 3 panels, .* got 2"),
    "another grid": (
        {"prompt": "[TOP] a [MIDDLE] b [BOTTOM] c"},
        r"behind .*\[LEFT\] \[MIDDLE\] \[RIGHT\]; got 3, behind \[TOP\] \[MIDDLE\] \[BOTTOM\]",
    ),
    "too few panel prompts": ({"panel_prompts": ["a", "b"]}, "panel_prompts: expected 3, one a panel, got 2"),
    "one panel prompt": ({"panel_prompts": "abc"}, "panel_prompts: expected a list of texts"),
    "panel prompts alone": (
        {"prompt": None, "panel_prompts": ["a", "b", "c"]},
        "prompt: expected a summary as text beside panel_prompts, got None",
    ),
    "markers twice": ({"panel_prompts": ["a", "b", "c"]}, r"expected no marker inside a part, got \[LEFT\]"),
    "panel prompts of one summary": (
        {"prompt": ["a", "b"], "panel_prompts": [["a", "b", "c"]]},
        "panel_prompts: expected 2 lists of them, one a prompt, got 1",
    ),
    "no grid": ({"grid": (16, 48)}, "grid: expected one such as Grid.row"),
    "too wide": (
        {"grid": Grid.row(3, height=16, width=32)},
        "grid: expected at most 64 x 64 pixels, .* position table .* got height 16 and width 96",
    ),
    "a size": ({"height": 16}, "height: expected `grid` to say it, got 16"),
    "an image": ({"mask_image": photo(0)}, "mask_image: expected `given` to say it"),
    "a form": ({"output_type": "jpg"}, "output_type: expected pil, np, pt, latent, got 'jpg'"),
    "nothing given": ({"given": [None] * 3}, "given: expected at least one panel, got none"),
    "an empty mapping": ({"given": {}}, "given: expected at least one panel, got none"),
    "all given": (
        {"given": [photo(k) for k in range(3)]},
        "given: expected a panel to be missing, got all 3",
    ),
    "a short list": ({"given": [photo(0), None]}, "given: expected 3 entries, .* got 2"),
    "no such panel": ({"given": {3: photo(0)}}, "given: expected panel numbers from 0 to 2, got 3"),
    "sets without prompts": (
        {"given": [{0: photo(0)}, {1: photo(0)}]},
        "given: expected one set of panels or 1, one a prompt, got 2",
    ),
    "one image": ({"given": photo(0)}, "given: expected a mapping of numbers to images or a list with None"),
    "an array": (
        {"given": {0: pixels(photo(0))}},
        "given: expected PIL images, tensors or paths, got ndarray",
    ),
    "bytes": (
        {"given": {0: torch.zeros(3, 16, 16, dtype=torch.uint8)}},
        "floating tensors .* got torch.uint8",
    ),
    "a batch": (
        {"given": {0: torch.zeros(1, 3, 16, 16)}},
        r"floating tensors \[3, h, w\], got .*\(1, 3, 16, 16\)",
    ),
    "a wide range": ({"given": {0: torch.full((3, 16, 16), -1.0)}}, r"given: expected tensors in \[0, 1\]"),
    "a missing file": ({"given": {0: Path("none.png")}}, "image: there is no file 'none.png'"),
    "a fit": ({"given": {0: photo(0)}, "fit": "stretch"}, "fit: expected crop or pad, got 'stretch'"),
    "noise of another size": (
        {"given": {0: photo(0)}, "latents": torch.zeros(1, 4, 8, 8)},
        r"latents: expected the shape \(1, 4, 8, 24\), got \(1, 4, 8, 8\)",
    ),
}


@pytest.fixture(scope="module")
def base() -> StableDiffusion3Pipeline:
    return sd3()


@pytest.mark.parametrize("case", ERRORS)
def test_what_cannot_be_honoured_is_refused(base, case):
    wrong, message = ERRORS[case]
    with pytest.raises(ValueError, match=message):
        InContextPipeline(base)(**({"prompt": CAPTION, "grid": TRIO} | STEPS | wrong))


def test_a_panels_side_is_a_multiple_of_16():
    with pytest.raises(ValueError, match="widths: expected multiples of 16"):
        Grid.row(3, height=16, width=24)


def test_only_text_to_image_pipelines_and_flux_fill_are_wrapped(base):
    for pipe in (diffusers.StableDiffusion3Img2ImgPipeline(**base.components), base.transformer, None):
        with pytest.raises(ValueError, match=r"pipe: expected one of StableDiffusion3Pipeline, .*, got "):
            InContextPipeline(pipe)


def test_flux_fill_does_not_generate_whole_sets():
    with pytest.raises(ValueError, match="given: FluxFillPipeline only fills"):
        InContextPipeline(flux_fill())(CAPTION, grid=TRIO)


def test_filling_needs_a_flow_matching_scheduler():
    pipe = sd3()
    pipe.scheduler = diffusers.DDIMScheduler()
    with pytest.raises(ValueError, match=r"expected a flow-matching scheduler .* got DDIMScheduler"):
        InContextPipeline(pipe)(CAPTION, grid=TRIO, given={0: photo(0)})
