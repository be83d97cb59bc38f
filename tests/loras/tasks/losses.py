"""Losses of sets whose latents and embeddings are noise by their names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image
from torch import Tensor

from dit_heads.loras.base import Encoders
from dit_heads.loras.cache import CachedEncoder
from dit_heads.loras.config import LossConfig, TrainConfig
from dit_heads.loras.sets.dataset import Sample, SetDataset
from dit_heads.loras.tasks.in_context import InContext
from dit_heads.loras.tasks.loss import FlowLoss
from dit_heads.training.batch import Batch
from dit_heads.training.generators import keyed_generator
from dit_heads.training.loop import Part
from tests import tiny

UNUSED = torch.Generator()


def make_sets(root: Path, count: int, *, shift: int = 0) -> Path:
    """Set k has two panels whose red is 10 k and 10 k + 1, blue at the left, and the caption "set k"; odd
    ones are tall. `shift` is added to k."""
    for k in range(shift, count + shift):
        for p in range(2):
            image = Image.new("RGB", (64, 128 if k % 2 else 64), (10 * k + p, 0, 0))
            image.paste((10 * k + p, 0, 255), (0, 0, 20, 128))
            (root / f"set{k}").mkdir(parents=True, exist_ok=True)
            image.save(root / f"set{k}/{p}.png")
        (root / f"set{k}/caption.txt").write_text(f"set {k}")
    return root


@dataclass
class Fixture:
    """A loss of some sets; noise of a set's number stands for its latents and its caption's embedding."""

    folder: Path
    sets: Path
    config: LossConfig = field(default_factory=LossConfig)
    kind: str = "sd3"
    batch_size: int = 4
    seed: int = 0
    shift: float | None = 1.0
    prior: Path | None = None
    buckets: Sequence[tuple[int, int]] = ((32, 32),)
    flip: bool = False

    def data(self, root: Path) -> SetDataset:
        return SetDataset(root, rows=1, columns=2, buckets=self.buckets, flip=self.flip, seed=self.seed)

    def make(self) -> FlowLoss:
        task = InContext(
            TrainConfig(loss=self.config, seed=self.seed),
            self.data(self.sets),
            held_out=self.data(self.sets),
            kept=self.prior and self.data(self.prior),
            encoders=encoders(
                CachedEncoder(latents_of, self.folder, {}, memory=2**24),
                CachedEncoder(embedding_of, self.folder, {}, memory=2**24),
            ),
        )
        return FlowLoss(
            tiny.flux(torch.float32) if self.kind == "flux" else tiny.sd3(dtype=torch.float32),
            task,
            replace(self.config, shift=self.shift),
            batch_size=self.batch_size,
            seed=self.seed,
            scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True).config,
        )


def encoders(latents: CachedEncoder, texts: CachedEncoder) -> Encoders:
    return Encoders(None, latents, texts, tiny.TEXT, None)


def numbers(*key: object, shape: Sequence[int]) -> Tensor:
    return torch.randn(*shape, generator=keyed_generator(*key))


def latents_of(sample: Sample) -> dict[str, Tensor]:
    height, width = sample.grid.height // 8, sample.grid.width // 8
    return {"latents": numbers(sample.caption, sample.flip, shape=(4, height, width))}


def embedding_of(caption: str) -> dict[str, Tensor]:
    both = numbers(caption, shape=(tiny.TEXT + 1, 16))
    return {"text": both[1:], "pooled": both[0, :12]}


def asked(loss: FlowLoss, part: Part, monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    """The batches of a part, which the model does not see."""
    seen: list[Batch] = []
    with monkeypatch.context() as patch:
        patch.setattr(Batch, "loss", lambda batch, *_: seen.append(batch) or torch.zeros(()))
        loss(part, UNUSED)
    return seen


def gradients(loss: FlowLoss, step: int, count: int) -> tuple[Tensor, dict[str, Tensor]]:
    """The mean of the parts' losses, and its gradients."""
    loss.transformer.zero_grad()
    mean = torch.zeros(())
    for k in range(count):
        value = loss(Part(step, k, count), UNUSED)[0] / count
        value.backward()
        mean = mean + value.detach()
    found = {n: p.grad.clone() for n, p in loss.transformer.named_parameters() if p.grad is not None}
    return mean, found
