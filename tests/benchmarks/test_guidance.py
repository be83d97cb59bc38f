"""The tables of benchmarks/guidance.py, on models of four heads."""

from typing import Any

import pytest
import torch

from benchmarks import guidance
from benchmarks.guidance import Case, flux_rows, sd3_rows


def case(blocks: int) -> Case:
    return Case(blocks, steps=1, pixels=64, device=torch.device("cpu"), dtype=torch.float32, heads=4)


@pytest.mark.parametrize("blocks", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_every_row_runs_with_any_number_of_blocks(blocks):
    with_cfg, without = sd3_rows(case(blocks))
    with torch.no_grad():
        for row in [*with_cfg, *without, *flux_rows(case(blocks))]:
            row.run()


@pytest.mark.parametrize("name", ["blocks", "rounds", "steps"])
def test_less_than_one_is_refused(name):
    options: dict[str, Any] = {name: 0}
    with pytest.raises(SystemExit, match=f"{name}: expected at least 1, got 0"):
        guidance.main(**options)


@pytest.mark.slow
def test_memory_of_every_processor_is_measured(capsys):
    guidance.memory(image=1024, text=8)
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines()[-5:]]
    extra = {row[1].strip(): float(row[3]) for row in rows}
    assert list(extra) == ["stock", "identity", "uniform", "mean_query", "explicit map"]
    assert extra["explicit map"] > 1 > 2 * max(extra["identity"], extra["uniform"], extra["mean_query"])


def test_forks_lie_inside_the_model():
    for blocks in range(1, 65):
        forks = [row.fork for row in case(blocks).forked(lambda _: lambda: None)]
        assert all(fork is not None and 0 <= fork < 1 for fork in forks)
        assert len(set(forks)) == len(forks) == min(blocks, 3)


def test_the_published_depths_are_those_of_8_and_24_blocks():
    for blocks in (8, 24):
        assert [row.fork for row in case(blocks).forked(lambda _: lambda: None)] == list(guidance.DEPTHS)


def test_a_table_has_a_goal_for_each_fork(capsys):
    rows = [guidance.Row("plain", lambda: None), *case(4).forked(lambda _: lambda: None)]
    guidance.report("A table", rows, rounds=2, case=case(4), goal=lambda fork: 2 - fork)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[4].strip() for line in lines[-4:]] == ["", "2.000", "1.500", "1.250"]
    assert "fork at block 3 of 4" in lines[-1]
