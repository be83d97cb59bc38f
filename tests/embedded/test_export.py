"""What is exported loads with the stock classes and is what was trained, up to fp16."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline, StableDiffusion3Pipeline

from dit_heads import embedded
from dit_heads.embedded.export import (
    export_flux_weights,
    export_weights,
    load_clip,
    load_judge,
    packaged,
)
from dit_heads.embedded.nets.clip import Clip
from dit_heads.embedded.nets.flux import FluxStudent
from dit_heads.embedded.nets.judge import Judge
from dit_heads.embedded.nets.sd3 import Student, make_t5
from dit_heads.embedded.nets.vae import make_vae
from dit_heads.embedded.world.text import make_clip_tokenizer, make_t5_tokenizer


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights")
    t5 = make_t5(len(make_t5_tokenizer()))
    parts = Student(), Clip(len(make_clip_tokenizer())), t5, make_vae(), Judge()
    modules = dict(zip(("student", "clip", "t5", "vae", "judge"), parts, strict=True))
    states = {n: {k: v.clone() for k, v in m.state_dict().items()} for n, m in modules.items()}
    export_weights(*parts, folder)
    return folder, states


def part(states: dict[str, Any], prefix: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): v for k, v in states.items() if k.startswith(prefix)}


def close(module: torch.nn.Module, trained: dict[str, torch.Tensor], tolerance: float = 1e-3) -> bool:
    found = module.state_dict()
    return all(torch.allclose(found[k].float(), v, rtol=tolerance, atol=1e-6) for k, v in trained.items())


def test_the_pipeline_is_stock_in_fp32_and_holds_the_trained_parts(
    exported: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
):
    folder, states = exported
    monkeypatch.setattr(embedded, "WEIGHTS", folder)
    pipe = embedded.load_embedded("sd3")
    assert type(pipe) is StableDiffusion3Pipeline
    modules = [m for m in pipe.components.values() if isinstance(m, torch.nn.Module)]
    assert len(modules) == 5 and {p.dtype for m in modules for p in m.parameters()} == {torch.float32}
    assert close(pipe.transformer, part(states["student"], "transformer."))
    assert close(pipe.vae, states["vae"])
    assert close(pipe.text_encoder, part(states["clip"], "text."), 0)
    assert close(pipe.text_encoder_2, part(states["clip"], "text_2."), 0)
    assert close(pipe.text_encoder_3, states["t5"], 0)
    prompt = "a large red cube on snow at night"
    assert pipe.tokenizer(prompt).input_ids == make_clip_tokenizer()(prompt).input_ids
    assert pipe.tokenizer_3(prompt).input_ids == make_t5_tokenizer()(prompt).input_ids


def test_every_file_of_weights_is_small_and_of_the_last_export(exported: tuple[Path, dict[str, Any]]):
    folder, _ = exported
    sizes = [path.stat().st_size for path in folder.rglob("*.safetensors")]
    assert len(list((folder / "sd3/transformer").glob("*.safetensors"))) > 1 and max(sizes) < 16 * 2**20
    for _ in range(2):
        export_flux_weights(FluxStudent(), folder)
    names = {path.name for path in (folder / "flux").rglob("*.safetensors")}
    assert all("-of-0000" in name for name in names) and len(names) == 2


def test_flux_is_a_stock_pipeline_that_shares_sd3s_autoencoder_and_texts(
    exported: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
):
    folder, states = exported
    student = FluxStudent()
    trained = {k: v.clone() for k, v in student.transformer.state_dict().items()}
    export_flux_weights(student, folder)
    monkeypatch.setattr(embedded, "WEIGHTS", folder)
    pipe = embedded.load_embedded("flux")
    assert type(pipe) is FluxPipeline and close(pipe.transformer, trained)
    modules = [m for m in pipe.components.values() if isinstance(m, torch.nn.Module)]
    assert len(modules) == 4 and {p.dtype for m in modules for p in m.parameters()} == {torch.float32}
    assert close(pipe.vae, states["vae"])
    assert close(pipe.text_encoder_2, states["t5"], 0)
    assert packaged("flux", folder).keys() == {f"transformer.{name}" for name in trained}
    index: Any = FluxPipeline.load_config(folder / "flux")
    assert index["_class_name"] == "FluxPipeline"


def test_judge_and_clip_come_back_in_fp32(exported: tuple[Path, dict[str, Any]]):
    folder, states = exported
    judge, (text, image) = load_judge(folder), load_clip(folder)
    assert close(judge, states["judge"])
    assert close(text, part(states["clip"], "text."), 0) and close(image, part(states["clip"], "image."))
    for model in (judge, text, image):
        assert not model.training and {p.dtype for p in model.parameters()} == {torch.float32}


def test_an_unknown_model_is_refused():
    with pytest.raises(ValueError, match="name: expected 'sd3' or 'flux', got 'sdxl'"):
        embedded.load_embedded("sdxl")


def test_training_can_begin_with_what_ships(exported: tuple[Path, dict[str, Any]]):
    folder, states = exported
    fresh = {
        "sd3": Student(),
        "clip": Clip(len(make_clip_tokenizer())),
        "vae": make_vae(),
        "judge": Judge(),
    }
    ships = {part: packaged(part, folder) for part in fresh}
    assert packaged("t5", folder).keys() >= {f"t5.{n}" for n, _ in make_t5(8).named_parameters()}
    absent = {f"{p}: {n}" for p, m in fresh.items() for n, _ in m.named_parameters() if n not in ships[p]}
    # The probe is thrown away after training; CLIP's temperature is not a file of weights.
    assert absent == {"clip: scale", *(f"sd3: probe.{i}.{n}" for i in (0, 1) for n in ("weight", "bias"))}
    for part, ours in ships.items():
        theirs = states["student" if part == "sd3" else part]
        assert all(torch.allclose(ours[n], theirs[n], rtol=1e-3, atol=1e-6) for n in ours if n in theirs)
