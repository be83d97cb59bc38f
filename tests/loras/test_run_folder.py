"""The folder of a run: who may write there, what a run goes on with, and what its files say."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dit_heads.errors import InputError
from dit_heads.io.atomic import write_tensors
from dit_heads.loras.config import TrainConfig, config_of, shared
from dit_heads.loras.publish import write_card
from dit_heads.loras.run_folder import (
    check_data,
    check_folder,
    check_places,
    contents,
    fixed_settings,
    held,
    update_settings,
)
from dit_heads.loras.sets.dataset import SetDataset
from dit_heads.loras.train import fit_config
from dit_heads.training.checkpoints import check_resumable
from tests.saved import tiny_pipeline


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    watch = {"prompts": ["a cat"], "sample_steps": 3}
    return config_of(
        {
            "out": str(tmp_path / "run"),
            "adapter": {"rank": 2},
            "optimization": {"steps": 6},
            "watch": watch,
            "data": {"root": str(tmp_path / "sets")},
        }
    )


def finished(config: TrainConfig, step: int = 6) -> TrainConfig:
    """Write what a run of `step` steps leaves in its folder."""
    out = config.out
    out.mkdir(parents=True)
    found = asdict(fit_config(config, "no")) | fixed_settings(config)
    (out / "config.json").write_text(json.dumps(found))
    write_tensors(out / "checkpoint.safetensors", {"a": torch.ones(9)}, {"step": str(step), "seconds": "1"})
    (out / "log.csv").write_text("step,seconds,loss\n1,0.1,0.5\n")
    if step == config.optimization.steps:
        write_tensors(
            out / "lora.safetensors", {"a": torch.ones(9)}, {"dit_heads": json.dumps(shared(config))}
        )
        write_card(config, tiny_pipeline())
    return config


def changed(config: TrainConfig, section: str, **change: Any) -> TrainConfig:
    return replace(config, **{section: replace(getattr(config, section), **change)})


def refused(config: TrainConfig) -> list[str]:
    """The lines of the refusal; nothing in the folder has changed."""
    before = {path: path.read_bytes() for path in config.out.rglob("*") if path.is_file()}
    with pytest.raises(InputError) as error:
        check_folder(config)
    assert before == {path: path.read_bytes() for path in config.out.rglob("*") if path.is_file()}
    return str(error.value).splitlines()


# --- one run at a time ---


def test_a_second_run_is_refused_while_the_first_one_lives(config: TrainConfig):
    with (
        held(config.out),
        pytest.raises(InputError, match="another process is training in"),
        held(config.out),
    ):
        pytest.fail("held twice")
    assert not config.out.exists()
    with held(config.out):
        (config.out / "log.csv").touch()
    assert [path.name for path in config.out.iterdir()] == ["log.csv"]


def test_the_lock_of_a_process_that_was_killed_is_free(config: TrainConfig):
    config.out.mkdir()
    hold = "import filelock, sys, time; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); "
    wait = "print(1, flush=True); time.sleep(99)"
    command = [sys.executable, "-c", hold + wait, str(config.out / ".lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "1\n"
        with pytest.raises(InputError, match="another process is training in"), held(config.out):
            pytest.fail("held twice")
        other.kill()
        other.wait()
        with held(config.out):
            pass


# --- whose files ---


def test_a_new_folder_and_an_empty_one_are_free(config: TrainConfig):
    check_folder(config)
    (config.out / "cache").mkdir(parents=True)
    check_folder(config)


@pytest.mark.parametrize(
    "name",
    ["README.md", "log.csv", "lora.safetensors", "lora-000005.safetensors", "samples/step-000001-0.png"],
)
def test_files_that_no_run_wrote_are_not_replaced(config: TrainConfig, name: str):
    (config.out / name).parent.mkdir(parents=True)
    (config.out / name).write_text("mine")
    (line,) = refused(config)
    assert line.startswith(f"out: '{config.out}' holds {name}, which the run would replace; choose another")


def test_notes_in_the_card_are_not_replaced(config: TrainConfig):
    finished(config)
    check_folder(config)
    card = config.out / "README.md"
    card.write_text(card.read_text() + "\nbest at scale 0.8\n")
    (line,) = refused(config)
    assert "README.md' is damaged, or no run wrote it (it is not a card" in line


DAMAGE: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "an empty config": ("config.json", lambda data: b""),
    "a list": ("config.json", lambda data: b"[1]"),
    "another program's": ("config.json", lambda data: b'{"name": "x"}'),
    "a cut checkpoint": ("checkpoint.safetensors", lambda data: data[:-4]),
    "an empty checkpoint": ("checkpoint.safetensors", lambda data: b""),
    "another program's LoRA": ("lora.safetensors", lambda data: data.replace(b"dit_heads", b"dit-heads")),
    "semicolons": ("log.csv", lambda data: data.replace(b",", b";")),
    "words for steps": ("log.csv", lambda data: data.replace(b"\n1,", b"\none,")),
    "latin-1": ("log.csv", lambda data: data + b"\xe9"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_named_in_one_line(config: TrainConfig, damage: str):
    finished(config)
    name, change = DAMAGE[damage]
    path = config.out / name
    path.write_bytes(change(path.read_bytes()))
    (line,) = refused(config)
    assert line.startswith(f"out: '{path}' is damaged, or no run wrote it (") and "move it away" in line


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ({"out": "sets/run"}, "out: expected a folder outside of root '.*sets', got '.*sets/run'"),
        ({"out": "sets"}, "out: expected a folder outside of root"),
        ({"out": "run", "data": {"cache": "sets/cache"}}, "cache: expected a folder outside of root"),
        ({"out": "run", "loss": {"prior": "sets/prior"}}, "prior: expected a folder outside of root"),
        ({"out": "held/run", "watch": {"validation": "held"}}, "out: .* outside of validation"),
        ({"out": "more/../sets/run"}, "out: expected a folder outside of root"),
    ],
)
def test_a_run_does_not_write_among_the_pictures_that_it_reads(
    places: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f"^{message}"):
        check_places(config_of({**places, "data": {"root": "sets", **places.get("data", {})}}))
    check_places(config_of({"out": "sets-run", "data": {"root": "sets"}, "loss": {"prior": "prior"}}))


# --- what a run goes on with ---


def test_each_setting_that_differs_has_a_line(config: TrainConfig):
    finished(config, 4)
    check_folder(config)
    other = changed(changed(config, "adapter", rank=3, alpha=2.0), "optimization", learning_rate=1.0)
    names = ["rank: expected 2", "alpha: expected None", "learning_rate: expected 0.0001"]
    assert [line.split(",")[0] for line in refused(other)] == names
    free = changed(changed(config, "optimization", steps=9), "data", root=Path("elsewhere"), cache=Path("c"))
    check_folder(free)


def test_a_setting_that_an_older_run_did_not_have_is_at_its_default(config: TrainConfig):
    finished(config, 4)
    path = config.out / "config.json"
    found = json.loads(path.read_text()) | {"root": "sets", "model": "embedded"}
    path.write_text(json.dumps({k: v for k, v in found.items() if k not in ("dora", "accumulate")}))
    check_folder(config)
    assert refused(changed(config, "adapter", dora=True))[0].startswith("dora: expected False")
    update_settings(config)
    check_resumable(config.out, fit_config(config, "no"), fixed_settings(config))


def test_a_model_is_the_same_however_its_path_is_spelled(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "models/mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    finished(replace(config, model="models/mine"), 4)
    for model in ("./models/mine", str(tmp_path / "models/mine"), "models/../models/mine/"):
        check_folder(replace(config, model=model))
    assert refused(replace(config, model="models/other"))[0].startswith("model: expected ")
    shutil.rmtree(config.out)
    finished(config, 4)
    check_folder(replace(config, model="embedded/sd3"))
    assert refused(replace(config, model="embedded/flux"))[0].startswith("model: expected ")


def test_two_sections_may_share_a_name_without_losing_a_setting(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
):
    fixed = fixed_settings(config)
    assert fixed["rank"] == 2 and fixed["sizes"] == [[512, 512]] and fixed["learning_rate"] == 1e-4
    sections = {"data": {"fit": "crop"}, "adapter": {"fit": 1}, "loss": {}, "optimization": {}}
    monkeypatch.setattr("dit_heads.loras.run_folder.as_mapping", lambda _: sections)
    assert {"data.fit": "crop", "adapter.fit": 1}.items() <= fixed_settings(config).items()


def test_a_run_does_not_go_back(config: TrainConfig):
    finished(config)
    (line,) = refused(changed(config, "optimization", steps=5))
    assert line.startswith("steps: expected at least 6, which the run in ") and line.endswith("got 5")
    (line,) = refused(replace(config, resume="never"))
    assert line.startswith("resume: ")


def test_samples_of_a_finished_run_stay_those_of_its_card(config: TrainConfig):
    finished(config)
    check_folder(config)
    other = changed(config, "watch", sample_steps=9, prompts=("a dog",))
    assert [line.split(",")[0] for line in refused(other)] == [
        "prompts: expected ['a cat']",
        "sample_steps: expected 3",
    ]
    check_folder(changed(other, "optimization", steps=7))
    check_folder(changed(config, "watch", hub_id="me/sky"))


# --- data ---


def pictures(root: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("one", "two", "three"):
        (root / name).mkdir(parents=True)
        (root / name / "caption.txt").write_text(f"set {name}")
        for panel in range(2):
            Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(root / name / f"{panel}.png")
    return root


def read(root: Path) -> dict[str, list[str]]:
    return contents(SetDataset(root, rows=1, columns=2, buckets=[(64, 64)]))


def test_a_run_knows_its_sets_by_content(config: TrainConfig, tmp_path: Path):
    root = pictures(tmp_path / "sets")
    finished(config, 4)
    check_data(config.out, {"root": read(root)})
    check_data(config.out, {"prior": {"a.png": ["1", "2"]}})
    root = root.rename(tmp_path / "elsewhere")
    check_data(config.out, {"root": read(root)})
    (root / "one/caption.txt").write_text("another")
    shutil.copy(root / "one/0.png", root / "two/0.png")
    shutil.copytree(root / "one", root / "four")
    shutil.rmtree(root / "three")
    before = (config.out / "data.json").read_text()
    with pytest.raises(InputError) as error:
        check_data(config.out, {"root": read(root)})
    first, second = str(error.value).splitlines()
    assert first.startswith("root: expected the sets that the run in ") and first.endswith(
        "got others: other pictures in two; another caption in one; new are four; missing are three"
    )
    assert second == "choose another folder for a run with these"
    assert (config.out / "data.json").read_text() == before


def test_before_its_first_checkpoint_a_run_may_get_other_sets(config: TrainConfig):
    check_data(config.out, {"root": {"one": ["1", "2"]}})
    check_folder(config)
    check_data(config.out, {"root": {"two": ["1", "2"]}})
    assert json.loads((config.out / "data.json").read_text()) == {"root": {"two": ["1", "2"]}}


def test_many_changes_are_counted(config: TrainConfig):
    finished(config, 4)
    check_data(config.out, {"root": {f"set{k}": ["1", "2"] for k in range(50)}})
    with pytest.raises(InputError, match="missing are set0, set1, set2, set3, set4 and 45 more"):
        check_data(config.out, {"root": {}})
