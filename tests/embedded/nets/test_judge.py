"""Labels of hand-made scenes, and verdicts and losses of judges whose answers are made by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dit_heads.embedded.nets.judge import Judge, JudgeLoss, labels, verdict
from dit_heads.embedded.world.scenes import Scene, Solid
from dit_heads.training.loop import Part

ONE = Scene((Solid("cube", "red", "striped", "large"),), "sand", "night", "poster")
TWO = Scene((Solid("sphere", "black", x=-0.5), Solid("pyramid", "blue", "checked", "small", x=0.5)))
CLASSES = {"count": 3, "ground": 4, "sky": 3, "style": 5, "shape": 5, "colour": 8, "texture": 4, "size": 2}


def answers(**changes: list[Any]) -> dict[str, Tensor]:
    """Logits that are sure of the labels of ONE and TWO, but for the class indices that are changed."""
    truth: dict[str, Tensor] = {**labels([ONE, TWO]), **{k: torch.tensor(v) for k, v in changes.items()}}
    return {k: 20.0 * F.one_hot(v.clamp(min=0), CLASSES[k]) for k, v in truth.items()}


def judge_saying(logits: dict[str, Tensor]) -> Any:
    """A judge that finds the number of a picture in its first pixel."""

    def judge(pixels: Tensor) -> dict[str, Tensor]:
        which = pixels[:, 0, 0, 0].long()
        return {k: v[which] for k, v in logits.items()}

    return judge


def pictures() -> Tensor:
    return torch.arange(2.0).view(2, 1, 1, 1).expand(2, 3, 128, 128)


def test_labels_of_hand_made_scenes():
    found = {name: value.tolist() for name, value in labels([ONE, TWO]).items()}
    assert found == {
        "count": [0, 1],
        "ground": [1, 0],
        "sky": [2, 0],
        "style": [3, 0],
        "shape": [[1, -1, -1], [0, 4, -1]],
        "colour": [[0, -1, -1], [7, 4, -1]],
        "texture": [[1, -1, -1], [0, 3, -1]],
        "size": [[1, -1, -1], [1, 0, -1]],
    }


def test_a_verdict_counts_each_asked_solid_once():
    wrong = answers(colour=[[0, 3, 3], [7, 1, 3]], shape=[[1, 0, 0], [4, 0, 0]], sky=[1, 0])
    seen = verdict(judge_saying(wrong), pictures(), [ONE, TWO])
    right = {"count": 1, "ground": 1, "style": 1, "texture": 1, "size": 1}
    assert seen.accuracy() == pytest.approx({**right, "sky": 1 / 2, "colour": 2 / 3, "shape": 1 / 3})
    # ONE: 4 of its solid's attributes and 3 of the picture's, of 8; TWO: 2 * 4 - 3 and 4, of 12
    assert seen.per_picture().tolist() == pytest.approx([7 / 8, 9 / 12])
    assert seen.asked.tolist() == [[True, False, False], [True, True, False]]


def test_solids_in_exchanged_places_are_wrong():
    swapped = answers(shape=[[1, 0, 0], [4, 0, 0]], colour=[[0, 0, 0], [4, 7, 0]])
    accuracy = verdict(judge_saying(swapped), pictures(), [ONE, TWO]).accuracy()
    assert accuracy["shape"] == accuracy["colour"] == pytest.approx(1 / 3)


def test_log_likelihood_of_a_judge_without_opinion():
    flat = {k: torch.zeros_like(v, dtype=torch.float32) for k, v in answers().items()}
    seen = verdict(judge_saying(flat), pictures(), [ONE, TWO])
    whole, solid = -math.log(3 * 4 * 3 * 5), -math.log(5 * 8 * 4 * 2)
    assert seen.log_likelihood.tolist() == pytest.approx([whole + solid, whole + 2 * solid], rel=1e-5)


def test_batches_do_not_change_a_verdict():
    wrong = judge_saying(answers(colour=[[1, 0, 0], [7, 4, 0]]))
    one, both = (verdict(wrong, pictures(), [ONE, TWO], batch=size) for size in (1, 2))
    assert one.accuracy() == both.accuracy()
    assert torch.equal(one.log_likelihood, both.log_likelihood)


def test_shapes_of_what_the_judge_says():
    torch.manual_seed(0)
    judge = Judge(width=32)
    said = judge(torch.zeros(2, 3, 128, 128))
    solid = {"shape", "colour", "texture", "size"}
    expected = {k: (2, 3, n) if k in solid else (2, n) for k, n in CLASSES.items()}
    assert {k: tuple(v.shape) for k, v in said.items()} == {**expected, "coverage": (2, 64, 19)}


def test_the_loss_of_a_judge_without_opinion():
    shapes = {k: tuple(v.shape[1:]) for k, v in answers().items()}

    class Flat(Judge):
        def forward(self, pixels: Tensor) -> dict[str, Tensor]:
            assert pixels.shape == (8, 3, 128, 128)
            return {k: torch.zeros(8, *s) for k, s in {**shapes, "coverage": (64, 19)}.items()}

    data = np.zeros((2, 128, 128, 3), np.uint8), np.full((2, 8, 8, 19), 51, np.uint8)
    loss, figures = JudgeLoss(Flat(width=32), *data, labels([ONE, TWO]), batch=8)(
        Part(0), torch.Generator().manual_seed(0)
    )
    assert loss.item() == pytest.approx(sum(map(math.log, CLASSES.values())) + 4 * math.log(2), rel=1e-5)
    assert float(figures["colour"]) == pytest.approx(math.log(8), rel=1e-5)


def test_pictures_are_degraded_but_keep_their_content():
    seen: list[Tensor] = []
    step = np.repeat(np.linspace(0, 255, 128), 128 * 3).astype(np.uint8).reshape(1, 128, 128, 3)
    judge = Judge(width=32)
    judge.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    loss = JudgeLoss(judge, step, np.zeros((1, 8, 8, 19), np.uint8), labels([ONE]), batch=1)
    with torch.no_grad():
        for k in range(6):
            loss(Part(k), torch.Generator().manual_seed(k))
    clean = torch.linspace(-1, 1, 128)
    errors = [(x.mean((0, 1, 3)) - clean).abs().mean().item() for x in seen]
    assert max(errors) < 0.02
    assert len({round(x.std(-1).mean().item(), 3) for x in seen}) == 6  # another strength of noise each time
