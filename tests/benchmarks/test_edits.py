"""benchmarks/edits.py in its shortest settings, and the figures that it prints."""

import json

import numpy as np
import pytest

from benchmarks import edits
from dit_heads.embedded.world.scenes import HELD_OUT
from dit_heads.loras.config import config_of
from dit_heads.loras.train import train


@pytest.mark.slow
def test_runs_of_two_seeds_are_measured_beside_both_floors(tmp_path, capsys):
    for seed in range(2):
        config = {
            "task": "multimodal",
            "out": str(tmp_path / f"run-{seed}"),
            "seed": seed,
            "data": {"encode": "lazy", "text_tokens": 64},
            "adapter": {"rank": 2, "targets": ["to_q"]},
            "optimization": {"steps": 1, "batch_size": 1, "warmup": 0, "precision": "no"},
            "watch": {"sample_every": 0},
            "multimodal": {
                "scenes": 2,
                "validation_pairs": 0,
                "tokens": 3,
                "width": 16,
                "heads": 2,
                "layers": 1,
            },
        }
        train(config_of({"model": "embedded", **config, "data": {**config["data"], "sizes": [[128, 128]]}}))
    loras = (tmp_path / "run-0", tmp_path / "run-1")
    out = tmp_path / "figures.json"
    edits.main(loras, count=2, steps=(1,), device="cpu", workers=1, out=out, sheets=tmp_path)
    rows = [line.split(" | ")[0] for line in capsys.readouterr().out.splitlines() if line.startswith("| run")]
    assert rows.count("| run-1, 1 step") >= 3 and rows.count("| run, 1 step, 2 seeds") == 3
    stored = json.loads(out.read_text())
    assert all((tmp_path / f"{kind}.png").is_file() for kind in edits.KINDS)
    assert list(stored["edit"]) == ["autoencoder", "unchanged", "run-0, 1 step", "run-1, 1 step"]
    assert stored["compositional"]["unchanged"]["scene 0"]["L1"] < 1e-6


def test_cases_are_those_of_the_test_split_whatever_their_number():
    one, two = (edits.cases("compositional", count) for count in (1, 2))
    assert one[0].edit == two[0].edit and two[1].name == "scene 1"
    assert one[0].edit == edits.edit_of("test", "compositional", 0)
    outside, source = one[0].outside, one[0].source
    assert outside is not None and source is not None and (source[outside] == one[0].target[outside]).all()


def test_held_out_cases_show_combinations_that_training_does_not():
    for case in edits.cases("subject", 2, held_out=True):
        ((solid,),) = [scene.solids for scene in case.edit.references]
        assert (solid.colour, solid.shape) in HELD_OUT


def test_runs_that_differ_in_their_seed_belong_together():
    one: list[edits.Row] = [{"identity": 1.0}]
    every = {
        "autoencoder": one,
        "a-0, 1 step": one,
        "a-1, 1 step": one,
        "a-0, 20 steps": one,
        "b-0, 1 step": one,
    }
    assert edits.settings_of(every) == {"a, 1 step": [one, one]}


def test_an_interval_over_seeds_is_wider_than_one_over_pictures():
    values = np.random.default_rng(0).normal(size=(1, 200))
    seeds = np.concatenate([values - 1, values + 1])
    low, high = edits.pooled_interval(seeds)
    assert high - low > 1.9 and low < values.mean() < high
    narrow = edits.pooled_interval(np.concatenate([values, values]))
    assert narrow == pytest.approx((values.mean() - 0.139, values.mean() + 0.139), abs=0.02)


def test_figures_that_no_picture_has_are_left_open():
    lines = list(edits.table("edit", {"a": [{"identity": 1.0, "instruction": 0.0}]}))
    assert lines[2] == "| a | 100.0 [100.0, 100.0] | - | - | - | 0.0 [0.0, 0.0] |"
