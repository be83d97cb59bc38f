"""Training of tokenizers and solvers on scenes that are made by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dit_heads.embedded.soft_tokens.losses import SolverLoss, TokenizerLoss, crops_of, labels_of
from dit_heads.tasks.soft_tokens.maps import depth_input
from dit_heads.tasks.soft_tokens.solver import Solver, SolverConfig
from dit_heads.tasks.soft_tokens.tokenizer import Decoded
from dit_heads.training.checkpoints import read_average
from dit_heads.training.loop import FitConfig, Part, fit
from tests.embedded.soft_tokens.made import DEPTH, MASK, SIDE, WORDS, tokenizer, truth


def config(steps: int) -> FitConfig:
    return FitConfig(steps, 3e-3, warmup=2, ema=0.9, precision="no", log_every=1, seed=3)


def tokenizer_run(kind: str) -> tuple[Any, Any]:
    model = tokenizer(DEPTH if kind == "depth" else MASK)
    return model, TokenizerLoss(model, truth(), 8, augmented=True, revived_until=4)


def solver_run(order: Any, **change: Any) -> tuple[Any, Any]:
    depth, mask, scenes = (
        tokenizer(DEPTH).requires_grad_(False),
        tokenizer(MASK).requires_grad_(False),
        truth(),
    )
    torch.manual_seed(1)
    size = {"width": 16, "heads": 2, "encoder_layers": 1, "decoder_layers": 1, "dropout": 0.2}
    model = Solver(SolverConfig(vocabulary=WORDS, channels=6, kept=6, order=order, **size))
    features = torch.randn(len(scenes), 16, 6, generator=torch.Generator().manual_seed(0))
    labels = labels_of(scenes, depth, mask, WORDS)
    return model, SolverLoss(model, features, scenes, labels, depth, mask, 6, **change)


RUNS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "depth tokenizer": lambda: tokenizer_run("depth"),
    "mask tokenizer": lambda: tokenizer_run("mask"),
    "autoregressive": lambda: solver_run("autoregressive"),
    "parallel": lambda: solver_run("parallel"),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_goes_on_ends_as_one_that_did_not_stop(name: str, tmp_path: Path):
    """Codes, their counts and their sums, the weights and what dropout drops."""
    for folder, parts in (("straight", (6,)), ("stopped", (3, 6))):
        for steps in parts:
            fit(*RUNS[name](), config(6), tmp_path / folder, stop=None if steps == 6 else _after(steps))
    (one, step, _), (other, _, _) = (read_average(tmp_path / f) for f in ("straight", "stopped"))
    assert step == 6 and one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def _after(steps: int) -> Callable[[], bool]:
    left = iter(range(steps))
    return lambda: next(left) == steps - 1


def test_the_codebook_moves_without_gradients_and_its_state_is_stored(tmp_path: Path):
    model, loss = tokenizer_run("depth")
    before = model.codebook.embedding.detach().clone()
    fit(model, loss, config(2), tmp_path)
    assert not torch.equal(model.codebook.embedding, before)
    assert model.codebook.embedding.grad is None
    names = set(read_average(tmp_path)[0])
    assert {f"codebook.embedding{end}" for end in ("", "_sums", "_counts")} <= names


@pytest.mark.slow
def test_a_tokenizer_learns_its_maps(tmp_path: Path):
    model, loss = tokenizer_run("depth")
    fit(model, loss, config(150), tmp_path)
    metres, known = truth().depth(torch.arange(12))
    with torch.no_grad():
        given = depth_input(metres, known, model.range)
        decoded = Decoded.of(model.decode_tokens(model.tokenize(given)))
    found = model.range.metres(decoded.values)
    relative = ((found - metres).abs() / metres.clamp(min=1))[known == 1]
    assert relative.median() < 0.15 and ((decoded.sky > 0) == (known == 2)).float().mean() > 0.95


def test_only_known_pixels_have_a_part_in_the_training_of_depth():
    model, loss = tokenizer_run("depth")
    loss.augmented = False
    loss.truth.known[:, 20:] = 0
    values = []
    for level in (0.0, 9.0):
        loss.truth.metres[:, 20:] = level
        values.append(loss(Part(9), torch.Generator().manual_seed(0))[0].item())
        model.load_state_dict(tokenizer(DEPTH).state_dict())
    assert values[0] == values[1]


def test_the_decoded_output_is_compared_only_if_wanted():
    figures = {}
    for wanted in (True, False):
        _, loss = solver_run("parallel", auxiliary=wanted)
        total, figures[wanted] = loss(Part(0), torch.Generator().manual_seed(0))
        assert total.isfinite()
    assert set(figures[True]) - set(figures[False]) == {"silog", "mask"}
    same = ("depth_tokens", "box", "class", "mask_tokens")
    assert all(torch.equal(figures[True][name], figures[False][name]) for name in same)


def test_gradients_reach_the_solver_through_the_frozen_decoder():
    model, loss = solver_run("parallel")
    loss.mask_weight = 1.0
    loss(Part(0), torch.Generator().manual_seed(0))[0].backward()
    assert all(p.grad is None for p in loss.depth.parameters())
    assert model.outputs["depth"].weight.grad.abs().sum() > 0


def test_crops_and_masks_are_those_of_the_objects():
    scenes = truth()
    rows, places = torch.nonzero(scenes.objects.there, as_tuple=True)
    masks = scenes.masks(rows, places)
    assert torch.equal(masks.sum((1, 2)) > 0, torch.ones(len(rows), dtype=torch.bool))
    for mask, row, place in zip(masks, rows, places, strict=True):
        ys, xs = np.nonzero(mask.numpy())
        box = torch.tensor([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]) / SIDE
        assert torch.allclose(box.float(), scenes.objects.boxes[row, place])
    assert crops_of(scenes, rows, places, 16).mean() > 0.9
