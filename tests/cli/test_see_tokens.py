"""`dit-heads see --method soft-tokens`: depth, instances and boxes of a picture from one look."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dit_heads.embedded
from dit_heads.cli import main
from dit_heads.cli.see import SeeSettings, tokens_of
from dit_heads.errors import InputError
from tests.pipelines.tokens_made import parts, saved


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (30, 40, 3), dtype=np.uint8)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.mark.slow
def test_depth_and_boxes_are_written(photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = str(saved(parts(), tmp_path / "tokens"))
    common = ["--method", "soft-tokens", "--tokens", folder, "--device", "cpu"]
    main(["see", "depth", str(photo), *common, "--flips", "--out", str(tmp_path / "d.png")])
    with Image.open(tmp_path / "d-mm.png") as depth:
        assert depth.size == (40, 30)
    assert "m\n" in capsys.readouterr().out
    main(["see", str(photo), "where are the cubes?", *common, "--hard", "--out", str(tmp_path / "out")])
    found = json.loads((tmp_path / "out" / "photo-detect.json").read_text())
    assert {entry["name"] for entry in found["categories"]} == {"cube"}
    assert main(["see", str(photo), "is it day or night?", *common, "--out", str(tmp_path / "no.png")]) == 2
    assert "soft tokens answer depth, instances, detect" in capsys.readouterr().err


def test_weights_are_named_or_ship(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dit_heads.embedded, "WEIGHTS", tmp_path)
    with pytest.raises(InputError, match="since none ship for the model 'mine'"):
        tokens_of(SeeSettings(model="mine"))
    (tmp_path / "soft_tokens" / "sd3").mkdir(parents=True)
    with pytest.raises(InputError, match="since none ship for the model 'embedded'"):
        tokens_of(SeeSettings())
    (tmp_path / "soft_tokens" / "sd3" / "solver.safetensors").touch()
    assert tokens_of(SeeSettings()) == tmp_path / "soft_tokens" / "sd3"
    with pytest.raises(InputError, match="tokens: expected a folder of weights of soft tokens, got"):
        tokens_of(SeeSettings(tokens=str(tmp_path / "none")))
