"""Several processes: they train as one, the main one writes, none waits in vain."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import Tensor

from dit_heads.training import loop
from dit_heads.training.loop import Part, fit
from tests.training.regression import CONFIG, logged, network, rows_of, run

ROOT = Path(__file__).parents[2]


def shared(folder: Path, accumulate: int) -> None:
    model = network().double()

    def loss(part: Part, _: torch.Generator) -> tuple[Tensor, Mapping[str, float | Tensor]]:
        x, y = rows_of(part)
        return (model(x) - y).square().mean(), {"place": float(part.index)}

    fit(model, loss, replace(CONFIG, accumulate=accumulate, log_every=4), folder)


def in_two_processes(script: str, *arguments: str) -> list[subprocess.Popen[bytes]]:
    """The processes that run a script together, as `torchrun` starts them."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    world = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    world |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script, *arguments]
    ranks = [os.environ | world | {"RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
    return [subprocess.Popen(command, env=environment, cwd=ROOT) for environment in ranks]


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path):
    """Each takes its parts of the batch; gradients and figures are means over both."""
    script = "import sys, pathlib, tests.training.test_processes as t; t.shared(pathlib.Path(sys.argv[1]), 2)"
    started = in_two_processes(script, str(tmp_path / "two"))
    shared(tmp_path / "one", 4)
    assert [process.wait(300) for process in started] == [0, 0]
    one, two = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("one", "two"))
    torch.testing.assert_close(two, one, rtol=1e-9, atol=1e-12)
    rows = [[{**row, "seconds": "0"} for row in logged(tmp_path / name)] for name in ("one", "two")]
    assert len(rows[0]) == 3 and rows[0][0]["place"] == "1.5"
    for ours, theirs in zip(*rows, strict=True):
        expected = {name: float(value) for name, value in theirs.items()}
        assert {name: float(value) for name, value in ours.items()} == pytest.approx(expected, abs=2e-4)


def test_the_callers_accelerator_keeps_its_precision(tmp_path: Path):
    """A run used to reset the state that all accelerators of a process share."""
    theirs = Accelerator(mixed_precision="no", cpu=True)
    run(replace(CONFIG, precision="bf16"), tmp_path, until=0)
    assert theirs.mixed_precision == Accelerator(cpu=True).mixed_precision == "no"
    AcceleratorState._reset_state()


def test_the_main_process_alone_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Several that wrote the same file at the start could take it from each other."""
    other = SimpleNamespace(
        is_main_process=False, num_processes=1, process_index=0, device=torch.device("cpu")
    )
    monkeypatch.setattr(loop, "process_state", lambda: other)
    run(CONFIG, tmp_path)
    assert not list(tmp_path.iterdir())


PATIENCE = """
import datetime, os, time
from accelerate import PartialState
from dit_heads.training.processes import wait_for_all
state = PartialState(cpu=True, timeout=datetime.timedelta(seconds=1))
if state.is_main_process:
    time.sleep(3)
wait_for_all(state)
"""


@pytest.mark.slow
def test_processes_wait_for_one_that_takes_longer_than_a_barrier_allows():
    started = in_two_processes(PATIENCE)
    assert [process.wait(300) for process in started] == [0, 0]
