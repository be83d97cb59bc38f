import math
from pathlib import Path
from typing import Any

import pytest
import torch

from dit_heads.errors import InputError
from dit_heads.tasks.soft_tokens.files import load_solver, save_module
from dit_heads.tasks.soft_tokens.sequences import Vocabulary
from dit_heads.tasks.soft_tokens.solver import Solver, SolverConfig, numbers_of, sines

WORDS = Vocabulary(
    classes=("cube", "cone"), depth_tokens=4, mask_tokens=2, objects=2, bins=6, depth_codes=7, mask_codes=5
)
FEATURES = torch.randn(2, 9, 10, generator=torch.Generator().manual_seed(0))


def solver(order: Any, **change: Any) -> Solver:
    torch.manual_seed(0)
    size = {"width": 16, "heads": 2, "encoder_layers": 1, "decoder_layers": 2, **change}
    made = Solver(SolverConfig(vocabulary=WORDS, channels=10, kept=10, order=order, **size))
    for name, parameter in made.named_parameters():
        if parameter.ndim > 1 and "encoder" not in name:
            torch.nn.init.normal_(parameter, std=0.4)
    return made.eval()


def test_logits_have_the_shape_of_their_kind():
    made = solver("parallel")
    assert made(FEATURES, "depth")["depth"].shape == (2, 4, 7)
    found = made(FEATURES, "instances")
    assert [tuple(found[kind].shape) for kind in ("box", "class", "mask")] == [
        (2, 2, 4, 6),
        (2, 2, 3),
        (2, 2, 2, 5),
    ]
    assert numbers_of(found, "instances").shape == (2, made.length("instances"))


@pytest.mark.parametrize("task", ["depth", "instances"])
def test_step_by_step_gives_what_one_pass_over_its_tokens_gives(task: Any):
    """With hard feedback: the keys and values that are kept change nothing."""
    made = solver("autoregressive")
    with torch.no_grad():
        written = made.write(FEATURES, task)
        whole = made(FEATURES, task, written.numbers)
    for kind, logits in written.logits.items():
        assert torch.allclose(logits, whole[kind], atol=1e-5)


def test_soft_feedback_becomes_hard_as_tau_grows():
    made = solver("autoregressive")
    hard, almost, soft = (made.write(FEATURES, "depth", tau).logits["depth"] for tau in (math.inf, 1e6, 0.5))
    assert torch.allclose(hard, almost, atol=1e-4) and not torch.allclose(hard, soft, atol=1e-3)


def test_an_autoregressive_solver_sees_no_later_token_and_needs_the_earlier_ones():
    made = solver("autoregressive")
    tokens = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 4]])
    changed = tokens.clone()
    changed[:, 2] = 6
    with torch.no_grad():
        a, b = (made(FEATURES, "depth", each)["depth"] for each in (tokens, changed))
    assert torch.allclose(a[:, :3], b[:, :3], atol=1e-6) and not torch.allclose(a[:, 3], b[:, 3], atol=1e-3)
    with pytest.raises(InputError, match="numbers: expected the right tokens"):
        made(FEATURES, "depth")


def test_a_parallel_solver_reads_no_tokens_and_every_place_sees_every_other():
    made = solver("parallel")
    tokens = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 4]])
    with torch.no_grad():
        before = made(FEATURES, "depth")["depth"]
        assert torch.equal(before, made(FEATURES, "depth", tokens)["depth"])
        assert torch.equal(before, made.write(FEATURES, "depth").logits["depth"])
        made.place_embedding["depth"][3] += torch.arange(16.0).cos()
        moved = (made(FEATURES, "depth")["depth"] - before).abs().amax((0, 2))
    assert (moved > 1e-4).all()


def test_a_file_gives_the_solver_back(tmp_path: Path):
    made = solver("parallel").half().float()
    made.normaliser.mean += 0.5
    save_module(made, made.config, tmp_path / "s.safetensors")
    loaded = load_solver(tmp_path / "s.safetensors")
    assert loaded.config == made.config
    found, expected = (each(FEATURES, "depth")["depth"] for each in (loaded, made))
    assert torch.allclose(found, expected, atol=1e-6)


def test_positions_differ_and_need_a_square():
    found = sines(64, 32)
    apart = torch.cdist(found, found) + torch.eye(64) * 9
    assert found.shape == (64, 32) and apart.min() > 0.1
    with pytest.raises(InputError, match="a square picture, got 12 image tokens"):
        sines(12, 32)
    with pytest.raises(InputError, match="width: expected a multiple"):
        solver("parallel", width=18, heads=4)
