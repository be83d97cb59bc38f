"""The truth of image tokens, against the geometry of the scene, and the atlas of heads."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dit_heads.embedded.soft_tokens import atlas
from dit_heads.embedded.soft_tokens.truth import load_world
from dit_heads.embedded.world.data import scene_of
from dit_heads.embedded.world.render import FORWARD, UP
from dit_heads.errors import InputError
from dit_heads.heads import HeadId
from dit_heads.tasks.soft_tokens.probes import Probed


@pytest.fixture(autouse=True)
def in_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIT_HEADS_CACHE", str(tmp_path_factory.getbasetemp() / "atlas-cache"))


@pytest.mark.slow
def test_tokens_show_what_the_scene_has():
    truth = load_world("validation", 6, torch.device("cpu"), workers=1)
    found = atlas.targets_of(truth)
    assert set(found) == set(atlas.TARGETS)
    depth, normals = found["depth"], found["normals"]
    bottom = depth.values[:, -8:, 0].exp()  # the ground in front of the camera
    assert depth.counted[:, -8:].all() and ((bottom > 2) & (bottom < 6)).all()
    ground = torch.tensor([0.0, float(UP[1]), float(FORWARD[1])])  # straight up, in the camera's axes
    seen = normals.values[:, -8:][normals.counted[:, -8:]]
    assert ((seen - ground).norm(dim=-1) < 0.02).float().mean() > 0.6
    on = found["class"].counted
    assert torch.equal(on, found["instance"].counted) and 0.01 < on.float().mean() < 0.5
    assert (found["class"].values[on].sum(-1) == 1).all()
    for scene in range(6):
        shapes = {atlas.SHAPES.index(solid.shape) for solid in scene_of("validation", scene).solids}
        assert set(found["class"].values[scene][on[scene]].argmax(-1).tolist()) <= shapes
    assert found["instance"].values[on].abs().max() < 0.5


@pytest.mark.slow
def test_the_atlas_is_written_with_maps_and_marks_heads_that_guide(
    tmp_path: Path, capsys: pytest.CaptureFixture
):
    atlas.main(count=14, permutations=2, guiding="L0H5, L4H1", out=tmp_path)
    found = json.loads((tmp_path / "atlas.json").read_text())
    assert set(found["targets"]) == set(atlas.TARGETS)
    assert len(found["targets"]["depth"]["scores"]) == 96 and len(found["best"].split(", ")) == 10
    assert all((tmp_path / f"{name}.png").stat().st_size > 1000 for name in atlas.TARGETS)
    assert "heads that guide have the mean rank" in capsys.readouterr().out


def test_ranks_of_heads_and_their_chance():
    heads = tuple(HeadId(block, head) for block in range(5) for head in range(4))
    scores = torch.arange(20.0)
    made = atlas.Atlas(heads, {"depth": Probed(scores, scores.expand(2, -1), scores)})
    assert made.best(0.1) == list(heads[-2:])
    top, chance = made.rank("depth", heads[-2:])
    assert top == pytest.approx(18.5 / 19) and chance == pytest.approx(1 / 190, abs=3e-3)
    assert made.rank("depth", heads[:2])[1] == pytest.approx(1)
    with pytest.raises(InputError, match="guiding: expected heads of the model, got L9H9"):
        atlas._guides("L9H9", made)
    assert np.isclose(made.found["depth"].agreement, 1)
