"""On a CUDA GPU, where there is one: the losses of a CPU, and whole runs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dit_heads.embedded.soft_tokens.losses import SolverLoss, TokenizerLoss, labels_of
from dit_heads.embedded.soft_tokens.truth import Truth
from dit_heads.tasks.soft_tokens.reading import SoftReader
from dit_heads.tasks.soft_tokens.sequences import Objects
from dit_heads.tasks.soft_tokens.solver import Solver, SolverConfig
from dit_heads.training.loop import FitConfig, Part, fit
from tests.embedded.soft_tokens.made import DEPTH, MASK, WORDS, tokenizer, truth

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def moved(scenes: Truth, device: str) -> Truth:
    names = ("boxes", "classes", "there", "order")
    objects = Objects(**{name: getattr(scenes.objects, name).to(device) for name in names})
    tensors = {name: getattr(scenes, name).to(device) for name in ("metres", "known", "ids")}
    return replace(scenes, objects=objects, **tensors)


def tokenizer_loss(kind: str, device: str) -> TokenizerLoss:
    model = tokenizer(DEPTH if kind == "depth" else MASK).to(device)
    return TokenizerLoss(model, moved(truth(), device), 8, augmented=True, revived_until=4)


def solver_loss(order: Any, device: str) -> SolverLoss:
    depth, mask = (tokenizer(each).requires_grad_(False).to(device) for each in (DEPTH, MASK))
    scenes = moved(truth(), device)
    torch.manual_seed(1)
    size: dict[str, Any] = {"width": 16, "heads": 2, "encoder_layers": 1, "decoder_layers": 1}
    config = SolverConfig(vocabulary=WORDS, channels=6, kept=6, order=order, dropout=0.0, **size)
    features = torch.randn(len(scenes), 16, 6, generator=torch.Generator().manual_seed(0)).to(device)
    labels = labels_of(scenes, depth, mask, WORDS)
    return SolverLoss(Solver(config).to(device), features, scenes, labels, depth, mask, 6)


@pytest.mark.parametrize("kind", ["depth", "mask", "parallel", "autoregressive"])
def test_losses_are_those_of_the_cpu(kind: str):
    make = tokenizer_loss if kind in ("depth", "mask") else solver_loss
    values = [make(kind, device)(Part(0), torch.Generator().manual_seed(2))[0] for device in ("cpu", "cuda")]
    assert values[1].item() == pytest.approx(values[0].item(), rel=0.02)


@pytest.mark.parametrize("kind", ["depth", "parallel"])
def test_a_run_in_half_precision_ends_and_answers(kind: str, tmp_path: Path):
    make = tokenizer_loss if kind == "depth" else solver_loss
    loss: Any = make(kind, "cuda")
    model = loss.tokenizer if kind == "depth" else loss.solver
    fit(model, loss, FitConfig(4, warmup=2, precision="bf16", log_every=1), tmp_path)
    assert all(p.isfinite().all() for p in model.parameters())
    if kind == "parallel":
        reader = SoftReader(model, loss.depth.eval(), loss.mask.eval())
        assert reader.read_depth(loss.features[:2]).values.isfinite().all()
        assert len(reader.read_objects(loss.features[:2])) == 2
