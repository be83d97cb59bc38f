"""`dit-heads showcase` and the presets that it reads."""

from dataclasses import replace

import pytest

from dit_heads import HeadSet
from dit_heads.cli import main
from dit_heads.cli.sheet import PRESETS, PROMPTS, columns, draw_column, showcase
from dit_heads.embedded.world.text import unknown_words
from dit_heads.heads.presets import Preset, PresetFile, read_presets
from dit_heads.io.pictures import read_image, read_settings
from dit_heads.models import head_layout
from tests.saved import tiny_pipeline

HEADS = Preset("general", ("L0H1", "L2H3"), verified=True, scale=2.0, softness=0.5)
BLOCK = Preset("general, one block", ("L1",), verified=True, scale=1.0, softness=0.5)
TINY = PresetFile("tiny", "nobody", (HEADS, BLOCK))


@pytest.fixture(scope="module")
def pipe():
    pipe = tiny_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_columns_share_seeds_and_differ_by_guidance_alone(pipe):
    kinds = columns(HEADS, BLOCK, 3.0)
    drawn = [draw_column(pipe, ["a cat", "a dog"], 4, 2, kind) for kind in kinds]
    assert len({image.tobytes() for column in drawn for image in column}) == 2 * len(drawn)
    again = [draw_column(pipe, ["a cat", "a dog"], 4, 2, kind) for kind in kinds]
    assert [image.tobytes() for column in drawn for image in column] == [
        image.tobytes() for column in again for image in column
    ]


def test_a_column_without_strength_is_the_unguided_one(pipe):
    unguided, *_, guided = columns(replace(HEADS, scale=0.0), BLOCK)
    plain = draw_column(pipe, ["a cat"], 0, 2, unguided)[0]
    off = draw_column(pipe, ["a cat"], 0, 2, replace(guided, cfg=1.0))[0]
    assert plain.tobytes() == off.tobytes()


def test_the_sheet_has_a_row_a_prompt_and_a_column_a_kind_of_guidance(pipe):
    one = showcase(pipe, TINY, ["a cat"], steps=2)
    two = showcase(pipe, TINY, ["a cat", "a dog"], steps=2)
    assert two.width == one.width > 5 * 200
    assert two.height > one.height + 200


def test_the_prompts_are_in_the_embedded_models_words():
    assert [word for prompt in PROMPTS for word in unknown_words(prompt)] == []


def test_the_shipped_presets_fit_the_embedded_model():
    found = read_presets(PRESETS)
    layout = head_layout(found.model)
    for preset in found.presets:
        assert layout.resolve(preset.head_set) and preset.verified
        assert 0 < preset.softness <= 1 and preset.scale > 0
    assert found["general"].head_set == HeadSet.parse("L0H5, L1H1, L2H9, L4H1")
    assert sum(layout.heads) >= 96
    assert not found.provenance.get("placeholder")


@pytest.mark.slow
def test_the_command_writes_the_sheet_of_the_embedded_model(tmp_path, capsys):
    out = tmp_path / "out" / "sheet.png"
    assert main(["showcase", "--out", str(out), "--seed", "3", "--steps", "2"]) == 0
    assert str(out) in capsys.readouterr().out
    assert read_image(out).width > 1000
    stored = read_settings(out)
    assert stored["seed"] == 3 and stored["steps"] == 2 and len(stored["preset"]["presets"]) == 2


@pytest.mark.parametrize(("flag", "value"), [("--seed", "-1"), ("--seed", str(2**64)), ("--steps", "0")])
def test_a_sheet_that_cannot_be_drawn_is_refused_at_once(flag, value, tmp_path, monkeypatch, error_line):
    monkeypatch.chdir(tmp_path)
    assert main(["showcase", flag, value]) == 2
    assert f"{flag[2:]}: expected a whole number from " in error_line()
    assert list(tmp_path.iterdir()) == []
