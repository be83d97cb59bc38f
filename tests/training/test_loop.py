"""The training loop: weights and average against a loop by hand, parts, signals, a watcher."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dit_heads.training.checkpoints import read_average
from dit_heads.training.generators import keyed_generator
from dit_heads.training.loop import FitConfig, Part, fit, rate_at
from dit_heads.training.optimizers import Muon
from tests.training.regression import CONFIG, logged, network, regression, rows_of, run, same


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


def test_no_parts_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="accumulate: expected a whole number of at least 1, got 0"):
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


@pytest.mark.parametrize(("precision", "dtype"), [("no", torch.float32), ("bf16", torch.bfloat16)])
def test_muon_computes_in_the_precision_of_the_run(
    precision: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    seen: list[torch.dtype] = []
    monkeypatch.setattr(Muon, "step", lambda self: seen.append(self.dtype))
    run(replace(CONFIG, optimizer="muon", precision=precision), tmp_path, until=0)
    assert seen == [dtype]
