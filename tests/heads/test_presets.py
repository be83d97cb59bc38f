import json

import pytest

from dit_heads.errors import InputError
from dit_heads.heads.presets import FOLDER, read_presets, shipped_presets
from dit_heads.models import head_layout

# Blocks and heads a block of the models that the paper searched.
SIZES = {
    "stabilityai/stable-diffusion-3-medium-diffusers": (24, 24),
    "black-forest-labs/FLUX.1-dev": (57, 24),
}
PAPER = [(found, preset) for found in shipped_presets() for preset in found.presets if found.model in SIZES]
MEASURED = FOLDER / "embedded-sd3.json"


@pytest.mark.parametrize(("found", "preset"), PAPER, ids=lambda part: getattr(part, "effect", ""))
def test_each_of_a_paper_fits_its_model_and_names_its_source(found, preset):
    blocks, heads = SIZES[found.model]
    assert preset.head_set.resolve([heads] * blocks)
    assert "arXiv" in found.source and not preset.verified


def test_effects_are_told_apart():
    keys = [(found.model, preset.effect) for found, preset in PAPER]
    assert len(keys) == len(set(keys)) == 25


def test_the_others_are_measured_and_fit_their_model():
    others = [found for found in shipped_presets() if found.model not in SIZES]
    assert [found.model for found in others] == ["embedded/sd3"]
    for found in others:
        assert "python benchmarks/" in found.source and found.provenance
        assert all(head_layout(found.model).resolve(preset.head_set) for preset in found.presets)


def test_a_preset_is_found_by_its_effect():
    found = read_presets(MEASURED)
    assert found["general"].effect == "general"
    with pytest.raises(InputError, match="effect: expected one of general, general, one block, got 'best'"):
        found["best"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": None}, "model: expected text, got nothing"),
        ({"presets": "L1"}, "presets: expected a list"),
        ({"presets": [{"effect": "a", "heads": ["L1"]}]}, "presets"),
        ({"presets": [{"effect": "a", "heads": [], "verified": True}]}, "presets"),
        ({"presets": [{"effect": "a", "heads": ["X"], "verified": True}]}, "heads: expected"),
        (
            {"presets": [{"effect": "a", "heads": ["L1"], "verified": True}] * 2},
            "each effect once, got a",
        ),
        ({"extra": 1}, "unknown setting 'extra'"),
    ],
)
def test_a_file_with_wrong_parts_is_refused(change, message, tmp_path):
    parts = {**json.loads(MEASURED.read_text()), **change}
    path = tmp_path / "preset.json"
    path.write_text(json.dumps({name: part for name, part in parts.items() if part is not None}))
    with pytest.raises(InputError, match=r"preset\.json' is no file of presets") as error:
        read_presets(path)
    assert message in str(error.value)
