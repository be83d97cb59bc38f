"""The commands that train the embedded models, on a world of four scenes: the same ones run on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from dit_heads.embedded import train
from dit_heads.embedded.evaluate import load
from dit_heads.embedded.export import packaged
from dit_heads.embedded.train import Recipe
from dit_heads.embedded.world.captions import GRIDS
from dit_heads.embedded.world.data import coverage, scene_of
from dit_heads.embedded.world.render import render


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    scenes = [scene_of("train", i) for i in range(4)]
    renders = [render(scene) for scene in scenes]
    covers = [coverage(scene, done.ids) for scene, done in zip(scenes, renders, strict=True)]
    shard = np.stack([done.image for done in renders]), np.stack(covers)
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIT_HEADS_CACHE", str(folder))
        patch.setattr(train, "load_shards", lambda *_: iter([shard]))
        patch.setattr(train, "COMPOSITES", (1,) * len(GRIDS))
        yield folder


@pytest.fixture(scope="module")
def unfinished(cache: Path) -> Path:
    """The folder of a run that stopped after its first step of a hundred."""
    recipe = Recipe(steps=100, shards=1, batch=4, warm=1, panels=0.5, probe=True, hours=0.0)
    train.sd3_model(recipe)
    return cache / "sd3-warm-1"


def test_latents_are_encoded_once_and_kept(cache: Path, unfinished: Path, monkeypatch: pytest.MonkeyPatch):
    kept = sorted(path.name for path in (cache / "latents-v2").iterdir())
    assert kept == sorted(["0.pt", *(f"{rows}x{columns}-1.pt" for rows, columns in GRIDS)])
    monkeypatch.setattr(train, "encode_latents", None)  # would raise
    monkeypatch.setattr(train, "make_composites", None)
    corpus = Recipe(shards=1, batch=4, panels=0.5).corpus(256)
    assert len(corpus.latents) == 4 and corpus.panels == 0.5
    sizes = [tuple(latents.shape[2:]) for latents, _ in corpus.composites]
    assert sizes == [(16 * rows, 16 * columns) for rows, columns in GRIDS]


def test_more_composites_can_be_made(unfinished: Path):
    corpus = Recipe(shards=1, batch=4, composites=2).corpus(256)
    assert [len(panels) for _, panels in corpus.composites] == [2] * len(GRIDS)


def test_the_averaged_weights_of_an_unfinished_run_can_be_painted_with(
    unfinished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    train.export(tmp_path)
    said = capsys.readouterr().out
    assert "sd3-warm-1: weights of step 1" in said
    assert "t5-v2: no run in" in said  # so the shipped T5
    pipe: Any = load(str(tmp_path / "sd3"))
    assert type(pipe) is StableDiffusion3Pipeline and pipe.vae.config.scaling_factor != 1
    found, shipped = packaged("sd3", tmp_path), packaged("sd3")
    changed = [name for name in shipped if not torch.equal(found[name], shipped[name])]
    assert found.keys() == shipped.keys() and len(changed) > len(shipped) / 2
    assert all(torch.allclose(found[name], shipped[name], atol=0.05) for name in shipped)  # it began there
    assert max(path.stat().st_size for path in tmp_path.rglob("*.safetensors")) < 16 * 2**20
