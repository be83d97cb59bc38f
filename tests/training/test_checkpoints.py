"""Checkpoints and settings of a run: exact resume, files that survive interruption, what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dit_heads.errors import InputError
from dit_heads.io.atomic import write_tensors, write_text
from dit_heads.training.checkpoints import load_weights, read_average
from dit_heads.training.loop import Part, fit
from tests.training.regression import CONFIG, logged, network, regression, run, same


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_run_stopped_at_every_step_ends_as_one_that_was_not(tmp_path: Path, kind: str):
    config = replace(CONFIG, optimizer=kind)
    straight = run(config, tmp_path / "straight")
    for step in range(11):
        run(config, tmp_path / "stopped", seed=step, until=0)
        assert read_average(tmp_path / "stopped")[1] == step + 1
    last = run(config, tmp_path / "stopped", seed=99)
    assert same(tmp_path / "straight", tmp_path / "stopped")
    ours, theirs = straight.state_dict(), last.state_dict()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_run_killed_after_a_checkpoint_repeats_the_steps_it_lost(tmp_path: Path, kind: str):
    config = replace(CONFIG, optimizer=kind)
    run(config, tmp_path / "straight")
    killed = tmp_path / "killed"
    for _ in range(4):
        run(config, killed, until=0)
    with pytest.raises(InterruptedError):
        run(config, killed, fails_at=8)
    assert read_average(killed)[1] == 4
    assert [int(row["step"]) for row in logged(killed)] == list(range(8))
    run(config, killed, seed=5)
    assert same(tmp_path / "straight", killed)
    assert [int(row["step"]) for row in logged(killed)] == list(range(12))
    ours, theirs = logged(tmp_path / "straight"), logged(killed)
    assert [row["loss"] for row in ours] == [row["loss"] for row in theirs]


def test_muon_resumes_convolutions_that_lie_channels_last(tmp_path: Path):
    def convolution(until: float | None, folder: str) -> Tensor:
        torch.manual_seed(0)
        model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

        def loss(part: Part, generator: torch.Generator) -> tuple[Tensor, Mapping[str, float | Tensor]]:
            return (model(torch.randn(2, 3, 8, 8, generator=generator)) - 1).square().mean(), {}

        fit(model, loss, replace(CONFIG, optimizer="muon"), tmp_path / folder, until=until)
        return model.weight.detach()

    convolution(0, "stopped")
    assert torch.equal(convolution(None, "straight"), convolution(None, "stopped"))


def test_a_finished_run_is_only_read(tmp_path: Path):
    done = run(CONFIG, tmp_path)
    again = run(CONFIG, tmp_path, seed=3, fails_at=0)
    assert all(torch.equal(a, b) for a, b in zip(done.parameters(), again.parameters(), strict=True))


def test_other_settings_are_refused_by_name_and_a_longer_run_is_not(tmp_path: Path):
    run(CONFIG, tmp_path)
    kept = (tmp_path / "config.json").read_text()
    other = replace(CONFIG, learning_rate=0.5, betas=(0.8, 0.9))
    with pytest.raises(
        ValueError, match=r"'learning_rate': \(0.02, 0.5\), 'betas': \(\[0.9, 0.99\], \[0.8, 0.9\]\)"
    ):
        run(other, tmp_path)
    assert (tmp_path / "config.json").read_text() == kept
    run(replace(CONFIG, steps=14, log_every=7), tmp_path)
    assert read_average(tmp_path)[1] == 14


def test_an_interrupted_checkpoint_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run(CONFIG, tmp_path, until=0)
    before = (tmp_path / "checkpoint.safetensors").read_bytes()

    def half(tensors: object, path: str, metadata: object) -> None:
        Path(path).write_bytes(before[: len(before) // 2])
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("safetensors.torch.save_file", half)
        with pytest.raises(OSError, match="disk full"):
            run(CONFIG, tmp_path, until=0)
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before
    run(CONFIG, tmp_path, seed=1)
    run(CONFIG, tmp_path / "straight")
    assert same(tmp_path, tmp_path / "straight")
    assert not list(tmp_path.rglob(".*"))  # unfinished files


def test_save_tensors_replaces_and_leaves_no_partial_file(tmp_path: Path):
    path = tmp_path / "a.safetensors"
    for value in (1.0, 2.0):
        write_tensors(path, {"x": torch.full((3, 2), value).T}, {"format": "pt"})
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
    assert torch.equal(load_file(path)["x"], torch.full((2, 3), 2.0))


def test_a_file_of_tensors_can_be_read_by_whom_other_files_can(tmp_path: Path):
    write_tensors(tmp_path / "a.safetensors", {"x": torch.ones(2)}, {})
    (tmp_path / "b").touch()
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_write_atomically_keeps_the_old_text_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a.json"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "new \udc80")
    assert path.read_text() == "old"


def test_load_weights_takes_the_names_it_finds():
    model, other = network(0), network(1)
    load_weights(model, {"0.bias": other.get_parameter("0.bias"), "absent": torch.zeros(1)})
    assert torch.equal(model.get_parameter("0.bias"), other.get_parameter("0.bias"))
    assert not torch.equal(model.get_parameter("0.weight"), other.get_parameter("0.weight"))


def test_settings_of_the_caller_are_kept_and_other_ones_refused(tmp_path: Path):
    def go(settings: dict[str, Any] | None) -> None:
        model = network()
        fit(model, regression(model), CONFIG, tmp_path, until=0, settings=settings)

    go({"data": {"root": "a"}, "sizes": (1, 2)})
    kept = (tmp_path / "config.json").read_text()
    assert json.loads(kept)["data"] == {"root": "a"}
    go({"data": {"root": "a"}, "sizes": (1, 2)})
    for other, message in (
        ({"data": {"root": "b"}, "sizes": (1, 2)}, r"'data': \({'root': 'a'}, {'root': 'b'}\)}"),
        ({"data": {"root": "a"}}, r"'sizes': \(\[1, 2\], None\)}"),
        (None, r"'data': .*, 'sizes': "),
    ):
        with pytest.raises(ValueError, match=message):
            go(other)
    assert (tmp_path / "config.json").read_text() == kept
    assert read_average(tmp_path)[1] == 2


def test_precisions_that_are_not_to_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for precision, message in (("fp16", "precision: fp16 needs a CUDA GPU"), ("fp8", "got 'fp8'")):
        with pytest.raises(ValueError, match=message):
            run(replace(CONFIG, precision=precision), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_run_keeps_the_precision_that_was_fastest_when_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    seen: list[torch.dtype] = []

    def go(faster: bool, precision: str = "auto") -> None:
        monkeypatch.setattr("dit_heads.training.precision.bf16_is_faster", lambda: faster)
        model = network()

        def loss(part: Part, generator: torch.Generator) -> tuple[Tensor, Mapping[str, float | Tensor]]:
            seen.append(model(torch.zeros(1, 4)).dtype)
            return regression(model)(part, generator)

        fit(model, loss, replace(CONFIG, precision=precision), tmp_path, until=0)

    go(True)
    assert json.loads((tmp_path / "config.json").read_text())["precision"] == "bf16"
    with pytest.warns(UserWarning, match=r"precision: the run in .* keeps 'bf16', .* 'no' is faster"):
        go(False)
    go(False, "bf16")
    with pytest.raises(ValueError, match=r"'precision': \('bf16', 'no'\)"):
        go(True, "no")
    assert seen == [torch.bfloat16] * 3


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("checkpoint.safetensors", b"cut"),
        ("config.json", b""),
        ("config.json", b"[1]"),
        ("log.csv", b"step;loss\n0;1.0\n"),
    ],
)
def test_a_damaged_file_of_a_run_is_named(tmp_path: Path, name: str, content: bytes):
    run(CONFIG, tmp_path, until=0)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=re.escape(f"'{tmp_path / name}'")):
        run(CONFIG, tmp_path)
    assert (tmp_path / name).read_bytes() == content


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path):
    run(CONFIG, tmp_path, until=0)
    other = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2, bias=False))
    with pytest.raises(
        InputError, match=r"expected the 3 weights that are trained, got 4; they differ in 2.bias"
    ):
        fit(other, regression(other), CONFIG, tmp_path)
