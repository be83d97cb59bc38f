"""The card of a LoRA, and what is sent to the hub."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import yaml

from dit_heads.loras.config import (
    AdapterConfig,
    DataConfig,
    LossConfig,
    OptimizerConfig,
    TrainConfig,
    WatchConfig,
    as_mapping,
    config_of,
    shared,
)
from dit_heads.loras.publish import check_hub, is_card, push, write_card
from tests.saved import tiny_flux_pipeline, tiny_pipeline

HUB = "black-forest-labs/FLUX.1-dev"


def card(config: TrainConfig, pipe: Any) -> tuple[dict[str, Any], str, str]:
    """Front matter, text, and the code in it, which is known to compile."""
    config.out.mkdir(parents=True, exist_ok=True)
    path = write_card(config, pipe)
    assert path == config.out / "README.md"
    _, front, text = path.read_text().split("---\n", 2)
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    compile(code, "README.md", "exec")
    return yaml.safe_load(front), text, code


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        model=HUB,
        out=tmp_path / "sky",
        data=DataConfig(root=Path("my/skies"), columns=3),
        optimization=OptimizerConfig(steps=40),
    )


def test_a_card_says_what_it_is_of_and_how_it_was_made(config: TrainConfig):
    for name in ("step-000020-0", "step-000040-0", "step-000040-1"):
        (config.out / "samples").mkdir(parents=True, exist_ok=True)
        (config.out / f"samples/{name}.png").touch()
    front, text, code = card(replace(config, trigger="SKY"), tiny_flux_pipeline())
    assert front == {
        "base_model": HUB,
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": ["lora", "in-context-lora", "flux", "template:sd-lora"],
    }
    words = " ".join(text.split())
    assert text.startswith("\n# sky\n")
    assert f"A LoRA of rank 16 for `{HUB}`: 1 x 3 panels, trained for 40 steps on `skies`" in words
    assert "Begin captions with `SKY`." in text
    assert re.findall(r"!\[.*?\]\((.*?)\)", text) == [f"samples/step-000040-{k}.png" for k in (0, 1)]
    assert f'FluxPipeline.from_pretrained("{HUB}")' in code
    (settings,) = re.findall(r"```json\n(.*?)```", text, re.S)
    named = replace(config, trigger="SKY", out=Path("sky"), data=replace(config.data, root=Path("skies")))
    assert config_of(json.loads(settings)) == named


def test_without_panels_trigger_and_samples(config: TrainConfig):
    _, text, _ = card(replace(config, data=DataConfig(columns=1)), tiny_pipeline())
    assert "single pictures" in text and "Begin captions" not in text and "![" not in text


@pytest.mark.parametrize("model", ["embedded", "embedded/flux", "a folder: #1", "{folder}/model"])
def test_only_a_model_of_the_hub_is_named_as_its_base(
    config: TrainConfig, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The hub refuses a card with another one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/model").mkdir(parents=True)
    name, model = model.format(folder="").strip("/"), model.format(folder="runs")
    front, text, _ = card(replace(config, model=model), tiny_pipeline())
    assert "base_model" not in front and f"`{name}`" in text


def test_nothing_that_others_read_has_a_path_of_this_machine(config: TrainConfig, tmp_path: Path):
    home = tmp_path / "home/jane"
    (home / "models/mine").mkdir(parents=True)
    config = replace(
        config,
        model=str(home / "models/mine"),
        out=home / "runs/sky",
        data=replace(config.data, root=home / "pictures/skies", cache=home / "cache"),
        loss=LossConfig(prior=home / "prior", prior_prompt="a sky"),
        watch=WatchConfig(validation=home / "held-out"),
    )
    _, text, code = card(config, tiny_flux_pipeline())
    for words in (text, code, json.dumps(shared(config))):
        assert "jane" not in words and str(tmp_path) not in words
    assert shared(config)["data"] == as_mapping(config)["data"] | {"root": "skies", "cache": "cache"}
    assert shared(config)["watch"]["validation"] == "held-out" and shared(config)["model"] == "mine"


def test_a_card_of_a_dora_says_where_it_is_not_one(config: TrainConfig):
    _, text, _ = card(config, tiny_flux_pipeline())
    assert "DoRA" not in text
    _, text, _ = card(replace(config, adapter=AdapterConfig(dora=True)), tiny_flux_pipeline())
    assert "ComfyUI ignores its magnitudes" in text


def test_a_readme_of_somebody_else_stays(config: TrainConfig, caplog: pytest.LogCaptureFixture):
    card(config, tiny_flux_pipeline())
    card(replace(config, trigger="SKY"), tiny_flux_pipeline())  # it is its own
    path = config.out / "README.md"
    assert "SKY" in path.read_text() and is_card(path.read_text()) and not caplog.messages
    for text in ("# my notes\n", path.read_text() + "more\n", path.read_text().replace("SKY", "sky")):
        path.write_text(text)
        assert not is_card(text)
        assert write_card(config, tiny_flux_pipeline()) == config.out / "README-lora.md"
        assert path.read_text() == text
    assert "README.md' is not this run's" in caplog.text


def loaded(code: str, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """What the code of a card calls, without a model."""
    calls = []

    class Pipe:
        def load_lora_weights(self, *arguments: Any, **options: Any) -> None:
            calls.append(("lora", arguments, options))

    def make(*arguments: Any) -> Pipe:
        calls.append(("model", arguments, {}))
        return Pipe()

    monkeypatch.setattr("diffusers.FluxPipeline.from_pretrained", make)
    monkeypatch.setattr("dit_heads.load_embedded", make, raising=False)
    exec(code, {})
    return calls


def test_the_code_loads_the_model_and_the_file(config: TrainConfig, monkeypatch: pytest.MonkeyPatch):
    _, _, code = card(config, tiny_flux_pipeline())
    file = {"weight_name": "lora.safetensors"}
    assert loaded(code, monkeypatch) == [("model", (HUB,), {}), ("lora", (".",), file)]
    _, _, code = card(replace(config, watch=WatchConfig(hub_id="me/sky")), tiny_flux_pipeline())
    assert loaded(code, monkeypatch) == [("model", (HUB,), {}), ("lora", ("me/sky",), file)]
    _, _, code = card(replace(config, model="embedded/flux"), tiny_flux_pipeline())
    assert loaded(code, monkeypatch) == [("model", ("flux",), {}), ("lora", (".",), file)]


# --- the hub ---


class Api:
    """Stands for the hub."""

    calls: list[tuple[str, Any]]
    user: str | None = "me"

    def whoami(self) -> dict[str, str]:
        if self.user is None:
            raise OSError("Token is required")
        return {"name": self.user}

    def create_repo(self, name: str, **options: Any) -> None:
        self.calls.append(("create", (name, options)))

    def upload_folder(self, **options: Any) -> None:
        self.calls.append(("upload", options))


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> type[Api]:
    monkeypatch.setattr(Api, "calls", [], raising=False)
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    return Api


def test_a_push_sends_lora_card_and_samples_and_nothing_else(api: type[Api], tmp_path: Path):
    push("me/sky", tmp_path)
    (create, made), (upload, sent) = api.calls
    assert (create, upload) == ("create", "upload") and made == ("me/sky", {"exist_ok": True})
    assert sent["repo_id"] == "me/sky" and sent["folder_path"] == str(tmp_path)
    there = ["lora.safetensors", "README.md", "samples/step-000040-0.png"]
    others = ["checkpoint.safetensors", "config.json", "cache/a.safetensors", "lora-000020.safetensors"]
    patterns = sent["allow_patterns"]
    filtered = huggingface_hub.utils.filter_repo_objects([*there, *others], allow_patterns=patterns)
    assert list(filtered) == there


def test_nothing_is_pushed_unless_asked(api: type[Api], tmp_path: Path):
    push(None, tmp_path)
    assert api.calls == []
    check_hub(None)


def test_a_push_that_could_not_be_done_is_told_before_training(api: type[Api], monkeypatch: Any):
    check_hub("me/sky")
    for name in ("sky", "a/b/c", "/sky", "me/"):
        with pytest.raises(ValueError, match=f"hub_id: expected owner/name, got '{name}'"):
            check_hub(name)
    monkeypatch.setattr(api, "user", None)
    with pytest.raises(ValueError, match=r"hub_id: log in first .*: Token is required"):
        check_hub("me/sky")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="hub_id: the hub is switched off by HF_HUB_OFFLINE=1"):
        check_hub("me/sky")
