"""Sets of pictures: the work of the In-context tab, its recipes, and the files that visitors bring."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dit_heads.cli import main
from dit_heads.cli.in_context import SetSettings, set_of, stored_set
from dit_heads.demo.drawing import Drawing, Lora
from dit_heads.demo.facts import facts_of
from dit_heads.demo.in_context import (
    DrawingSet,
    check_set_settings,
    grid_for,
    joint_caption,
    layouts,
)
from dit_heads.demo.limits import Limits
from dit_heads.demo.recipes import given_file, set_command_line, set_python_code
from dit_heads.errors import InputError
from dit_heads.io.pictures import png_bytes, read_image
from dit_heads.loras import Grid, LowRank, write_lora
from dit_heads.loras import Lora as Change
from dit_heads.loras.sets.panels import join
from dit_heads.pipelines import InContextPipeline
from tests.demo.watched import cancelled_at, watched
from tests.saved import tiny_pipeline

PAIR = Grid.equal(1, 2, height=32, width=32)
CAPTION = "two. [LEFT] a cat [RIGHT] a dog"


def colour(name: str) -> Image.Image:
    return Image.new("RGB", (32, 32), name)


@pytest.fixture(scope="module")
def lora(tmp_path_factory) -> Path:
    """A LoRA of the tiny model that changes a picture visibly."""
    g = torch.Generator().manual_seed(0)
    change = LowRank(torch.randn(2, 32, generator=g), torch.randn(32, 2, generator=g))
    path = tmp_path_factory.mktemp("loras") / "mine.safetensors"
    write_lora(path, Change({"transformer_blocks.1.attn.to_q": change}))
    return path


@pytest.fixture
def set_settings(model):
    def make(**changes) -> SetSettings:
        quick = {"prompt": CAPTION, "model": model, "steps": 2, "guidance_scale": 2.0}
        return SetSettings(**{**quick, **changes})

    return make


def alone(settings: SetSettings, loras=(), given=None) -> bytes:
    """The set by a pipeline of its own, called as docs/loras.md does."""
    pipe: Any = tiny_pipeline()
    pipe.set_progress_bar_config(disable=True)
    for path, scale in loras:
        pipe.load_lora_weights(str(path), adapter_name="one")
        pipe.set_adapters(["one"], [scale])
    sets = InContextPipeline(pipe)
    call: dict[str, Any] = {"num_inference_steps": settings.steps, "guidance_scale": settings.guidance_scale}
    call["generator"] = torch.Generator().manual_seed(settings.seed)
    return sets(settings.prompt, grid=PAIR, given=given, **call).images[0].tobytes()


def test_a_set_is_the_one_of_the_pipelines_own_call(roomy, model, set_settings, lora):
    for settings, loras, given in [
        (set_settings(seed=3), [], {}),
        (set_settings(seed=3), [(lora, 2.0)], {}),
        (set_settings(seed=4), [(lora, 0.5)], {1: colour("red")}),
    ]:
        work = DrawingSet(settings, [Lora(*each) for each in loras], given)
        drawn = roomy.submit(model, work).wait(60)
        assert drawn.image.tobytes() == alone(settings, loras, given or None)
        assert join(drawn.panels, PAIR).tobytes() == drawn.image.tobytes()


def test_given_panels_stay_as_they_are_and_the_others_depend_on_them(roomy, model, set_settings):
    free = roomy.submit(model, DrawingSet(set_settings())).wait(60)
    filled = roomy.submit(model, DrawingSet(set_settings(), given={0: colour("blue")})).wait(60)
    assert filled.panels[0].tobytes() == colour("blue").tobytes() and filled.given == (0,)
    assert filled.panels[1].tobytes() != free.panels[1].tobytes()


def test_the_lora_of_a_set_reaches_no_other_job(roomy, model, set_settings, settings, lora):
    plain = roomy.submit(model, Drawing(settings(seed=6))).wait(60).image.tobytes()
    jobs = []
    for seed in range(3):
        jobs.append(roomy.submit(model, DrawingSet(set_settings(seed=seed), [Lora(lora, 2.0)])))
        jobs.append(roomy.submit(model, DrawingSet(set_settings(seed=seed))))
        jobs.append(roomy.submit(model, Drawing(settings(seed=6))))
    found = [job.wait(60).image.tobytes() for job in jobs]
    assert found[2::3] == [plain] * 3
    for seed in range(3):
        assert found[3 * seed] == alone(set_settings(seed=seed), [(lora, 2.0)])
        assert found[3 * seed + 1] == alone(set_settings(seed=seed))


def test_a_cancelled_set_frees_the_model_within_one_step(roomy, model, set_settings, lora):
    long = roomy.submit(model, cancelled_at(2, DrawingSet(set_settings(steps=50), [Lora(lora)])))
    after = roomy.submit(model, DrawingSet(set_settings(seed=9)))
    assert after.wait(60).image.tobytes() == alone(set_settings(seed=9))
    assert long.view.state == "cancelled" and long._view.step == 2


def test_previews_have_the_size_of_the_set(roomy, model, set_settings):
    seen = []
    work = DrawingSet(set_settings(steps=4), given={0: colour("blue")})
    roomy.submit(model, watched(work, lambda job, changes: seen.append(changes.get("preview")))).wait(60)
    previews = [image for image in seen if image is not None]
    assert previews and previews[0].size == (64, 32)


# --- settings ---


def test_layouts_are_those_that_the_positions_reach(model):
    assert layouts(facts_of("embedded"), 2**20) == [(1, 2), (1, 3), (2, 1), (3, 1), (2, 2)]
    assert grid_for(facts_of("embedded"), 1, 3) == Grid.equal(1, 3, height=128, width=128)
    tiny = facts_of(model)
    assert {grid_for(tiny, *layout).heights[0] for layout in layouts(tiny, 2**20)} == {16, 32}
    assert layouts(tiny, 32 * 64) == [(1, 2), (1, 3), (2, 1), (3, 1)]


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        (("a cat", " "), r"please describe each panel; there are no words for \[RIGHT\]"),
        (("a cat", "a [LEFT] dog"), "no marker inside a part"),
    ],
)
def test_a_caption_that_cannot_be_joined_is_told_in_words(texts, told):
    with pytest.raises(InputError, match=told):
        joint_caption(1, 2, "two", texts)


@pytest.mark.parametrize(
    ("changes", "given", "told"),
    [
        ({"prompt": "a cat"}, {}, "got no marker"),
        ({"columns": 3}, {}, "markers of 2 panels, expected 3"),
        ({"prompt": f"{'x' * 999} {CAPTION}"}, {}, "caption: expected at most 1000 characters"),
        ({"steps": 61}, {}, "steps: expected at most 60"),
        ({"guidance_scale": 31.0}, {}, "guidance_scale: expected at most 30"),
        ({"loras": ("a", "b", "c", "d")}, {}, "loras: expected at most 3"),
        ({}, {0: 1, 1: 1}, "all of them are given"),
    ],
)
def test_a_set_beyond_the_limits_is_refused_in_words(set_settings, changes, given, told):
    with pytest.raises(InputError, match=told):
        check_set_settings(set_settings(**changes), given, Limits())


def test_a_set_keeps_its_settings_and_which_panels_were_given(set_settings):
    kept = stored_set(set_settings(loras=("sky=0.5",)), {1: None})
    again, given = set_of(json.loads(json.dumps(kept)), Path("a.png"))
    assert again == set_settings(loras=("sky=0.5",)) and given == (1,)
    for wrong in ({**kept, "given": ["one"]}, {**kept, "colour": "red"}, {**kept, "rows": 0}):
        with pytest.raises(InputError, match=r"from: 'a\.png'"):
            set_of(wrong, Path("a.png"))


@pytest.mark.parametrize("given", [{}, {1: "red"}])
@pytest.mark.parametrize("with_lora", [False, True])
def test_the_command_the_code_and_the_file_draw_the_set_again(
    roomy, model, set_settings, lora, tmp_path, monkeypatch, given, with_lora
):
    given = {number: colour(name) for number, name in given.items()}
    asked = set_settings(seed=7, loras=("mine.safetensors=0.5",) if with_lora else ())
    loras = [Lora(lora, 0.5)] if with_lora else []
    drawn = roomy.submit(model, DrawingSet(asked, loras, given)).wait(60)
    expected = drawn.image.tobytes()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.safetensors").write_bytes(lora.read_bytes())
    for number in given:
        drawn.panels[number].save(given_file(number))
    words = shlex.split(set_command_line(asked, drawn.given))
    assert main(words[1:]) == 0 and read_image(tmp_path / "set.png").tobytes() == expected
    exec(set_python_code(asked, PAIR, drawn.given), {})
    assert read_image(tmp_path / "set.png").tobytes() == expected
    (tmp_path / "saved.png").write_bytes(png_bytes(drawn.image, stored_set(asked, given)))
    assert main(["in-context", "--from=saved.png", "--out", "again.png"]) == 0
    assert read_image(tmp_path / "again.png").tobytes() == expected
