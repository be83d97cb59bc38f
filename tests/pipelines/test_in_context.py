"""Sets of panels, generated: against the wrapped pipelines called by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from dit_heads import load_embedded
from dit_heads.loras.sets.captions import JointCaption
from dit_heads.loras.sets.grid import Grid
from dit_heads.pipelines.in_context import InContextPipeline
from dit_heads.tasks.markers import markers
from tests.pipelines.made import BASES, CAPTION, OTHER, STEPS, TRIO, pixels, sd3, seeded


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("output_type", ["pil", "np", "pt", "latent"])
def test_generating_is_the_wrapped_pipeline_at_the_composites_size(base, output_type):
    pipe = BASES[base]()
    call = STEPS | {"output_type": output_type, "num_images_per_prompt": 2, "negative_prompt": "a bird"}
    prompts = [CAPTION, OTHER]
    got = InContextPipeline(pipe)(prompts, grid=TRIO, generator=seeded(), **call)
    expected = pipe(prompts, height=16, width=48, generator=seeded(), **call).images
    if output_type == "pil":
        assert got.images == expected
        assert got.panels[3][1] == expected[3].crop((16, 0, 32, 16))
    elif output_type == "np":
        assert np.array_equal(got.images, expected)
        assert np.array_equal(got.panels[3][1], expected[3, :, 16:32])
    else:
        assert torch.equal(got.images, expected)
        if output_type == "pt":
            assert torch.equal(got.panels[3][1], expected[3, :, :, 16:32])
    assert [len(panels) for panels in got.panels] == [3] * 4


@pytest.mark.parametrize("base", BASES)
def test_panels_as_latents_are_those_that_pictures_are_decoded_from(base):
    """Unpacked where the model packs them; one latent covers two pixels here."""
    pipe = BASES[base]()
    got = InContextPipeline(pipe)(CAPTION, grid=TRIO, output_type="latent", **STEPS)
    latents = got.images if base == "sd3" else pipe._unpack_latents(got.images, 16, 48, 2)
    assert torch.equal(torch.cat(got.panels[0], dim=-1), latents[0])
    assert [panel.shape for panel in got.panels[0]] == [(4, 8, 8)] * 3


def test_a_summary_and_panel_prompts_are_the_caption_that_they_make():
    sets = InContextPipeline(sd3())
    options = STEPS | {"grid": TRIO, "output_type": "np"}
    parts = ["by day", "by dusk", "by night"]
    images = [
        sets(CAPTION, generator=seeded(), **options).images,
        sets(JointCaption.parse(CAPTION), generator=seeded(), **options).images,
        sets("a cat", panel_prompts=parts, generator=seeded(), **options).images,
        sets(["a cat"], panel_prompts=[tuple(parts)], generator=seeded(), **options).images,
    ]
    assert all(np.array_equal(image, images[0]) for image in images)
    assert not np.array_equal(sets(OTHER, generator=seeded(), **options).images, images[0])


def test_panel_prompts_stand_behind_the_markers_that_were_asked_for():
    sets, said = InContextPipeline(sd3()), ["a", "b", "c", "d", "e", "f"]
    six = Grid.equal(2, 3, height=16, width=16)
    options = STEPS | {"grid": six, "output_type": "np"}
    got = sets("", panel_prompts=said, marker_style="scenes", generator=seeded(), **options)
    caption = str(JointCaption("", tuple(said), markers(2, 3, "scenes")))
    assert np.array_equal(got.images, sets(caption, generator=seeded(), **options).images)


def test_without_return_dict_images_and_panels_are_a_tuple():
    images, panels = InContextPipeline(sd3())(CAPTION, grid=TRIO, return_dict=False, **STEPS)
    assert images[0].size == (48, 16) and [panel.size for panel in panels[0]] == [(16, 16)] * 3


def test_words_that_no_text_encoder_reads_are_warned_of():
    sets = InContextPipeline(sd3())
    with pytest.warns(UserWarning, match="these words are lost: .*night"):
        sets(CAPTION, grid=TRIO, max_sequence_length=32, **STEPS)
    sets(CAPTION, grid=TRIO, max_sequence_length=32, prompt_3="a cat", **STEPS)  # the caller's own choice


@pytest.mark.slow
def test_the_embedded_model_fills_three_panels():
    from dit_heads.embedded.evaluate import unseen_scenes
    from dit_heads.embedded.world.captions import caption
    from dit_heads.embedded.world.render import render

    pipe = load_embedded("sd3")
    pipe.set_progress_bar_config(disable=True)
    scenes = unseen_scenes("test", 3, solids=1)
    got = InContextPipeline(pipe)(
        "three pictures",
        panel_prompts=[caption(scene) for scene in scenes],
        grid=Grid.row(3, height=128, width=128),
        given={0: Image.fromarray(render(scenes[0]).image)},
        generator=seeded(),
        num_inference_steps=28,
        guidance_scale=4.0,
        max_sequence_length=128,
    )
    first, *others = got.panels[0]
    assert got.images[0].size == (384, 128) and len(others) == 2
    assert np.array_equal(pixels(first), render(scenes[0]).image)
    assert all(pixels(panel).std() > 10 for panel in others)
