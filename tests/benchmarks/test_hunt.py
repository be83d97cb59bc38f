"""benchmarks/hunt.py and hunt_cost.py in their shortest settings, and the figures that they print."""

import json

import numpy as np
import pytest

from benchmarks import hunt, hunt_cost
from benchmarks.agreement import share_interval, spearman, split_half
from dit_heads import HeadSet


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of statistics of so few numbers
@pytest.mark.parametrize("stages", [("general", "interactions"), ("styles",)], ids=" and ".join)
def test_every_stage_runs(stages, tmp_path, capsys):
    hunt.main(stages, tmp_path, device="cpu", quick=True)
    printed = capsys.readouterr().out
    assert printed.count("share of its gain") == 1 and "| exhaustive | L" in printed
    if "general" in stages:
        stored = json.loads((tmp_path / "preset.json").read_text())
        assert [len(HeadSet.from_json(preset)) > 0 for preset in stored["presets"]] == [True, True]
        assert (tmp_path / "interactions.png").stat().st_size > 1000


@pytest.mark.slow
def test_the_cost_model_runs(capsys):
    hunt_cost.main(tasks=2, batch=1, steps=1, device="cpu")
    assert "| 64 | " in capsys.readouterr().out


def test_pictures_of_searches_are_those_of_the_paper(capsys):
    """SD3-medium: 576 heads x 20 pairs, and as many pictures without heads."""
    hunt_cost.print_searches()
    assert "| SD3-medium, general | 11540 | " in capsys.readouterr().out


def test_tasks_go_to_the_first_worker_that_is_free():
    assert hunt_cost.makespan([3, 1, 1, 1], 1) == 6
    assert hunt_cost.makespan([3, 1, 1, 1], 2) == 3
    assert hunt_cost.makespan([1, 1, 1, 3], 2) == 4


def test_rankings_agree_by_their_order_alone():
    assert spearman([1, 2, 3], [10, 20, 1000]) == pytest.approx(1)
    assert spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)


def test_halves_of_scores_without_noise_agree():
    scores = np.arange(6.0)[:, None] + np.arange(8.0)
    assert split_half(scores, rounds=5) == pytest.approx(1)
    noise = np.random.default_rng(0).normal(size=(40, 8))
    assert abs(split_half(noise, rounds=50)) < 0.3


def test_the_share_of_a_gain_lies_in_its_interval():
    whole = np.random.default_rng(0).normal(2, 0.5, 200)
    low, high = share_interval(0.8 * whole + np.random.default_rng(1).normal(0, 0.1, 200), whole)
    assert 0.75 < low < 0.8 < high < 0.85
