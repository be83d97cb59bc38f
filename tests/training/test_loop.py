"""The training loop: exact resume, averages against a loop by hand, checkpoints that survive interruption."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import Tensor, nn

from dit_heads.errors import InputError
from dit_heads.io.atomic import write_tensors, write_text
from dit_heads.training import loop
from dit_heads.training.checkpoints import load_weights, read_average
from dit_heads.training.generators import keyed_generator
from dit_heads.training.log import Log
from dit_heads.training.loop import FitConfig, Loss, Part, fit, rate_at
from dit_heads.training.optimizers import Muon

ROOT = Path(__file__).parents[2]
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
        value, _ = loss(Part(step), keyed_generator(7, step, 0))
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


# --- parts, signals, a watcher ---


def rows_of(part: Part, batch: int = 8) -> tuple[Tensor, Tensor]:
    """The rows that a part takes of a batch whose numbers depend on the step alone."""
    x = torch.randn(batch, 4, generator=torch.Generator().manual_seed(part.step), dtype=torch.float64)
    return x[part.index :: part.count], x[part.index :: part.count, :2].sin()


@pytest.mark.parametrize("accumulate", [2, 4])
def test_a_batch_in_parts_is_the_batch_as_one(tmp_path: Path, accumulate: int):
    parts: list[Part] = []

    def fitted(count: int) -> list[Tensor]:
        model = network().double()

        def loss(part: Part, _: torch.Generator) -> tuple[Tensor, Mapping[str, float | Tensor]]:
            parts.append(part)
            x, y = rows_of(part)
            return (model(x) - y).square().mean(), {}

        fit(model, loss, replace(CONFIG, accumulate=count), tmp_path / str(count))
        return [p.detach() for p in model.parameters()]

    whole = fitted(1)
    assert parts == [Part(step, 0, 1) for step in range(12)]
    del parts[:]
    torch.testing.assert_close(fitted(accumulate), whole, rtol=1e-9, atol=1e-12)
    assert parts == [Part(step, k, accumulate) for step in range(12) for k in range(accumulate)]
    rows = [[float(row["loss"]) for row in logged(tmp_path / str(n))] for n in (1, accumulate)]
    assert rows[0] == pytest.approx(rows[1], abs=2e-4)


def test_each_part_has_random_numbers_of_its_own(tmp_path: Path):
    drawn: list[float] = []
    model = network()

    def loss(part: Part, generator: torch.Generator) -> tuple[Tensor, Mapping[str, float | Tensor]]:
        drawn.append(torch.rand((), generator=generator).item())
        return regression(model)(part, generator)

    fit(model, loss, replace(CONFIG, accumulate=3), tmp_path)
    assert len(set(drawn)) == 36


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
    script = "import sys, pathlib, tests.training.test_loop as t; t.shared(pathlib.Path(sys.argv[1]), 2)"
    started = in_two_processes(script, str(tmp_path / "two"))
    shared(tmp_path / "one", 4)
    assert [process.wait(100) for process in started] == [0, 0]
    one, two = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("one", "two"))
    torch.testing.assert_close(two, one, rtol=1e-9, atol=1e-12)
    rows = [[{**row, "seconds": "0"} for row in logged(tmp_path / name)] for name in ("one", "two")]
    assert len(rows[0]) == 3 and rows[0][0]["place"] == "1.5"
    for ours, theirs in zip(*rows, strict=True):
        expected = {name: float(value) for name, value in theirs.items()}
        assert {name: float(value) for name, value in ours.items()} == pytest.approx(expected, abs=2e-4)


def test_no_parts_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="accumulate: expected at least 1, got 0"):
        run(replace(CONFIG, accumulate=0), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def foreground() -> Iterator[None]:
    """Ctrl-C raises, also where the tests run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("foreground")
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_after_the_step_with_a_checkpoint(tmp_path: Path, sign: signal.Signals):
    before = signal.getsignal(sign)
    run(CONFIG, tmp_path / "straight")
    stopped = tmp_path / "stopped"
    for step in (0, 4, 11):
        model = network(step)

        def loss(
            part: Part, generator: torch.Generator, step: int = step, model: nn.Module = model
        ) -> tuple[Tensor, Mapping[str, float | Tensor]]:
            if part.step == step:
                os.kill(os.getpid(), sign)
            return regression(model)(part, generator)

        with pytest.raises(KeyboardInterrupt):
            fit(model, loss, CONFIG, stopped)
        assert read_average(stopped)[1] == step + 1
        assert signal.getsignal(sign) is before
    run(CONFIG, stopped, seed=99)
    assert same(tmp_path / "straight", stopped)
    assert [int(row["step"]) for row in logged(stopped)] == list(range(12))


@pytest.mark.usefixtures("foreground")
def test_a_second_signal_acts_at_once(tmp_path: Path):
    def loss(*_: object) -> tuple[Tensor, Mapping[str, float | Tensor]]:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("went on")

    with pytest.raises(KeyboardInterrupt):
        fit(network(), loss, CONFIG, tmp_path)
    assert not (tmp_path / "checkpoint.safetensors").exists()


@pytest.mark.usefixtures("foreground")
def test_an_ignored_signal_stays_ignored(tmp_path: Path):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    model = network()

    def loss(part: Part, generator: torch.Generator) -> tuple[Tensor, Mapping[str, float | Tensor]]:
        os.kill(os.getpid(), signal.SIGINT)
        return regression(model)(part, generator)

    fit(model, loss, CONFIG, tmp_path)
    assert read_average(tmp_path)[1] == 12
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_the_watcher_sees_every_step_its_figures_and_its_average(tmp_path: Path):
    model = network()
    config = replace(CONFIG, log_every=4)
    calls: list[tuple[int, set[str], int]] = []
    average: dict[str, Tensor] = {}

    def watch(step: int, figures: Mapping[str, float], weights: Mapping[str, Tensor]) -> None:
        there = (tmp_path / "checkpoint.safetensors").exists()
        calls.append((step, set(figures), read_average(tmp_path)[1] if there else 0))
        average.update({name: weight.clone() for name, weight in weights.items()})

    fit(model, regression(model), replace(config, checkpoint_minutes=0), tmp_path, watch=watch)
    names = {"loss", "number", "gradient"}
    # Before the checkpoint of the step: a run that is killed here repeats the step and this call.
    assert calls == [(step + 1, names if step % 4 == 0 else set(), step) for step in range(12)]
    stored = read_average(tmp_path)[0]
    assert average.keys() == stored.keys() and all(torch.equal(average[n], stored[n]) for n in stored)


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


def test_one_process_trains_in_several_precisions(tmp_path: Path):
    seen: list[torch.dtype] = []
    for precision in ("no", "bf16", "no"):
        model = network()

        def loss(
            part: Part, generator: torch.Generator, model: nn.Module = model
        ) -> tuple[Tensor, Mapping[str, float | Tensor]]:
            seen.append(model(torch.zeros(1, 4)).dtype)
            return regression(model)(part, generator)

        fit(model, loss, replace(CONFIG, precision=precision), tmp_path / str(len(seen)), until=0)
    assert seen == [torch.float32, torch.bfloat16, torch.float32]


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


@pytest.mark.parametrize(("precision", "dtype"), [("no", torch.float32), ("bf16", torch.bfloat16)])
def test_muon_computes_in_the_precision_of_the_run(
    precision: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    seen: list[torch.dtype] = []
    monkeypatch.setattr(Muon, "step", lambda self: seen.append(self.dtype))
    run(replace(CONFIG, optimizer="muon", precision=precision), tmp_path, until=0)
    assert seen == [dtype]


def test_the_callers_accelerator_keeps_its_precision(tmp_path: Path):
    """A run used to reset the state that all accelerators of a process share."""
    theirs = Accelerator(mixed_precision="no", cpu=True)
    run(replace(CONFIG, precision="bf16"), tmp_path, until=0)
    assert theirs.mixed_precision == Accelerator(cpu=True).mixed_precision == "no"
    AcceleratorState._reset_state()


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
    assert [process.wait(100) for process in started] == [0, 0]
