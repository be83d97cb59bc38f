"""Runs that are killed, stopped, or shared by processes, end as one that was not."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from dit_heads.loras.train import train
from tests.loras.runs import ROOT, as_yaml, logged, same, settings, weights

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
STEPS = 16
CHOSEN: dict[str, Any] = {"optimization": {"steps": STEPS, "decline": 0.5}}
WATCH = {"sample_every": 8, "keep_every": 5}


def outside(*jobs: tuple[Any, ...]) -> tuple[dict[str, Any], str]:
    """The results of jobs of outside.py, each on one thread, and what its imports say."""
    command = [sys.executable, str(Path(__file__).with_name("outside.py")), json.dumps(jobs, default=str)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=400)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


@pytest.fixture
def single() -> Iterator[None]:
    """One thread here, as there: sums over threads differ in their last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@needs_fork
@pytest.mark.usefixtures("single")
def test_runs_that_are_killed_or_stopped_end_as_one_that_was_not(
    models: dict[str, Path], sets: Path, tmp_path: Path
):
    """One process starts all of these runs, since its imports take longer than they do."""
    watch = {**WATCH, "validation": str(sets)}
    killed = settings(
        models["sd3"], sets, tmp_path / "killed", **CHOSEN, watch={**watch, "checkpoint_minutes": 0}
    )
    stopped = settings(models["sd3"], sets, tmp_path / "stopped", **CHOSEN)
    whole = settings(models["sd3"], sets, tmp_path / "whole", optimization={"steps": 1})
    files = [as_yaml(config, config.out.with_suffix(".yaml")) for config in (killed, stopped, whole)]
    found, imports = outside(
        ("kill", files[0], killed.out, 2, STEPS),
        ("interrupt", files[1], stopped.out),
        ("run", files[2], whole.out, "--seed", "4"),
    )
    straight = settings(models["sd3"], sets, tmp_path / "straight", **CHOSEN, watch=watch)
    train(straight)
    check_killed(killed.out, straight.out, found["kill"])
    code, step = found["interrupt"]
    assert code == 130 and 1 <= step < STEPS
    assert same(stopped.out, straight.out)
    check_command(whole.out, found["run"], imports)


def check_killed(out: Path, straight: Path, steps: list[int]) -> None:
    """A run that was killed after these steps is one that was not."""
    assert len(set(steps)) > len(steps) // 2
    assert same(out, straight) and (out / "lora-000005.safetensors").exists()
    assert (out / "validation.csv").read_text() == (straight / "validation.csv").read_text()
    assert [row["step"] for row in logged(out)] == [row["step"] for row in logged(straight)]


def check_command(out: Path, found: dict[str, Any], imports: str) -> None:
    """The command says where its file is, flags replace what the YAML says, and no library speaks."""
    assert (found["code"], found["out"]) == (0, f"wrote {out}/lora.safetensors\n")
    assert imports == "dit-heads: error: data: expected a folder, got 'nowhere'\n"
    assert "Warning" not in found["err"]
    assert '"seed": 4' in (out / "config.json").read_text()


@pytest.mark.slow
@needs_fork
@pytest.mark.usefixtures("single")
def test_a_run_killed_ten_times_ends_as_one_that_was_not(models: dict[str, Path], sets: Path, tmp_path: Path):
    watch = {**WATCH, "validation": str(sets), "checkpoint_minutes": 0}
    chosen = {"optimization": {"steps": 48, "decline": 0.5}, "watch": watch}
    config = settings(models["sd3"], sets, tmp_path / "killed", **chosen)
    found, _ = outside(("kill", as_yaml(config, tmp_path / "run.yaml"), config.out, 10, 48))
    straight = settings(models["sd3"], sets, tmp_path / "straight", **chosen)
    train(straight)
    check_killed(config.out, straight.out, found["kill"])


def test_a_batch_in_parts_trains_as_a_whole_one(models: dict[str, Path], sets: Path, tmp_path: Path):
    for parts in (1, 2, 4):
        config = settings(
            models["sd3"], sets, tmp_path / str(parts), optimization={"accumulate": parts, "steps": 11}
        )
        train(config)
        assert_close(weights(config.out), weights(tmp_path / "1"), rtol=1e-3, atol=2e-5)
        losses = [[float(row["loss"]) for row in logged(tmp_path / str(p))] for p in (1, parts)]
        assert len(losses[0]) == 2 and losses[1] == pytest.approx(losses[0], abs=2e-4)


@pytest.mark.slow
def test_two_processes_train_as_one(models: dict[str, Path], sets: Path, tmp_path: Path):
    """With a masked loss, a prior, and each process's share in two parts, as `torchrun` starts them."""
    prior = {"prior": str(tmp_path / "prior"), "prior_prompt": "an owl", "prior_count": 3}
    chosen: dict[str, Any] = {
        "loss": {**prior, "panel_weights": [1, 0]},
        "optimization": {"steps": 21},
        "watch": {"sample_steps": 1, "validation": str(sets), "sample_every": 10},
    }
    one = settings(models["sd3"], sets, tmp_path / "one", **chosen)
    train(one)
    chosen["optimization"] |= {"accumulate": 2}
    two = settings(models["sd3"], sets, tmp_path / "two", **chosen)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    launch = f"--nproc_per_node 2 --master_port {port} --redirects 3 --log-dir {tmp_path / 'ranks'}"
    command = [sys.executable, "-m", "torch.distributed.run", *launch.split(), "-m", "dit_heads.cli", "train"]
    command += [str(as_yaml(two, tmp_path / "two.yaml"))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    said = [path.read_text() for path in (tmp_path / "ranks").rglob("stdout.log")]
    assert len(said) == 2 and "".join(said).count("wrote") == 1
    assert_close(weights(two.out), weights(one.out), rtol=1e-3, atol=2e-5)
    for name in ("loss", "sets", "prior", "gradient"):
        ours, theirs = ([float(row[name]) for row in logged(out)] for out in (one.out, two.out))
        assert len(ours) == 3 and theirs == pytest.approx(ours, abs=3e-4)
    losses = [(out / "validation.csv").read_text().split()[1:] for out in (one.out, two.out)]
    ours, theirs = ([float(row.split(",")[1]) for row in rows] for rows in losses)
    assert len(ours) == 3 and theirs == pytest.approx(ours, abs=1e-4)
