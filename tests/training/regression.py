"""A small regression that tests of training train, and what its run leaves."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dit_heads.training.loop import FitConfig, Loss, Part, fit

CONFIG = FitConfig(12, 0.02, warmup=3, decline=0.5, ema=0.8, precision="no", log_every=1, seed=7)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))


def regression(model: nn.Module, *, fails_at: int = -1) -> Loss:
    def loss(part: Part, generator: torch.Generator) -> tuple[Tensor, Mapping[str, float | Tensor]]:
        if part.step == fails_at:
            raise InterruptedError("killed")
        x = torch.randn(16, 4, generator=generator)
        value = (model(x) - x[:, :2].sin()).square().mean()
        return value, {"number": float(part.step)}

    return loss


def run(config: FitConfig, folder: Path, seed: int = 0, *, fails_at: int = -1, until: float | None = None):
    """Train a network; other weights by another `seed` show that a resumed run starts from its checkpoint."""
    model = network(seed)
    return fit(model, regression(model, fails_at=fails_at), config, folder, until=until)


def same(a: Path, b: Path) -> bool:
    first, second = (load_file(folder / "checkpoint.safetensors") for folder in (a, b))
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def logged(folder: Path) -> list[dict[str, str]]:
    with (folder / "log.csv").open() as file:
        return list(csv.DictReader(file))


def rows_of(part: Part, batch: int = 8) -> tuple[Tensor, Tensor]:
    """The rows that a part takes of a batch whose numbers depend on the step alone."""
    x = torch.randn(batch, 4, generator=torch.Generator().manual_seed(part.step), dtype=torch.float64)
    return x[part.index :: part.count], x[part.index :: part.count, :2].sin()
