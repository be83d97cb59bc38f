"""What would stop a run later, told before any weight is read."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dit_heads.cli import main
from dit_heads.errors import InputError
from dit_heads.loras import train as trainer
from dit_heads.loras.config import DataConfig, TrainConfig, config_of
from dit_heads.loras.plan import check_plan, check_task
from dit_heads.loras.sets.checks import panel_orders, warn_of_captions, warn_of_prompts
from dit_heads.loras.sets.dataset import SetDataset
from dit_heads.loras.tasks import task_of
from tests.loras.test_run_folder import pictures
from tests.saved import tiny_flux_pipeline, tiny_pipeline, tiny_vae


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders with the configs of tiny pipelines, and none of their weights."""
    root = tmp_path_factory.mktemp("models")
    for kind, pipe in (("sd3", tiny_pipeline()), ("flux", tiny_flux_pipeline())):
        whole: Any = type(pipe)(**{**pipe.components, "vae": tiny_vae(8, 8, 8, 8)})  # shrinks eight times
        whole.save_pretrained(root / kind)
        for weights in (root / kind).rglob("*.safetensors"):
            weights.unlink()
    return {kind: root / kind for kind in ("sd3", "flux")}


def config(model: Path | str, **changes: Any) -> TrainConfig:
    data = {"sizes": [[64, 64]], **changes.pop("data", {})}
    return config_of({"model": str(model), "data": data, **changes})


PROBLEMS: list[tuple[str, dict[str, Any], str]] = [
    ("sd3", {"adapter": {"targets": ["attention", "to_z"]}}, "targets: expected some of .* got to_z$"),
    ("sd3", {"adapter": {"targets": []}}, "targets: expected some of .* got none$"),
    ("sd3", {"adapter": {"blocks": "L9"}}, "blocks: "),
    ("flux", {"adapter": {"targets": ["modulatoin"]}}, "targets: expected some of .* got modulatoin$"),
    ("sd3", {"optimization": {"optimizer": "adamw8bit"}}, "optimizer: 8 bits need a CUDA GPU"),
    ("sd3", {"optimization": {"base": "8bit"}}, "base: "),
    ("sd3", {"optimization": {"base": "bfloat16"}}, "base: expected float32 for precision 'no'"),
]


@pytest.mark.parametrize(("kind", "changes", "message"), PROBLEMS, ids=str)
def test_what_would_stop_a_run_later_is_told_from_configs(
    kind: str, changes: dict[str, Any], message: str, models: dict[str, Path]
):
    check_plan(config(models[kind]), "no")
    with pytest.raises(InputError, match=f"^{message}") as error:
        check_plan(config(models[kind], **changes), "no")
    assert len(str(error.value).splitlines()) == 1


def test_every_size_must_fit_the_position_table(models: dict[str, Path], tmp_path: Path):
    """Its 16 x 16 patches reach as far as a composite of 256 x 256."""
    data = {"root": str(pictures(tmp_path / "sets")), "sizes": [[64, 64], [288, 64], [64, 128], [64, 144]]}
    for kind in ("sd3", "flux"):
        asked = config(models[kind], data=data, watch={"prompts": ["a", " "]})
        transformer, task = check_plan(asked, "no"), task_of(asked)
        with pytest.raises(InputError) as error:
            check_task(asked, task, transformer)
        lines = str(error.value).splitlines()
        if kind == "sd3":
            start = "sizes: expected composites of at most 256 pixels a side for this model, got panels of "
            assert lines == [
                f"{start}288 x 64, whose composites are 288 x 128",
                f"{start}64 x 144, whose composites are 64 x 288",
            ]
        else:
            assert lines == ["prompts: expected words in each, got none in number 2"]


def test_all_problems_are_told_at_once(models: dict[str, Path]):
    wrong = config(
        models["sd3"], adapter={"targets": ["to_z"]}, optimization={"optimizer": "adamw8bit", "base": "8bit"}
    )
    with pytest.raises(InputError) as error:
        check_plan(wrong, "no")
    names = [line.split(":")[0] for line in str(error.value).splitlines()]
    assert names == ["optimizer", "base", "targets"]


def test_a_package_that_is_missing_is_named(models: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match=r"peft is missing.*pip install 'dit-heads\[train\]'"):
        check_plan(config(models["sd3"]), "no")


def test_a_pipeline_that_does_something_else_is_refused(models: dict[str, Path], tmp_path: Path):
    index = json.loads((models["flux"] / "model_index.json").read_text())
    fill = tmp_path / "fill"
    fill.mkdir()
    for part in ("transformer", "vae"):
        (fill / part).symlink_to(models["flux"] / part)
    (fill / "model_index.json").write_text(json.dumps(index | {"_class_name": "FluxFillPipeline"}))
    with pytest.raises(InputError, match=r"model: expected a FluxPipeline, '.*fill' is a FluxFillPipeline"):
        check_plan(config(fill), "no")


def test_the_command_tells_all_of_it_before_it_reads_a_weight(
    models: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr(trainer, "load_base", lambda *_: pytest.fail("loaded"))
    start = ["train", "--model", str(models["sd3"]), "--out", str(tmp_path / "run")]
    start += ["--root", str(pictures(tmp_path / "sets"))]
    for flags, name in ((["--targets", "to_z"], "targets"), (["--sizes", "64", "64", "64", "400"], "sizes")):
        assert main([*start, *flags]) == 2
        assert capsys.readouterr().err.startswith(f"dit-heads: error: {name}: ")
    assert not (tmp_path / "run").exists()


# --- what is only said ---


def test_prompts_that_the_pipeline_would_refuse_are_named(caplog: pytest.LogCaptureFixture):
    good = ["One. [LEFT] a [RIGHT] b", "One. [IMAGE1] a [IMAGE2] b"]
    bad = [
        "a cat",
        "One. [LEFT] a [MIDDLE] b [RIGHT] c",
        "One. [TOP] a [BOTTOM] b",
        "One. [left] a [right] b",
    ]
    warn_of_prompts(good + bad, DataConfig())
    assert len(caplog.messages) == len(bad)
    assert all(f"'{prompt}'" in message for prompt, message in zip(bad, caplog.messages, strict=True))
    caplog.clear()
    warn_of_prompts(["a cat"], DataConfig(columns=1))
    assert not caplog.messages


def test_captions_that_the_pipeline_would_refuse_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    root = pictures(tmp_path / "sets")
    (root / "one/caption.txt").write_text("A set. [LEFT] by day [RIGHT] at night")

    def data() -> SetDataset:
        return SetDataset(root, rows=1, columns=2, buckets=[(64, 64)])

    warn_of_captions(data(), DataConfig())
    assert "captions have no markers such as [LEFT] [RIGHT]; " in caplog.text
    assert caplog.text.strip().endswith(": three, two")
    for caption in ("[TOP] a [BOTTOM] b", "[RIGHT] a [LEFT] b", "[left] a [right] b", "[LEFT] a [IMAGE2] b"):
        (root / "one/caption.txt").write_text(caption)
        with pytest.raises(InputError, match=r"one: the caption has .*expected "):
            data()


def test_the_order_of_panels_is_shown(tmp_path: Path, models: dict[str, Path], capsys: Any):
    root = pictures(tmp_path / "sets")
    night = root / "night set"
    night.mkdir()
    for name in ("night.png", "day.png"):
        shutil.copy(root / "one/0.png", night / name)
    (night / "caption.txt").write_text("A hill. [LEFT] by day [RIGHT] by night")
    asked = config(models["sd3"], data={"root": str(root)})
    check_task(asked, task_of(asked), check_plan(asked, "no"))
    assert capsys.readouterr().err.splitlines() == [
        "panels of 4 sets, in this order:",
        "  [LEFT] 0.png, [RIGHT] 1.png in one, three, two",
        "  [LEFT] day.png, [RIGHT] night.png in night set",
    ]


def test_single_pictures_and_ready_composites_have_no_order_to_show(tmp_path: Path):
    root = tmp_path / "ready"
    root.mkdir()
    shutil.copy(pictures(tmp_path / "sets") / "one/0.png", root / "a.png")
    (root / "a.txt").write_text("a cat")
    assert panel_orders(SetDataset(root, rows=1, columns=1, buckets=[(64, 64)])) == ""
    Image.new("RGB", (128, 64)).save(root / "a.png")
    assert panel_orders(SetDataset(root, rows=1, columns=2, buckets=[(64, 64)])) == ""


def test_a_dora_is_told_that_comfyui_ignores_it(models: dict[str, Path], caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.WARNING)
    check_plan(config(models["sd3"]), "no")
    assert not caplog.messages
    check_plan(config(models["sd3"], adapter={"dora": True}), "no")
    assert "ComfyUI ignores its magnitudes" in caplog.text
