"""The log of a run: means with significant digits, the same whether the run was stopped or not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dit_heads.training.checkpoints import read_average
from dit_heads.training.log import Log
from tests.training.regression import CONFIG, logged, run


def test_the_log_holds_means_of_what_was_added(tmp_path: Path):
    log = Log(tmp_path / "log.csv", 0)
    log.add(0, {"loss": 1.0})
    log.add(1, {"loss": 2.0, "probe": 0.5})
    log.write(log.means(), 3.0)
    log.add(2, {"loss": 4.0})
    log.write(log.means(), 4.0)
    rows = logged(tmp_path)
    assert [(r["step"], r["loss"], r["probe"]) for r in rows] == [("1", "1.5", "0.5"), ("2", "4.0", "")]
    Log(tmp_path / "log.csv", 2).write({}, 0)
    assert logged(tmp_path)[0] == rows[0]


def test_a_figure_that_comes_late_has_its_own_column(tmp_path: Path):
    log = Log(tmp_path / "log.csv", 0)
    for step, figures in enumerate([{"loss": 1.0}, {"loss": 2.0, "probe": 0.5}]):
        log.add(step, figures)
        log.write(log.means(), 0.0)
    assert [r["probe"] for r in logged(tmp_path)] == ["", "0.5"]


@pytest.mark.parametrize("stops", [(1,), (2, 1, 4), (5, 4)])
def test_a_resumed_run_writes_the_log_of_one_that_was_not_stopped(tmp_path: Path, stops: tuple[int, ...]):
    """The means of a line cover the steps before a checkpoint as well."""
    config = replace(CONFIG, log_every=4)
    run(config, tmp_path / "straight")
    for steps in stops:
        for _ in range(steps):
            run(config, tmp_path / "stopped", until=0)
        with pytest.raises(InterruptedError):
            run(config, tmp_path / "stopped", fails_at=read_average(tmp_path / "stopped")[1] + 1)
    run(config, tmp_path / "stopped")
    ours, theirs = (
        [{**row, "seconds": ""} for row in logged(tmp_path / name)] for name in ("straight", "stopped")
    )
    assert ours == theirs and [row["step"] for row in ours] == ["0", "4", "8"]


def test_small_figures_are_logged_with_their_digits(tmp_path: Path):
    log = Log(tmp_path / "log.csv", 0)
    log.add(0, {"loss": 3e-5, "gradient": 1234.56789, "third": 1 / 3})
    log.write(log.means(), 1.0)
    (row,) = logged(tmp_path)
    assert (row["loss"], row["gradient"], row["third"]) == ("3e-05", "1234.57", "0.333333")
