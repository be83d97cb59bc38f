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
from dit_heads.errors import InputError
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


POSITIVE = st.floats(0, exclude_min=True, allow_infinity=False)
SIDES = st.integers(1, 512).map(lambda count: 16 * count)
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")))
PATHS = st.lists(st.text("ab .:-", min_size=1), min_size=1).map(lambda parts: Path(*parts))
CONFIGS = st.builds(
    TrainConfig,
    model=TEXT,
    out=PATHS,
    seed=st.integers(0, 2**40),
    trigger=TEXT,
    data=st.builds(
        DataConfig,
        root=PATHS,
        sizes=st.lists(st.tuples(SIDES, SIDES), min_size=1).map(tuple),
        flip=st.booleans(),
        cache=st.none() | PATHS,
        text_tokens=st.none() | st.integers(1, 512),
    ),
    adapter=st.builds(AdapterConfig, targets=st.lists(TEXT).map(tuple), blocks=st.none() | TEXT),
    loss=st.builds(LossConfig, panel_weights=st.lists(POSITIVE).map(tuple), shift=st.none() | POSITIVE),
    optimization=st.builds(
        OptimizerConfig, learning_rate=POSITIVE, precision=st.sampled_from(["auto", "no", "bf16", "fp16"])
    ),
    watch=st.builds(WatchConfig, prompts=st.lists(TEXT).map(tuple), hub_id=st.none() | TEXT),
)


@settings(max_examples=30)
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
        ({"modle": "x"}, "config: unknown setting 'modle'; did you mean 'model'?"),
        ({"optimization": {"learning_rat": 1}}, "optimization: .* 'learning_rat'; .* 'learning_rate'?"),
        ({"data": {"zzz": 1}}, "data: unknown setting 'zzz'; there are root, rows, "),
        ({"steps": 3}, "config: unknown setting 'steps'; it belongs to the section 'optimization'"),
        ({3: 1}, "config: unknown setting '3'"),
        ([], r"config: expected a mapping of settings, got \[\]"),
        ({"data": None}, "data: expected a mapping of settings, got None"),
        ({"optimization": {"steps": True}}, "steps: expected a whole number of at least 1, got True"),
        ({"optimization": {"steps": 1.5}}, "steps: expected a whole number of at least 1, got 1.5"),
        ({"optimization": {"learning_rate": "fast"}}, "learning_rate: expected a number above 0, got 'fast'"),
        ({"optimization": {"learning_rate": True}}, "learning_rate: expected a number above 0, got True"),
        ({"optimization": {"precision": "fp8"}}, "precision: expected 'auto' or 'no' or .*, got 'fp8'"),
        ({"data": {"flip": "yes"}}, "flip: expected true or false, got 'yes'"),
        ({"data": {"root": 3}}, "root: expected a path, got 3"),
        ({"data": {"root": ""}}, "root: expected a path, got ''"),
        ({"out": ""}, "out: expected a path, got ''"),
        (
            {"data": {"sizes": [[1, 2, 3]]}},
            r"sizes: expected a list of one or more pairs of whole .*, got \[\[1, 2, 3\]\]",
        ),
        (
            {"data": {"sizes": 512}},
            "sizes: expected a list of one or more pairs of whole numbers .*, got 512",
        ),
        (
            {"data": {"sizes": [64, 64]}},
            r"sizes: expected a list of one or more pairs of whole numbers .*, got \[64, 64\]",
        ),
        ({"trigger": 3}, "trigger: expected text, got 3"),
        ({"watch": {"prompts": "one"}}, "prompts: expected a list of text, got 'one'"),
        (
            {"watch": {"track": ["mlflow"]}},
            r"track: expected a list of 'tensorboard' or 'wandb', got \['mlflow'\]",
        ),
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

NAN, INF = float("nan"), float("inf")
WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("data", {"rows": 0}, "a whole number of at least 1"),
    (
        "data",
        {"sizes": ((20, 16),)},
        "a list of one or more pairs of whole numbers from 16 to 8192 and divisible by 16",
    ),
    ("data", {"sizes": ()}, "a list of one or more pairs of .*"),
    ("data", {"text_tokens": 0}, "a whole number from 1 to 512"),
    ("data", {"text_tokens": 100000}, "a whole number from 1 to 512"),
    ("adapter", {"rank": 0}, "a whole number of at least 1"),
    ("adapter", {"alpha": 0.0}, "a number above 0"),
    ("loss", {"caption_dropout": 1.5}, "a number from 0 to 1"),
    ("loss", {"caption_dropout": NAN}, "a number from 0 to 1"),
    ("loss", {"timestep_std": 0.0}, "a number above 0"),
    ("loss", {"timestep_mean": INF}, "a finite number"),
    ("loss", {"mode_scale": 2.0}, "a number from -1 to 1.75"),
    ("loss", {"shift": 0.0}, "a number above 0"),
    ("loss", {"panel_weights": (-1.0, 1.0)}, "a list of numbers of at least 0"),
    ("loss", {"prior_weight": -1.0}, "a number of at least 0"),
    ("loss", {"prior_weight": INF}, "a finite number of at least 0"),
    ("optimization", {"steps": 0}, "a whole number of at least 1"),
    ("optimization", {"accumulate": 0}, "a whole number of at least 1"),
    ("optimization", {"learning_rate": NAN}, "a finite number above 0"),
    ("optimization", {"clip": 0.0}, "a number above 0"),
    ("optimization", {"ema": -0.1}, "a number from 0 to 1"),
    ("optimization", {"weight_decay": -1.0}, "a number of at least 0"),
    ("optimization", {"weight_decay": INF}, "a finite number of at least 0"),
    ("watch", {"sample_every": -1}, "a whole number of at least 0"),
    ("watch", {"guidance_scale": NAN}, "a finite number of at least 0"),
    ("watch", {"checkpoint_minutes": -1.0}, "a number of at least 0"),
]


@pytest.mark.parametrize(("section", "change", "wanted"), WRONG, ids=str)
def test_what_is_out_of_range_is_named_with_the_range(section: str, change: dict[str, Any], wanted: str):
    ((name, value),) = change.items()
    with pytest.raises(InputError, match=f"^{name}: expected {wanted}, got ") as error:
        replace(getattr(TrainConfig(), section), **change)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=f"^{name}: expected {wanted}, got "):
        config_of({section: {name: value}})


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ({"panel_weights": (1.0,)}, "panel_weights: expected 2, one a panel, got 1"),
        (
            {"panel_weights": (0.0, 0.0)},
            r"panel_weights: expected numbers not all of which are 0, got \[0.0, 0.0",
        ),
        ({"prior_prompt": "a cat"}, "prior: expected a folder for the pictures of prior_prompt, got none"),
    ],
)
def test_settings_that_do_not_go_together_are_named(loss: dict[str, Any], message: str):
    check(TrainConfig())
    with pytest.raises(InputError, match=message):
        check(TrainConfig(loss=LossConfig(**loss)))


def test_every_problem_of_a_config_has_a_line_of_its_own():
    with pytest.raises(InputError) as error:
        config_of({"seed": -1, "data": {"rows": 0, "colums": 3}, "adapter": {"rank": 0}})
    assert [line.split(":")[0] for line in str(error.value).splitlines()] == ["seed", "rows", "data", "rank"]
    with pytest.raises(InputError) as error:
        check(TrainConfig(loss=LossConfig(panel_weights=(0.0,), prior_prompt="a cat")))
    assert len(str(error.value).splitlines()) == 3


def test_a_path_in_the_home_folder_is_spelled_out():
    assert config_of({"out": "~/runs"}).out == Path.home() / "runs"


def test_no_two_settings_share_a_name():
    """Flags leave out the sections."""
    parts = [DataConfig, AdapterConfig, LossConfig, OptimizerConfig, WatchConfig, TrainConfig]
    names = [f.name for part in parts for f in fields(part)]
    assert len(names) == len(set(names))
    assert all(len(fields(part)) <= 15 for part in parts)


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
        (["c.yaml"], "optimization: unknown setting 'stepz'; did you mean 'steps'?"),
        (["--steps", "many"], "--steps"),
        (["--steps", "0"], "steps: expected a whole number of at least 1, got 0"),
        (["--out", ""], "--out"),
        (["--timesteps", "late"], "--timesteps"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    trained: list[TrainConfig], arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    written(Path("c.yaml"), "optimization: {stepz: 3}\n")
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
    assert "rank: expected a whole number of at least 1, got 0" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_pyyaml_is_asked_for_in_one_line(
    trained: list[TrainConfig], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    written(Path("c.yaml"), "seed: 3\n")
    monkeypatch.setitem(sys.modules, "yaml", None)
    assert main(["train", "c.yaml"]) == 2
    assert "pip install 'dit-heads[train]'" in capsys.readouterr().err
