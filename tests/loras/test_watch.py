"""What a run shows and keeps: when, of which weights, once each; trackers."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from dit_heads.io.pictures import read_image, read_settings
from dit_heads.loras.adapter import add_adapter
from dit_heads.loras.base import Encoders, drop_text_encoders, latent_encoder, text_encoder
from dit_heads.loras.config import AdapterConfig, LossConfig, OptimizerConfig, TrainConfig, WatchConfig
from dit_heads.loras.sets.dataset import SetDataset
from dit_heads.loras.tasks.in_context import InContext
from dit_heads.loras.tasks.loss import FlowLoss
from dit_heads.loras.watch import Watcher, averaged, check_tracking
from dit_heads.loras.weights.files import lora_of
from dit_heads.loras.weights.formats import read_lora
from dit_heads.training.loop import FitConfig, fit
from tests.saved import tiny_flux_pipeline, tiny_pipeline

PROMPT = "a b"


def make(out: Path, *, flux: bool = False, precision: str = "no", steps: int = 7, **watch: Any) -> Watcher:
    """A watcher of a small pipeline with a LoRA, its text encoders dropped, and of two sets of two panels."""
    pipe: Any = tiny_flux_pipeline() if flux else tiny_pipeline()
    pipe.set_progress_bar_config(disable=True)
    for part in (pipe.transformer, pipe.vae):
        part.requires_grad_(False)
    for k in range(2):
        (out / f"sets/{k}").mkdir(parents=True, exist_ok=True)
        for p in range(2):
            Image.new("RGB", (64, 64), (99 * k, 99 * p, 50)).save(out / f"sets/{k}/{p}.png")
        (out / f"sets/{k}/caption.txt").write_text("ab"[k])
    data = SetDataset(out / "sets", rows=1, columns=2, buckets=[(32, 32)])
    texts, latents = text_encoder(pipe, out / "cache", 8), latent_encoder(pipe, out / "cache")
    for caption in ("", PROMPT, "a", "b"):
        texts(caption)
    drop_text_encoders(pipe)
    add_adapter(pipe.transformer, AdapterConfig(rank=2), 0)
    options = {"prompts": (PROMPT,), "sample_every": 2, "sample_steps": 1} | watch
    config = TrainConfig(
        out=out / "run", optimization=OptimizerConfig(steps=steps), watch=WatchConfig(**options)
    )
    config.out.mkdir(exist_ok=True)
    task = InContext(config, data, data, encoders=Encoders(pipe, latents, texts, 8, None))
    loss = FlowLoss(
        pipe.transformer, task, LossConfig(), batch_size=2, seed=0, scheduler=pipe.scheduler.config
    )
    return Watcher(torch.nn.ModuleDict({"transformer": pipe.transformer}), pipe, loss, config, precision)


def trained(watcher: Watcher) -> dict[str, Tensor]:
    return {n: p.detach() for n, p in watcher.model.named_parameters() if p.requires_grad}


def average_of(watcher: Watcher, seed: int = 1) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {n: 0.3 * torch.randn(p.shape, generator=g) for n, p in trained(watcher).items()}


def files(watcher: Watcher) -> set[str]:
    out = watcher.config.out
    return {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}


def validated(watcher: Watcher) -> list[str]:
    head, *rows = (watcher.config.out / "validation.csv").read_text().splitlines()
    assert head == "step,loss"
    return rows


# --- when ---


def test_drawings_losses_and_files_come_at_their_steps(tmp_path: Path):
    watcher = make(tmp_path, prompts=(PROMPT, "a"), keep_every=3, steps=9)
    for step in range(1, 10):
        watcher(step, {}, average_of(watcher))
    drawn = {f"samples/step-{step:06}-{k}.png" for step in (2, 4, 6, 8, 9) for k in (0, 1)}
    # The last step's file is the run's own.
    assert files(watcher) == drawn | {"lora-000003.safetensors", "lora-000006.safetensors", "validation.csv"}
    assert [row.split(",")[0] for row in validated(watcher)] == ["2", "4", "6", "8", "9"]
    assert read_settings(watcher.config.out / "samples/step-000002-1.png")["prompt"] == "a"
    assert read_image(watcher.config.out / "samples/step-000002-1.png").size == (64, 32)


def test_small_validation_losses_keep_their_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    watcher = make(tmp_path, prompts=())
    monkeypatch.setattr(watcher.loss, "validation", lambda: 3.25e-7)
    watcher(2, {}, average_of(watcher))
    assert validated(watcher) == ["2,3.25e-07"]


def test_nothing_is_shown_unless_asked(tmp_path: Path):
    watcher = make(tmp_path, sample_every=0)
    for step in range(1, 8):
        watcher(step, {"loss": 1.0}, average_of(watcher))
    assert files(watcher) == set()


# --- of which weights ---


@pytest.mark.parametrize("flux", [False, True])
def test_the_averaged_weights_are_drawn_and_kept_and_the_others_come_back(tmp_path: Path, flux: bool):
    watcher = make(tmp_path, flux=flux, keep_every=2, guidance_scale=2.0, sample_steps=2)
    model, average = watcher.pipe.transformer, average_of(watcher)
    model.train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    watcher(2, {}, average)
    assert model.training
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    # By hand: a stock pipeline with its text encoders, and the averaged weights.
    pipe: Any = tiny_flux_pipeline() if flux else tiny_pipeline()
    pipe.set_progress_bar_config(disable=True)
    add_adapter(pipe.transformer, AdapterConfig(rank=2), 5)
    watched = {name.removeprefix("transformer."): tensor for name, tensor in average.items()}
    pipe.transformer.load_state_dict(watched, strict=False)
    options = {"height": 32, "width": 64, "num_inference_steps": 2, "guidance_scale": 2.0}
    generator = torch.Generator().manual_seed(0)
    shown = pipe(PROMPT, max_sequence_length=8, generator=generator, **options).images[0]
    drawn = read_image(watcher.config.out / "samples/step-000002-0.png")
    assert list(shown.get_flattened_data()) == list(drawn.get_flattened_data())
    kept = read_lora(watcher.config.out / "lora-000002.safetensors", pipe.transformer)
    expected = lora_of(pipe.transformer)
    assert all(torch.equal(expected.tensors()[n], t) for n, t in kept.tensors().items())
    loss = replace_model(watcher.loss, pipe.transformer).validation()
    assert validated(watcher) == [f"2,{loss:.6g}"]


def replace_model(loss: FlowLoss, model: Any) -> FlowLoss:
    return FlowLoss(model.eval(), loss.task, loss.config, batch_size=2, seed=0, scheduler=loss.scheduler)


def test_weights_come_back_after_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    watcher = make(tmp_path)
    before = {name: p.clone() for name, p in trained(watcher).items()}
    watcher.pipe.transformer.train()
    monkeypatch.setattr(Watcher, "_draw", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        watcher(2, {}, average_of(watcher))
    assert watcher.pipe.transformer.training
    assert all(torch.equal(p, before[name]) for name, p in trained(watcher).items())


def test_averaged_changes_named_weights_alone_and_keeps_none_of_them():
    model = torch.nn.Linear(3, 2)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    average = {"weight": torch.full((2, 3), torch.pi)}
    with averaged(model, average):
        assert torch.equal(model.weight, average["weight"]) and torch.equal(model.bias, before["bias"])
    assert torch.equal(model.weight, before["weight"])
    with pytest.raises(RuntimeError), averaged(model, {**average, "bias": torch.zeros(5)}):
        pass
    assert torch.equal(model.weight, before["weight"]) and torch.equal(model.bias, before["bias"])


def test_half_precision_is_that_of_training(tmp_path: Path):
    plain, half = make(tmp_path / "a"), make(tmp_path / "b", precision="bf16")
    half.pipe.transformer.to(torch.bfloat16)
    for watcher in (plain, half):
        watcher(2, {}, {n: t.to(p.dtype) for (n, t), p in paired(watcher)})
    found = [float(validated(watcher)[0].split(",")[1]) for watcher in (plain, half)]
    assert found[0] != found[1] and found[0] == pytest.approx(found[1], rel=0.05)


def paired(watcher: Watcher) -> Any:
    return zip(average_of(watcher).items(), trained(watcher).values(), strict=True)


# --- once each ---


def test_a_run_that_is_stopped_and_resumed_has_each_line_once(tmp_path: Path):
    config = FitConfig(6, 0.01, warmup=1, precision="no", log_every=1)
    lines = []
    for name, stops in (("straight", []), ("stopped", [0, 0, 0])):
        for until in [*stops, None]:
            watcher = make(tmp_path / name, steps=6, prompts=())
            out = watcher.config.out
            fit(watcher.model, watcher.loss, config, out, watch=watcher, until=until)
        lines.append((tmp_path / name / "run/validation.csv").read_text().splitlines())
    assert lines[0] == lines[1] and [row.split(",")[0] for row in lines[0]] == ["step", "2", "4", "6"]


def test_lines_of_steps_that_are_repeated_are_replaced(tmp_path: Path):
    first = make(tmp_path, prompts=())
    for step in (2, 4, 6):
        first(step, {}, average_of(first))
    resumed = make(tmp_path, prompts=())
    resumed(4, {}, average_of(resumed, seed=2))
    rows = validated(resumed)
    assert [row.split(",")[0] for row in rows] == ["2", "4"]
    assert rows[0].split(",")[1] != rows[1].split(",")[1]


# --- trackers ---


def test_tensorboard_gets_figures_by_step(tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    watcher = make(tmp_path, prompts=(), track=("tensorboard",))
    watcher(1, {"loss": 0.5, "gradient": 2.0}, average_of(watcher))
    watcher(2, {"loss": 0.25}, average_of(watcher))
    events = EventAccumulator(str(watcher.config.out / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 0.5), (2, 0.25)]
    assert [(e.step, e.value) for e in events.Scalars("gradient")] == [(1, 2.0)]
    (validation,) = events.Scalars("validation")
    assert validation.step == 2 and f"2,{validation.value:.6g}" == validated(watcher)[0]
    (hparams,) = (watcher.config.out / "tensorboard").rglob("hparams.yml")
    assert "learning_rate: 0.0001" in hparams.read_text()


def test_wandb_gets_settings_and_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls: list[tuple[str, Any]] = []
    run = SimpleNamespace(log=lambda values, step: calls.append(("log", (values, step))))
    fake = SimpleNamespace(
        init=lambda **options: calls.append(("init", options)) or run,
        config=SimpleNamespace(update=lambda values, **_: calls.append(("config", values))),
    )
    monkeypatch.setitem(sys.modules, "wandb", fake)
    watcher = make(tmp_path, track=("wandb",))
    watcher(1, {"loss": 0.5}, average_of(watcher))
    assert [name for name, _ in calls] == ["init", "config", "log"]
    assert calls[0][1] == {"project": "run"} and calls[2][1] == ({"loss": 0.5}, 1)
    json.dumps(calls[1][1])  # plain values, without sections
    assert calls[1][1]["rank"] == 16 and not any(isinstance(v, dict) for v in calls[1][1].values())


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_tracker_that_is_missing_is_named(name: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(f"accelerate.utils.is_{name}_available", lambda: False)
    with pytest.raises(ValueError, match=f"track: {name} is missing: pip install {name}"):
        check_tracking(WatchConfig(track=(name,)))
    monkeypatch.setattr(f"accelerate.utils.is_{name}_available", lambda: True)
    check_tracking(replace(WatchConfig(), track=(name,)))
