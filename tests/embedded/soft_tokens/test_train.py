"""The commands that train, from scenes of the world to figures, at the smallest size."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dit_heads.embedded import load_embedded
from dit_heads.embedded.soft_tokens import evaluate, train
from dit_heads.embedded.soft_tokens.runs import SolverRun, TokenizerRun, folder_of, run_of, trained_tokenizer
from dit_heads.embedded.soft_tokens.truth import columns_of, load_features, load_world, random_heads
from dit_heads.embedded.world.data import load_truth, scene_of
from dit_heads.embedded.world.render import render
from dit_heads.errors import InputError
from dit_heads.heads import HeadSet
from dit_heads.pipelines import with_soft_tokens
from dit_heads.tasks.soft_tokens.features import FeatureConfig

SCENES = 6
SMALL: dict[str, Any] = {"steps": 2, "batch": 4, "scenes": SCENES, "workers": 1, "precision": "no"}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def in_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIT_HEADS_CACHE", str(cache))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.slow
def test_scenes_have_the_truth_of_the_renderer_and_gaps_are_unknown():
    images, depth, ids = load_truth("train", SCENES, workers=1)
    seen = render(scene_of("train", 3))
    assert np.array_equal(images[3], seen.image) and np.array_equal(ids[3], seen.ids)
    assert np.array_equal(depth[3], seen.depth)
    whole, holed = (load_world("train", SCENES, torch.device("cpu"), missing=m) for m in (0.0, 0.3))
    assert torch.equal(whole.known == 2, torch.from_numpy(np.isinf(depth)))
    assert abs((holed.known == 0).float().mean() - 0.3) < 0.02 and not (whole.known == 0).any()
    assert torch.equal(whole.known[holed.known > 0], holed.known[holed.known > 0])
    solids = scene_of("train", 3).solids
    names = [int(whole.objects.classes[3, k]) for k in range(len(solids))]
    assert [("sphere", "cube", "cylinder", "cone", "pyramid")[k] for k in names] == [s.shape for s in solids]


@pytest.mark.slow
def test_features_of_chosen_heads_are_columns_of_those_of_all():
    images, _, _ = load_truth("train", SCENES, workers=1)
    device = torch.device("cpu")
    every = load_features("sd3", "train", images, FeatureConfig(), device)
    heads = random_heads("sd3", 0.1, 0)
    chosen = load_features("sd3", "train", images, FeatureConfig(heads), device)
    columns = columns_of("sd3", FeatureConfig(heads))
    assert columns is not None and torch.equal(chosen, every[..., columns])
    assert chosen.shape == (SCENES, 64, 16 * len(HeadSet.parse(heads).resolve((12,) * 8, (0,) * 8)))


@pytest.mark.slow
def test_from_scenes_to_figures_and_a_folder_of_weights(tmp_path: Path):
    small: dict[str, Any] = {"channels": (8, 8, 16, 16), "codes": 16, "dimension": 8}
    for kind in ("depth", "mask"):
        train.tokenizer(TokenizerRun(name=kind, kind=kind, **SMALL, **small))
        assert trained_tokenizer(kind, kind).config.kind == kind
    with pytest.raises(InputError, match="expected the run of a mask tokenizer, got 'depth' of depth"):
        trained_tokenizer("depth", "mask")
    size: dict[str, Any] = {"width": 24, "encoder_layers": 1, "decoder_layers": 1}
    train.solver(SolverRun(name="s", order="autoregressive", heads="random 0.1", **SMALL, **size))
    assert run_of("s", SolverRun).heads == "random 0.1"
    evaluate.main("s", count=4)
    figures = json.loads((folder_of("s") / "figures.json").read_text())
    assert set(figures["soft"]) == {"RMSE, m", "AbsRel", "delta1", "no distance", "AP", "AP50"}
    assert figures["tokenizers"]["AP50"] >= 0 and figures["seconds a picture"] > 0
    train.export("s", tmp_path / "tokens")
    see = with_soft_tokens(load_embedded("sd3"), tmp_path / "tokens")
    assert see.depth(np.zeros((20, 30, 3), np.uint8)).prediction.shape == (1, 20, 30, 1)


@pytest.mark.parametrize(
    ("heads", "message"), [("random x", "'random' and a share"), ("random 0", "above 0 and up to 1")]
)
def test_a_share_of_random_heads_is_read(heads: str, message: str):
    with pytest.raises(InputError, match=message):
        train._heads(SolverRun(name="s", heads=heads))


def test_a_run_that_is_not_there_is_named():
    with pytest.raises(InputError, match=r"run: expected one that has ended, .*nothing"):
        trained_tokenizer("nothing", "depth")
