"""The evaluation: which scenes, whose seeds, and the table's figures."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dit_heads.embedded.evaluate import cell, header, paint, row, unseen_scenes
from dit_heads.embedded.nets.judge import Verdict
from dit_heads.embedded.world.captions import caption
from dit_heads.embedded.world.data import scene_of
from dit_heads.embedded.world.scenes import HELD_OUT
from dit_heads.tasks.metrics.scores import interval


class FakePipe:
    """Paints noise of each generator; keeps what it was asked."""

    def __init__(self) -> None:
        self.prompts: list[str] = []
        self.options: list[dict[str, Any]] = []

    def set_progress_bar_config(self, **_: Any) -> None: ...

    def __call__(self, prompts: list[str], *, generator: list[torch.Generator], **options: Any) -> Any:
        self.prompts += prompts
        self.options.append(options)
        return SimpleNamespace(images=torch.stack([torch.rand(3, 4, 4, generator=g) for g in generator]))


def test_unseen_scenes_are_as_asked_and_not_those_of_validation():
    three, held = unseen_scenes("test", 5, solids=3), unseen_scenes("test", 5, solids=1, held_out=True)
    assert [len(s.solids) for s in three + held] == [3] * 5 + [1] * 5
    assert all((s.solids[0].colour, s.solids[0].shape) in HELD_OUT for s in held)
    validated = {caption(scene_of("validation", i)) for i in range(200)}
    assert not validated & {caption(s) for s in unseen_scenes("validation", 5, solids=3)}


def test_a_picture_depends_on_its_own_seed_alone():
    scenes = unseen_scenes("test", 5)

    def painted(batch: int, first_seed: int = 7) -> tuple[Tensor, FakePipe]:
        pipe = FakePipe()
        return paint(pipe, scenes, first_seed=first_seed, batch=batch, guidance_scale=2.0), pipe

    (whole, pipe), (parts, _) = painted(5), painted(2)
    assert torch.equal(whole, parts) and pipe.prompts == [caption(s) for s in scenes]
    assert torch.equal(whole[3], painted(5, first_seed=8)[0][2])
    expected = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(7)) * 2 - 1
    assert torch.equal(whole[0], expected)
    assert pipe.options == [{"guidance_scale": 2.0, "output_type": "pt"}]


def test_guidance_is_on_while_painting_and_off_afterwards():
    events: list[str] = []

    @contextmanager
    def guidance():
        events.append("on")
        yield
        events.append("off")

    class Painting(FakePipe):
        def __call__(self, prompts: list[str], **call: Any) -> Any:
            events.append("paint")
            return super().__call__(prompts, **call)

    paint(Painting(), unseen_scenes("test", 3), batch=2, guidance=guidance())
    assert events == ["on", "paint", "paint", "off"]


def test_the_table():
    asked = torch.tensor([[True, False, False], [True, True, False]])
    right = {
        "sky": torch.tensor([True, False]),
        "shape": torch.tensor([[True, False, False], [True, False, False]]),
    }
    judged = Verdict(right, asked, torch.zeros(2))
    assert header(judged) == "| | sky | shape | mean | all right |\n|---|---|---|---|---|"
    # the first picture has both right, the second one shape of three attributes
    assert row("none", judged) == "| none | 50.0 | 66.7 | 66.7 [33.3, 100.0] | 50.0 [0.0, 100.0] |"


def test_an_interval_is_that_of_the_normal_approximation_where_that_holds():
    values = np.random.default_rng(0).normal(3, 2, 400)
    spread = 1.96 * values.std(ddof=1) / 20
    assert interval(values) == pytest.approx((values.mean() - spread, values.mean() + spread), abs=0.03)
    assert interval(values) == interval(values)  # its draws are fixed
    assert cell(np.full(3, 0.25)) == "0.25 [0.25, 0.25]" and cell(np.full(3, 50.0), 1) == "50.0 [50.0, 50.0]"
