import json
from dataclasses import replace

import pytest

from dit_heads import HeadSet
from dit_heads.cli.showcase import (
    PRESET,
    PROMPTS,
    Choice,
    Preset,
    columns,
    draw_column,
    read_preset,
    run_showcase,
    showcase,
)
from dit_heads.embedded.world.text import unknown_words
from dit_heads.io.pictures import read_image, read_settings
from dit_heads.models import head_layout
from tests.saved import tiny_pipeline

TINY = Preset("tiny", heads=Choice("L0H1, L2H3", 2.0, 0.5), block=Choice("L1", 1.0, 0.5), cfg=3.0, steps=2)


@pytest.fixture(scope="module")
def pipe():
    pipe = tiny_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_columns_share_seeds_and_differ_by_guidance_alone(pipe):
    drawn = [draw_column(pipe, ["a cat", "a dog"], 4, 2, cfg, choice) for _, cfg, choice in columns(TINY)]
    assert len({image.tobytes() for column in drawn for image in column}) == 2 * len(drawn)
    again = [draw_column(pipe, ["a cat", "a dog"], 4, 2, cfg, choice) for _, cfg, choice in columns(TINY)]
    assert [image.tobytes() for column in drawn for image in column] == [
        image.tobytes() for column in again for image in column
    ]


def test_a_column_without_strength_is_the_unguided_one(pipe):
    plain = draw_column(pipe, ["a cat"], 0, 2, 1.0, None)[0]
    off = draw_column(pipe, ["a cat"], 0, 2, 1.0, replace(TINY.heads, scale=0.0))[0]
    assert plain.tobytes() == off.tobytes()


def test_the_sheet_has_a_row_a_prompt_and_a_column_a_kind_of_guidance(pipe):
    one = showcase(pipe, TINY, ["a cat"])
    two = showcase(pipe, TINY, ["a cat", "a dog"])
    assert two.width == one.width > 5 * 200
    assert two.height > one.height + 200


def test_the_prompts_are_in_the_embedded_models_words():
    assert [word for prompt in PROMPTS for word in unknown_words(prompt)] == []


def test_the_shipped_preset_fits_the_embedded_model():
    preset = read_preset(PRESET)
    layout = head_layout(preset.model)
    for choice in (preset.heads, preset.block):
        chosen = HeadSet.parse(choice.set)
        assert layout.resolve(chosen)
        assert 0 < choice.softness <= 1 and choice.scale > 0
    assert sum(layout.heads) >= 96
    assert not preset.provenance.get("placeholder")


@pytest.mark.parametrize("change", [{"cfg": None}, {"heads": {"set": "L1"}}, {"heads": "L1"}, {"extra": 1}])
def test_a_preset_with_wrong_parts_is_refused(change, tmp_path):
    parts = {**json.loads(PRESET.read_text()), **change}
    path = tmp_path / "preset.json"
    path.write_text(json.dumps({name: part for name, part in parts.items() if part is not None}))
    with pytest.raises(ValueError, match=r"preset\.json"):
        read_preset(path)


def test_the_main_job_writes_the_sheet_of_the_embedded_model(tmp_path, capsys):
    short = {**json.loads(PRESET.read_text()), "steps": 2}
    (tmp_path / "short.json").write_text(json.dumps(short))
    run_showcase(tmp_path / "out" / "sheet.png", seed=3, preset_path=tmp_path / "short.json")
    assert str(tmp_path / "out" / "sheet.png") in capsys.readouterr().out
    assert read_image(tmp_path / "out" / "sheet.png").width > 1000
    stored = read_settings(tmp_path / "out" / "sheet.png")
    assert stored["seed"] == 3 and stored["preset"]["steps"] == 2
