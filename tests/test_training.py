"""The training loop: exact resume, averages against a loop by hand, checkpoints that survive interruption."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dit_heads import training
from dit_heads.training import (
    FitConfig,
    Log,
    Loss,
    Part,
    fit,
    load_weights,
    rate_at,
    read_average,
    save_tensors,
    write_atomically,
)

CONFIG = FitConfig(12, 0.02, warmup=3, decline=0.5, ema=0.8, precision="no", log_every=1, seed=7)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))


def regression(model: nn.Module, *, fails_at: int = -1) -> Loss:
    def loss(part: Part, generator: torch.Generator) -> tuple[Tensor, Mapping[str, float | Tensor]]:
        if part.step == fails_at:
            raise InterruptedError("killed")
        x = torch.randn(16, 4, generator=generator)
        value = (model(x) - x[:, :2].sin()).square().mean()
        return value, {"number": float(part.step)}

    return loss


def run(config: FitConfig, folder: Path, seed: int = 0, *, fails_at: int = -1, until: float | None = None):
    """Train a network; other weights by another `seed` show that a resumed run starts from its checkpoint."""
    model = network(seed)
    return fit(model, regression(model, fails_at=fails_at), config, folder, until=until)


def same(a: Path, b: Path) -> bool:
    first, second = (load_file(folder / "checkpoint.safetensors") for folder in (a, b))
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def logged(folder: Path) -> list[dict[str, str]]:
    with (folder / "log.csv").open() as file:
        return list(csv.DictReader(file))


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


def test_training_and_average_equal_a_loop_by_hand(tmp_path: Path):
    fitted, model = run(CONFIG, tmp_path), network()
    descent = torch.optim.AdamW(model.parameters(), betas=CONFIG.betas, weight_decay=CONFIG.weight_decay)
    weights, loss = list(model.parameters()), regression(model)
    average = [w.detach().clone() for w in weights]
    for step in range(CONFIG.steps):
        value, _ = loss(Part(step), torch.Generator().manual_seed(7_000_021 + step))  # 7 * 1_000_003
        descent.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(weights, CONFIG.clip)
        descent.param_groups[0]["lr"] = 0.02 * rate_at(step, CONFIG)
        descent.step()
        decay = min(0.8, (1 + step) / (10 + step))
        average = [decay * a + (1 - decay) * w.detach() for a, w in zip(average, weights, strict=True)]
    torch.testing.assert_close([p.detach() for p in fitted.parameters()], average)
    stored = load_file(tmp_path / "checkpoint.safetensors")
    torch.testing.assert_close(stored["model.0.weight"], weights[0].detach())
    assert not fitted.training


def test_frozen_weights_stay_and_have_no_average(tmp_path: Path):
    model = network()
    first = model[0].requires_grad_(False)  # pyright: ignore[reportIndexIssue]
    before = first.weight.clone()
    fit(model, regression(model), CONFIG, tmp_path)
    assert torch.equal(first.weight, before)
    assert set(read_average(tmp_path)[0]) == {"2.weight", "2.bias"}


def test_rate_warms_up_stays_and_falls():
    config = FitConfig(1100, warmup=100, decline=0.25, final_rate=0.04)
    assert [rate_at(s, config) for s in (0, 49, 99)] == [0.01, 0.5, 1.0]
    assert rate_at(100, config) == rate_at(600, config) == rate_at(850, config) == 1.0
    assert rate_at(975, config) == pytest.approx((1 + 0.04) / 2)  # half of the last 250 steps
    assert rate_at(1100, config) == pytest.approx(0.04)
    one_cycle = FitConfig(1100, warmup=100, decline=1.0, final_rate=0.0)
    assert rate_at(350, one_cycle) == pytest.approx(0.5 + 0.5**1.5)  # a quarter: cos(pi / 4)


def test_an_interrupted_checkpoint_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run(CONFIG, tmp_path, until=0)
    before = (tmp_path / "checkpoint.safetensors").read_bytes()

    def half(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(before[: len(before) // 2])
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(training, "save_file", half)
        with pytest.raises(OSError, match="disk full"):
            run(CONFIG, tmp_path, until=0)
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before
    run(CONFIG, tmp_path, seed=1)
    run(CONFIG, tmp_path / "straight")
    assert same(tmp_path, tmp_path / "straight")
    assert not list(tmp_path.rglob("*.partial"))


def test_save_tensors_replaces_and_leaves_no_partial_file(tmp_path: Path):
    path = tmp_path / "a.safetensors"
    for value in (1.0, 2.0):
        save_tensors(path, {"x": torch.full((3, 2), value).T}, {"format": "pt"})
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
    assert torch.equal(load_file(path)["x"], torch.full((2, 3), 2.0))


def test_write_atomically_keeps_the_old_text_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a.json"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "new \udc80")
    assert path.read_text() == "old"


def test_load_weights_takes_the_names_it_finds():
    model, other = network(0), network(1)
    load_weights(model, {"0.bias": other.get_parameter("0.bias"), "absent": torch.zeros(1)})
    assert torch.equal(model.get_parameter("0.bias"), other.get_parameter("0.bias"))
    assert not torch.equal(model.get_parameter("0.weight"), other.get_parameter("0.weight"))


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
