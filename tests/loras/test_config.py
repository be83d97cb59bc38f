"""The settings of a training run: as YAML, as flags, and what is out of range."""

from __future__ import annotations

import json
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from dit_heads.cli import main
from dit_heads.loras import train
from dit_heads.loras.config import (
    AdapterConfig,
    DataConfig,
    LossConfig,
    OptimizerConfig,
    TrainConfig,
    WatchConfig,
    as_mapping,
    check,
    config_of,
    read_config,
)

READY = sorted((Path(__file__).parents[2] / "loras/configs").glob("*.yaml"))


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


# --- YAML ---


def test_a_file_says_what_differs_from_the_defaults(tmp_path: Path):
    text = """
        model: embedded/flux
        data: {root: my/sets, sizes: [[128, 96], [96, 128]], cache: null}
        adapter: {targets: [attention, mlp], alpha: 8}
        loss: {panel_weights: [0, 1], shift: 3}
        optimization: {learning_rate: 1e-4, precision: no}
        watch: {prompts: ["one: two"], track: [tensorboard]}
    """
    assert read_config(written(tmp_path / "c.yaml", text)) == TrainConfig(
        model="embedded/flux",
        data=DataConfig(root=Path("my/sets"), sizes=((128, 96), (96, 128))),
        adapter=AdapterConfig(targets=("attention", "mlp"), alpha=8.0),
        loss=LossConfig(panel_weights=(0.0, 1.0), shift=3.0),
        optimization=OptimizerConfig(learning_rate=0.0001, precision="no"),
        watch=WatchConfig(prompts=("one: two",), track=("tensorboard",)),
    )


def test_an_empty_file_is_all_defaults(tmp_path: Path):
    assert read_config(written(tmp_path / "c.yaml", "# nothing\n")) == TrainConfig()


NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")))
PATHS = st.lists(st.text("ab .:-", min_size=1), min_size=1).map(lambda parts: Path(*parts))
CONFIGS = st.builds(
    TrainConfig,
    model=TEXT,
    out=PATHS,
    seed=st.integers(0),
    trigger=TEXT,
    data=st.builds(
        DataConfig,
        root=PATHS,
        sizes=st.lists(st.tuples(st.integers(), st.integers())).map(tuple),
        flip=st.booleans(),
        cache=st.none() | PATHS,
        text_tokens=st.none() | st.integers(),
    ),
    adapter=st.builds(AdapterConfig, targets=st.lists(TEXT).map(tuple), blocks=st.none() | TEXT),
    loss=st.builds(LossConfig, panel_weights=st.lists(NUMBERS).map(tuple), shift=st.none() | NUMBERS),
    optimization=st.builds(
        OptimizerConfig, learning_rate=NUMBERS, precision=st.sampled_from(["auto", "no", "bf16", "fp16"])
    ),
    watch=st.builds(WatchConfig, prompts=st.lists(TEXT).map(tuple), hub_id=st.none() | TEXT),
)


@settings(max_examples=60)
@given(CONFIGS)
def test_settings_come_back_from_json_and_yaml(config: TrainConfig):
    plain = as_mapping(config)
    assert config_of(json.loads(json.dumps(plain))) == config
    assert config_of(yaml.safe_load(yaml.safe_dump(plain))) == config


@pytest.mark.parametrize("path", READY, ids=lambda path: path.stem)
def test_the_configs_that_ship_can_be_used(path: Path):
    check(read_config(path))


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"modle": "x"}, "config: 'modle' is no setting; did you mean 'model'"),
        ({"optimization": {"learning_rat": 1}}, "optimization: 'learning_rat' .* 'learning_rate'"),
        ({"data": {"zzz": 1}}, "data: 'zzz' is no setting; there are root, rows, "),
        ({"steps": 3}, "config: 'steps' is no setting"),  # it is one of optimization
        ({3: 1}, "config: '3' is no setting"),
        ([], r"config: expected a mapping of settings, got \[\]"),
        ({"data": None}, "data: expected a mapping of settings, got None"),
        ({"optimization": {"steps": True}}, "steps: expected a whole number, got True"),
        ({"optimization": {"steps": 1.5}}, "steps: expected a whole number, got 1.5"),
        ({"optimization": {"learning_rate": "fast"}}, "learning_rate: expected a number, got 'fast'"),
        ({"optimization": {"learning_rate": True}}, "learning_rate: expected a number, got True"),
        ({"optimization": {"precision": "fp8"}}, "precision: expected 'auto' or 'no' or .*, got 'fp8'"),
        ({"data": {"flip": "yes"}}, "flip: expected true or false, got 'yes'"),
        ({"data": {"root": 3}}, "root: expected a path, got 3"),
        ({"data": {"sizes": [[1, 2, 3]]}}, r"sizes: expected a list of whole numbers?, got \[1, 2, 3\]"),
        ({"data": {"sizes": 512}}, "sizes: expected a list of"),
        ({"trigger": 3}, "trigger: expected text, got 3"),
        ({"watch": {"prompts": "one"}}, "prompts: expected a list of text, got 'one'"),
        ({"watch": {"track": ["mlflow"]}}, "track: expected 'tensorboard' or 'wandb', got 'mlflow'"),
    ],
)
def test_what_does_not_fit_is_named(found: object, message: str):
    with pytest.raises(ValueError, match=message):
        config_of(found)


@pytest.mark.parametrize("data", [b"a: [", b"\xff\xfe", b"seed: 1\nseed: 2\n", None])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, data: bytes | None):
    path = tmp_path / "c.yaml"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(ValueError, match=r"config: cannot read '.*c\.yaml': "):
        read_config(path)


# --- ranges ---

WRONG: list[tuple[str, dict[str, Any]]] = [
    ("data", {"rows": 0}),
    ("data", {"text_tokens": 0}),
    ("adapter", {"rank": 0}),
    ("adapter", {"alpha": 0.0}),
    ("loss", {"caption_dropout": 1.5}),
    ("loss", {"caption_dropout": float("nan")}),
    ("loss", {"timestep_std": 0.0}),
    ("loss", {"timestep_mean": float("inf")}),
    ("loss", {"mode_scale": 2.0}),
    ("loss", {"shift": 0.0}),
    ("loss", {"panel_weights": (1.0,)}),
    ("loss", {"panel_weights": (0.0, 0.0)}),
    ("loss", {"panel_weights": (-1.0, 1.0)}),
    ("loss", {"prior_prompt": "a cat"}),
    ("loss", {"prior_weight": -1.0}),
    ("optimization", {"steps": 0}),
    ("optimization", {"accumulate": 0}),
    ("optimization", {"learning_rate": float("nan")}),
    ("optimization", {"clip": 0.0}),
    ("optimization", {"ema": -0.1}),
    ("optimization", {"weight_decay": -1.0}),
    ("watch", {"sample_every": -1}),
    ("watch", {"checkpoint_minutes": -1.0}),
]


@pytest.mark.parametrize(("section", "change"), WRONG, ids=str)
def test_what_is_out_of_range_is_named(section: str, change: dict[str, Any]):
    config = TrainConfig()
    check(config)
    with pytest.raises(ValueError, match=f"^{next(iter(change))}: expected "):
        check(replace(config, **{section: replace(getattr(config, section), **change)}))


def test_no_two_settings_share_a_name():
    """Flags leave out the sections."""
    parts = [DataConfig, AdapterConfig, LossConfig, OptimizerConfig, WatchConfig, TrainConfig]
    names = [f.name for part in parts for f in fields(part)]
    assert len(names) == len(set(names))
    assert all(len(fields(part)) <= 16 for part in parts)


# --- the command ---


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[TrainConfig]:
    """What the command would train, in an empty folder."""
    asked: list[TrainConfig] = []
    monkeypatch.setattr(train, "train", lambda config: asked.append(config) or Path("lora"))
    monkeypatch.chdir(tmp_path)
    return asked


def test_flags_win_over_the_file_and_the_file_over_defaults(trained: list[TrainConfig]):
    written(
        Path("c.yaml"), "seed: 3\ndata: {rows: 2, sizes: [[64, 64]]}\noptimization: {steps: 9, warmup: 1}\n"
    )
    flags = ["--steps", "4", "--sizes", "32", "48", "48", "32", "--panel-weights", "1", "0", "0", "0"]
    assert main(["train", "./c.yaml", *flags, "--flip", "--shift", "2"]) == 0
    assert trained == [
        TrainConfig(
            seed=3,
            data=DataConfig(rows=2, sizes=((32, 48), (48, 32)), flip=True),
            loss=LossConfig(panel_weights=(1.0, 0.0, 0.0, 0.0), shift=2.0),
            optimization=OptimizerConfig(steps=4, warmup=1),
        )
    ]


def test_flags_alone_will_do(trained: list[TrainConfig]):
    assert main(["train", "--out", "here"]) == 0
    assert trained == [TrainConfig(out=Path("here"))]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.yaml"], "config: cannot read 'absent.yaml'"),
        (["c.yaml"], "optimization: 'stepz' is no setting; did you mean 'steps'"),
        (["--steps", "many"], "--steps"),
        (["--timesteps", "late"], "--timesteps"),
        (["--seed", "4", "good.yaml"], "good.yaml: expected right after `train`"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    trained: list[TrainConfig], arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    written(Path("c.yaml"), "optimization: {stepz: 3}\n")
    written(Path("good.yaml"), "seed: 3\n")
    assert main(["train", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("dit-heads: error: ") and message in line
    assert not trained


def test_settings_out_of_range_end_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "load_base", lambda *_: pytest.fail("loaded"))
    assert main(["train", "--rank", "0"]) == 2
    assert "rank: expected at least 1, got 0" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_pyyaml_is_asked_for_in_one_line(
    trained: list[TrainConfig], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    written(Path("c.yaml"), "seed: 3\n")
    monkeypatch.setitem(sys.modules, "yaml", None)
    assert main(["train", "c.yaml"]) == 2
    assert "pip install 'dit-heads[train]'" in capsys.readouterr().err
