"""The optimisers against torch's AdamW and against singular values worked out in float64."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dit_heads.io.atomic import write_tensors
from dit_heads.training.optimizers import Optimizer

RATE, DECAY, BETAS = 0.01, 0.1, (0.9, 0.99)
SHARES = (0.3, 1.0, 0.7, 0.05)


def parameters(**shapes: tuple[int, ...]) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return {n: nn.Parameter(torch.randn(s, generator=generator).double()) for n, s in shapes.items()}


def gradients(weights: Mapping[str, Tensor], step: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return {n: torch.randn(w.shape, generator=generator).to(w) for n, w in weights.items()}


def make(weights: Mapping[str, nn.Parameter], kind: str, dtype: torch.dtype = torch.float32) -> Optimizer:
    return Optimizer(weights, kind=kind, rate=RATE, betas=BETAS, weight_decay=DECAY, dtype=dtype)


def walk(optimizer: Optimizer, steps: range) -> None:
    for step in steps:
        for name, gradient in gradients(optimizer.weights, step).items():
            optimizer.weights[name].grad = gradient
        optimizer.step(SHARES[step])


def muon_update(gradient: Tensor) -> Tensor:
    """What Muon adds to a weight of zeros, in units of its step size, as a float64 matrix."""
    weight = nn.Parameter(torch.zeros_like(gradient))
    optimizer = make({"layer.weight": weight, "bias": nn.Parameter(torch.zeros(1))}, "muon")
    weight.grad = gradient
    optimizer.step(1.0)
    matrix = weight.detach().double().flatten(1)
    return matrix / (RATE * 0.2 * max(matrix.shape) ** 0.5)  # arXiv 2502.16982, section 2.2


def test_adamw_is_torchs():
    mine, theirs = parameters(weight=(3, 4), bias=(3,)), parameters(weight=(3, 4), bias=(3,))
    optimizer = make(mine, "adamw")
    reference = torch.optim.AdamW(
        theirs.values(), betas=BETAS, weight_decay=DECAY, foreach=False, fused=False
    )
    for step, share in enumerate(SHARES):
        walk(optimizer, range(step, step + 1))
        for name, gradient in gradients(theirs, step).items():
            theirs[name].grad = gradient
        reference.param_groups[0]["lr"] = RATE * share
        reference.step()
        for name in mine:
            torch.testing.assert_close(mine[name], theirs[name], rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_step_forgets_its_gradients(kind: str):
    optimizer = make(parameters(weight=(3, 4), bias=(3,)), kind)
    walk(optimizer, range(1))
    assert all(w.grad is None for w in optimizer.weights.values())


@pytest.mark.parametrize("shape", [(24, 8), (8, 24), (12, 12), (10, 3, 3, 3)])
def test_muon_orthogonalises(shape: tuple[int, ...]):
    left, values, right = torch.linalg.svd(gradients({"w": torch.zeros(shape)}, 0)["w"].flatten(1), False)
    spread = torch.linspace(1.0, 8.0, len(values))
    gradient = (left * spread @ right).reshape(shape)
    update = -muon_update(gradient)
    reached = torch.linalg.svdvals(update)
    assert reached.min() > 0.6 and reached.max() < 1.3
    nearest = (left @ right).double()  # the orthogonal factor of the gradient
    assert torch.cosine_similarity(update.flatten(), nearest.flatten(), dim=0) > 0.97


@pytest.mark.parametrize("bf16", [True, False])
def test_muon_is_torchs_in_either_precision(bf16: bool):
    ours, theirs = parameters(tall=(12, 5), wide=(4, 9)), parameters(tall=(12, 5), wide=(4, 9))
    optimizer = make(ours, "muon", torch.bfloat16 if bf16 else torch.float32)
    muon = torch.optim.Muon(theirs.values(), lr=RATE, weight_decay=DECAY, adjust_lr_fn="match_rms_adamw")
    for step in range(3):
        for weights in (ours, theirs):
            for name, gradient in gradients(weights, step).items():
                weights[name].grad = gradient
        optimizer.step(1.0)
        muon.step()
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], rtol=0, atol=1e-12 if bf16 else 0.05 * RATE)


def test_muon_takes_a_convolution_as_a_matrix_of_its_outputs():
    gradient = gradients({"w": torch.zeros(6, 4, 3, 3)}, 0)["w"]
    assert torch.equal(muon_update(gradient), muon_update(gradient.reshape(6, 36)))


def test_muon_does_not_care_how_a_convolution_lies_in_memory():
    shapes = {"conv": (6, 4, 3, 3), "bias": (6,)}
    plain, lasting = parameters(**shapes), parameters(**shapes)
    lasting["conv"].data = lasting["conv"].data.to(memory_format=torch.channels_last)
    before = plain["conv"].detach().clone()
    walk(make(plain, "muon"), range(4))
    walk(make(lasting, "muon"), range(4))
    moved = (plain["conv"] - before).abs().mean().item()
    assert moved > 1e-3
    torch.testing.assert_close(
        plain["conv"], lasting["conv"], rtol=0, atol=0.05 * moved
    )  # products are in bf16


def test_muon_leaves_embeddings_biases_and_gains_to_adamw():
    shapes = {"embed.weight": (5, 4), "shared.weight": (5, 4), "place": (6, 4), "norm.weight": (4,)}
    mixed, plain = parameters(**shapes, matrix=(4, 4)), parameters(**shapes, matrix=(4, 4))
    walk(make(mixed, "muon"), range(3))
    walk(make(plain, "adamw"), range(3))
    assert {n for n in mixed if not torch.equal(mixed[n], plain[n])} == {"matrix"}


def test_muon_of_matrices_alone():
    weights = parameters(a=(3, 4), b=(4, 2))
    before = {n: w.detach().clone() for n, w in weights.items()}
    walk(make(weights, "muon"), range(1))
    assert not any(torch.equal(weights[n], before[n]) for n in weights)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_state_round_trip(kind: str):
    shapes = {"weight": (3, 4), "conv": (4, 2, 3, 3), "bias": (3,)}
    straight = make(parameters(**shapes), kind)
    walk(straight, range(2))
    copied = {n: nn.Parameter(w.detach().clone()) for n, w in straight.weights.items()}
    resumed = make(copied, kind)
    resumed.restore({name: value.clone() for name, value in straight.state().items()})
    walk(straight, range(2, 4))
    walk(resumed, range(2, 4))
    assert all(torch.equal(straight.weights[n], resumed.weights[n]) for n in shapes)
    fresh = make({n: nn.Parameter(w.detach().clone()) for n, w in copied.items()}, kind)
    assert not fresh.state()


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(ValueError, match="optimizer: expected 'adamw', 'adamw8bit' or 'muon', got 'sgd'"):
        make(parameters(weight=(2, 2)), "sgd")


# --- fp16 and 8 bits ---


def scaled(scale: float = 8.0) -> Any:
    return torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=2)


def with_scaler(weights: Mapping[str, nn.Parameter], scaler: Any) -> Optimizer:
    return Optimizer(weights, kind="adamw", rate=RATE, betas=BETAS, weight_decay=DECAY, scaler=scaler)


def walk_scaled(optimizer: Optimizer, steps: range, *, overflow: int = -1) -> None:
    """Gradients as a scaled loss gives them."""
    for step in steps:
        optimizer.scaler.scale(torch.zeros(()))  # as `backward` does; the scale is made at its first use
        for name, gradient in gradients(optimizer.weights, step).items():
            factor = torch.inf if step == overflow else optimizer.scaler.get_scale()
            optimizer.weights[name].grad = gradient * factor
        optimizer.unscale()
        if step != overflow:  # what is clipped now are the gradients of the loss itself
            torch.testing.assert_close(
                {n: w.grad for n, w in optimizer.weights.items()}, gradients(optimizer.weights, step)
            )
        optimizer.step(SHARES[step])


def test_a_scaled_loss_gives_the_steps_of_the_loss_itself():
    shapes = {"weight": (3, 4), "bias": (3,)}
    plain, mine = parameters(**shapes), parameters(**shapes)
    walk(make(plain, "adamw"), range(4))
    optimizer = with_scaler(mine, scaled())
    walk_scaled(optimizer, range(4))
    assert optimizer.scaler.get_scale() == 32  # twice as large after every second step
    for name in shapes:
        torch.testing.assert_close(mine[name], plain[name], rtol=0, atol=1e-12)


def test_a_step_that_overflows_is_left_out_and_the_scale_is_halved():
    weights = parameters(weight=(3, 4))
    optimizer = with_scaler(weights, scaled())
    walk_scaled(optimizer, range(1))
    before = weights["weight"].detach().clone()
    walk_scaled(optimizer, range(1, 2), overflow=1)
    assert torch.equal(weights["weight"], before) and weights["weight"].grad is None
    assert optimizer.scaler.get_scale() == 4


def test_the_scale_goes_on_where_it_was(tmp_path: Path):
    straight = with_scaler(parameters(weight=(3, 4)), scaled())
    walk_scaled(straight, range(3), overflow=1)
    copied = {n: nn.Parameter(w.detach().clone()) for n, w in straight.weights.items()}
    resumed = with_scaler(copied, scaled(65536.0))
    resumed.restore({name: value.clone() for name, value in straight.state().items()})
    for optimizer in (straight, resumed):
        walk_scaled(optimizer, range(3, 4))
    assert torch.equal(straight.weights["weight"], copied["weight"])
    assert straight.scaler.state_dict() == resumed.scaler.state_dict()


def test_muon_takes_no_scaler():
    with pytest.raises(ValueError, match=r"optimizer: 'muon' trains in bf16 or .* not in fp16"):
        Optimizer(parameters(a=(2, 2)), kind="muon", rate=1, betas=BETAS, weight_decay=0, scaler=scaled())


def test_8_bits_need_a_gpu_and_bitsandbytes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="optimizer: 8 bits need a CUDA GPU, this machine has none"):
        make(parameters(weight=(2, 2)), "adamw8bit")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ValueError, match=r"optimizer: .* pip install bitsandbytes"):
        make(parameters(weight=(2, 2)), "adamw8bit")


class AdamW8bit(torch.optim.Optimizer):
    """Keeps state as bitsandbytes does: the step as an int, and one table of levels for all weights."""

    def __init__(self, groups: Any, *, lr: float, betas: Any, weight_decay: float) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "weight_decay": weight_decay})
        self.levels = torch.linspace(-1, 1, 256)

    def step(self, closure: Any = None) -> Any:
        for weight in self.param_groups[0]["params"]:
            state = self.state[weight]
            state.setdefault("step", 0)
            assert isinstance(state["step"], int)
            state.setdefault("state1", torch.zeros(weight.shape, dtype=torch.uint8))
            state.setdefault("qmap1", self.levels)
            state["step"] += 1
            state["state1"] += 1
            weight.data -= self.param_groups[0]["lr"] * state["state1"]


def test_state_in_8_bits_is_stored_and_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(
        sys.modules, "bitsandbytes", SimpleNamespace(optim=SimpleNamespace(AdamW8bit=AdamW8bit))
    )
    straight = make(parameters(weight=(3, 4), bias=(3,)), "adamw8bit")
    walk(straight, range(2))
    write_tensors(tmp_path / "state.safetensors", straight.state(), {})  # refuses tensors that share memory
    resumed = make({n: nn.Parameter(w.detach().clone()) for n, w in straight.weights.items()}, "adamw8bit")
    resumed.restore(straight.state())
    for optimizer in (straight, resumed):
        walk(optimizer, range(2, 4))
    assert all(torch.equal(straight.weights[n], resumed.weights[n]) for n in straight.weights)
