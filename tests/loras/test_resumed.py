"""Runs that go on: with their own settings and precision, and after an error."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dit_heads.loras import train as trainer
from dit_heads.loras.tasks.loss import FlowLoss
from dit_heads.loras.train import train
from dit_heads.training import loop
from dit_heads.training.checkpoints import read_average
from dit_heads.training.loop import Part
from tests.loras.runs import same, settings, weights


def test_a_run_goes_on_with_its_own_settings_alone(
    models: dict[str, Path], sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "run"
    train(settings(models["sd3"], sets, out, optimization={"steps": 2}))
    first = weights(out)
    with pytest.raises(ValueError, match=f"resume: '{re.escape(str(out))}' holds a run; choose another"):
        train(settings(models["sd3"], sets, out, resume="never"))
    for change, message in (
        ({"adapter": {"rank": 3}}, "rank: expected 2, as the run in '.*' has it, got 3"),
        ({"optimization": {"batch_size": 2}}, "batch_size: expected 4, .*, got 2"),
        ({"loss": {"caption_dropout": 0.5}}, "caption_dropout: expected 0.05, .*, got 0.5"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(trainer, "load_base", lambda *_: pytest.fail("loaded"))
            with pytest.raises(ValueError, match=message):
                train(settings(models["sd3"], sets, out, **change))
    assert read_average(out)[1] == 2
    changed = {"data": {"cache": str(tmp_path / "cache")}, "watch": {"sample_steps": 3}}
    train(settings(models["sd3"], sets, out, **changed))
    train(settings(models["sd3"], sets, tmp_path / "straight"))
    assert read_average(out)[1] == 6 and same(out, tmp_path / "straight")
    assert not all(torch.equal(first[name], tensor) for name, tensor in weights(out).items())


def test_a_run_keeps_the_precision_that_its_weights_were_loaded_for(
    models: dict[str, Path], sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    loaded: list[str] = []
    load = trainer.load_base
    monkeypatch.setattr(trainer, "load_base", lambda *args: loaded.append(args[2]) or load(*args))
    for faster, steps in ((False, 1), (True, 2)):
        monkeypatch.setattr("dit_heads.training.precision.bf16_is_faster", lambda faster=faster: faster)
        chosen = {"optimization": {"steps": steps, "precision": "auto"}}
        config = settings(models["sd3"], sets, tmp_path / "run", **chosen)
        with pytest.warns(UserWarning, match="keeps 'no'") if faster else nullcontext():
            train(config)
    assert loaded == ["no", "no"] and '"precision": "no"' in (config.out / "config.json").read_text()


def test_a_loss_that_is_not_a_number_ends_the_run_and_harms_nothing(
    models: dict[str, Path], sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = settings(models["sd3"], sets, tmp_path / "run", watch={"checkpoint_minutes": 0})
    call = FlowLoss.__call__

    def broken(self: FlowLoss, part: Part, g: torch.Generator) -> tuple[Tensor, Mapping[str, Any]]:
        loss, figures = call(self, part, g)
        return (loss * float("nan") if part.step == 3 else loss), figures

    with monkeypatch.context() as patch:
        patch.setattr(FlowLoss, "__call__", broken)
        with pytest.raises(
            ValueError, match=r"loss: expected a finite gradient, got nan at step 3; .* is kept"
        ):
            train(config)
    average, step, _ = read_average(config.out)
    assert step == 3 and all(tensor.isfinite().all() for tensor in average.values())
    assert not (config.out / "lora.safetensors").exists()
    train(config)
    train(settings(models["sd3"], sets, tmp_path / "straight"))
    assert same(config.out, tmp_path / "straight")


class Scaler:
    def __init__(self, scale: float) -> None:
        self.get_scale = lambda: scale


def test_fp16_may_overflow_now_and_then_but_not_for_ever():
    loop._check_finite(1.0, 0, None)
    loop._check_finite(float("inf"), 0, Scaler(1024.0))
    for scaler in (None, Scaler(2.0**-20)):
        with pytest.raises(ValueError, match="got inf at step 7"):
            loop._check_finite(float("inf"), 7, scaler)
