"""Whole training runs, from YAML to the file that they leave."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors import safe_open

from dit_heads.cli import main
from dit_heads.errors import InputError
from dit_heads.loras import train as trainer
from dit_heads.loras.config import shared
from dit_heads.loras.train import train
from dit_heads.tasks.markers import markers
from dit_heads.training.checkpoints import read_average
from tests.loras.runs import TOKENS, as_yaml, logged, same, settings, weights
from tests.loras.sets.made import PHOTOS

# --- a whole run, and what it writes ---


@pytest.mark.parametrize("kind", ["sd3", "flux"])
def test_the_file_draws_in_stock_diffusers_what_the_averaged_weights_draw(
    kind: str, models: dict[str, Path], sets: Path, tmp_path: Path
):
    watch = {"prompts": ["a cat", "an owl"], "sample_steps": 3, "guidance_scale": 3.0, "sample_every": 4}
    config = settings(
        models[kind],
        sets,
        tmp_path / "run",
        adapter={"rank": 2, "alpha": 3.0},
        optimization={"learning_rate": 0.1},
        watch=watch,
    )
    assert train(config) == tmp_path / "run/lora.safetensors"
    names = {path.name for path in (config.out / "samples").iterdir()}
    assert names == {f"step-{step}-{n}.png" for step in ("000004", "000006") for n in range(2)}
    pipe: Any = DiffusionPipeline.from_pretrained(models[kind])
    pipe.set_progress_bar_config(disable=True)

    def draw(prompt: str) -> np.ndarray:
        call: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 3.0, "height": 64, "width": 128}
        call["generator"] = torch.Generator().manual_seed(0)
        return np.asarray(pipe(prompt, max_sequence_length=TOKENS, **call).images[0]).astype(int)

    plain = [draw(prompt) for prompt in watch["prompts"]]
    pipe.load_lora_weights(str(config.out), weight_name="lora.safetensors")
    for n, prompt in enumerate(watch["prompts"]):
        stored = np.asarray(Image.open(config.out / f"samples/step-000006-{n}.png")).astype(int)
        assert np.abs(stored - draw(prompt)).max() <= 1
        assert np.abs(stored - plain[n]).max() > 20


def test_a_run_leaves_its_files_and_learns(models: dict[str, Path], sets: Path, tmp_path: Path):
    config = settings(
        models["sd3"],
        sets,
        tmp_path / "run",
        optimization={"steps": 30},
        watch={"validation": str(sets), "sample_every": 10, "keep_every": 15, "track": ["tensorboard"]},
    )
    train(config)
    found = {path.name for path in config.out.iterdir()}
    assert found == {
        *("cache", "checkpoint.safetensors", "config.json", "data.json", "log.csv", "lora.safetensors"),
        *("lora-000015.safetensors", "README.md", "tensorboard", "validation.csv"),
    }
    rows = (config.out / "validation.csv").read_text().split()[1:]
    losses = [float(row.split(",")[1]) for row in rows]
    assert len(losses) == 3 and losses[2] < losses[1] < losses[0]
    with safe_open(config.out / "lora.safetensors", "pt") as file:
        assert yaml.safe_load(file.metadata()["dit_heads"]) == shared(config)
    average, step, _ = read_average(config.out)
    assert step == 30
    for name, tensor in weights(config.out).items():
        inside = name.replace(".weight", ".default.weight")
        assert torch.equal(tensor, average[inside])


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_prior_pictures_that_are_missing_are_drawn_once(
    precision: str, models: dict[str, Path], sets: Path, tmp_path: Path
):
    prior = tmp_path / "prior"

    def run(out: str, count: int) -> Path:
        loss = {"prior": str(prior), "prior_prompt": "an owl", "prior_count": count, "prior_weight": 0.5}
        config = settings(
            models["sd3"],
            sets,
            tmp_path / out,
            loss=loss,
            optimization={"steps": 1, "precision": precision},
            watch={"sample_steps": 2},
        )
        train(config)
        return config.out

    row = logged(run("first", 3))[0]
    assert float(row["loss"]) == pytest.approx(float(row["sets"]) + 0.5 * float(row["prior"]), abs=2e-4)
    drawn = {path.name: path.read_bytes() for path in prior.iterdir()}
    assert drawn.keys() == {f"prior-000{n}.{kind}" for n in range(3) for kind in ("png", "txt")}
    assert drawn["prior-0001.txt"] == b"an owl"
    assert len({drawn[f"prior-000{n}.png"] for n in range(3)}) == 3
    assert np.asarray(Image.open(prior / "prior-0000.png")).shape == (64, 64, 3)
    written = {path.name: path.stat().st_mtime_ns for path in prior.iterdir()}
    (prior / "prior-0001.png").unlink()
    run("second", 3)
    assert {path.name: path.read_bytes() for path in prior.iterdir()} == drawn
    again = {name for name in drawn if (prior / name).stat().st_mtime_ns != written[name]}
    assert again == {"prior-0001.png", "prior-0001.txt"}


def test_other_processes_do_not_wait_for_a_push(
    models: dict[str, Path], sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A hub that cannot be reached stops the main process after the others have ended."""
    order: list[str] = []
    monkeypatch.setattr(trainer, "wait_for_all", lambda _: order.append("together"))
    monkeypatch.setattr(trainer, "push", lambda *_: order.append("push"))
    train(settings(models["sd3"], sets, tmp_path / "run", optimization={"steps": 1}))
    assert order == ["together", "push"]


# --- what is refused ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"optimization": {"batch_size": 4, "accumulate": 3}},
            r"batch_size: expected a multiple of 3 \(1 processes x 3 parts\), got 4",
        ),
        ({"data": {"root": "nowhere"}}, "data: expected a folder, got 'nowhere'"),
        ({"watch": {"validation": "nowhere"}}, "data: expected a folder, got 'nowhere'"),
        ({"adapter": {"rank": 0}}, "rank: expected a whole number of at least 1, got 0"),
    ],
)
def test_mistakes_are_named_before_a_model_is_loaded(
    changes: dict[str, Any], message: str, sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(trainer, "load_base", lambda *_: pytest.fail("loaded"))
    with pytest.raises(ValueError, match=message):
        train(settings("embedded", sets, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapter": {"targets": ["attn.to_qq"]}}, "targets: expected some of attention, .*got attn.to_qq"),
        ({"adapter": {"blocks": "L7"}}, "blocks: "),
        (
            {"data": {"sizes": [[64, 64], [256, 160]]}},
            "sizes: expected composites of at most 256 pixels a side .* panels of 256 x 160, .* 256 x 320",
        ),
        ({"optimization": {"optimizer": "adamw8bit"}}, "optimizer: 8 bits need a CUDA GPU"),
        ({"task": "weaving"}, "task: expected one of in_context, .*got 'weaving'"),
    ],
)
def test_what_configs_and_the_machine_tell_is_told_before_weights_are_loaded(
    changes: dict[str, Any],
    message: str,
    models: dict[str, Path],
    sets: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(trainer, "load_base", lambda *_: pytest.fail("loaded"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=message):
        train(settings(models["sd3"], sets, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_the_weights_do_not_depend_on_when_pictures_and_captions_are_encoded(
    models: dict[str, Path], sets: Path, tmp_path: Path
):
    for encode in ("all", "lazy", "off"):
        chosen = {"data": {"encode": encode}, "optimization": {"steps": 2, "precision": "bf16"}}
        train(settings(models["sd3"], sets, tmp_path / encode, **chosen))
        assert same(tmp_path / "all", tmp_path / encode)
    kept = [len(list((tmp_path / encode / "cache").glob("*"))) for encode in ("all", "lazy")]
    assert kept[0] == 5 + 5 + 1 and 0 < kept[1] <= kept[0]  # pictures, captions, and none
    assert not (tmp_path / "off/cache").exists()


# --- the command ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"root": "nowhere"}}, "data: expected a folder, got 'nowhere'"),
        ({"model": "/nowhere/model"}, "model: expected embedded, embedded/sd3, embedded/flux, a folder, "),
        ({"adapter": {"blocks": "L7"}}, "blocks: "),
    ],
)
def test_the_command_names_a_mistake_in_one_line(
    changes: dict[str, Any],
    message: str,
    models: dict[str, Path],
    sets: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    config = settings(models["sd3"], sets, tmp_path / "run", **changes)
    assert main(["train", str(as_yaml(config, tmp_path / "run.yaml"))]) == 2
    out, err = capsys.readouterr()
    last = err.splitlines()[-1].split("\r")[-1]
    assert out == "" and "dit-heads: error: " in last and message in last
    assert not (config.out / "lora.safetensors").exists()


# --- real photographs ---


@pytest.mark.skipif(not (PHOTOS / "subjects").is_dir(), reason="no photographs beside the checkout")
def test_real_photographs_train_without_a_warning(tmp_path: Path):
    """Sets of four photographs of one thing; pytest makes an error of any warning."""
    for subject in sorted((PHOTOS / "subjects").iterdir()):
        (tmp_path / "sets" / subject.name).mkdir(parents=True)
        for p, photo in enumerate(sorted(subject.glob("*.jpg"))[:4]):
            shutil.copy(photo, tmp_path / f"sets/{subject.name}/{p}.jpg")
        panels = " ".join(f"{marker} a photo of it" for marker in markers(2, 2))
        (tmp_path / f"sets/{subject.name}/caption.txt").write_text(f"Four photos of a thing. {panels}")
    config = settings(
        "embedded",
        tmp_path / "sets",
        tmp_path / "run",
        data={"rows": 2, "columns": 2, "sizes": [[64, 64], [80, 48]], "text_tokens": 64},
        loss={"panel_weights": [1, 1, 1, 2]},
        optimization={"steps": 20, "batch_size": 2, "precision": "auto"},
        watch={"validation": str(tmp_path / "sets"), "sample_every": 20},
    )
    train(config)
    assert read_average(config.out)[1] == 20
    kept = list((config.out / "cache").iterdir())
    assert len(kept) == 8 + 2  # pictures; one caption, and none
    loss = float((config.out / "validation.csv").read_text().split(",")[-1])
    assert 0 < loss < 2 and all(tensor.isfinite().all() for tensor in weights(config.out).values())
