"""The judge: reads the attributes of a picture, so that prompts can be checked against what was painted.

It shares nothing with the CLIP that searches optimise: other architecture, other labels, trained apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from dit_heads.embedded.nets.vae import to_tensor
from dit_heads.embedded.world.data import ATTRIBUTES, COVERAGE_CHANNELS
from dit_heads.embedded.world.scenes import GROUNDS, SKIES, STYLES, Scene
from dit_heads.training.loop import Part

SLOTS = 3
COUNTS = (1, 2, 3)
WHOLE = {"count": COUNTS, "ground": GROUNDS, "sky": SKIES, "style": STYLES}


def labels(scenes: Sequence[Scene]) -> dict[str, Tensor]:
    """Class indices: `count`, `ground`, `sky`, `style` [B]; `shape`, `colour`, `texture`, `size` [B, 3] from
    left to right, -1 where there is no such solid."""
    out = {"count": torch.tensor([COUNTS.index(len(s.solids)) for s in scenes])}
    for name in ("ground", "sky", "style"):
        out[name] = torch.tensor([WHOLE[name].index(getattr(s, name)) for s in scenes])
    for name, values in ATTRIBUTES.items():
        rows = [[values.index(getattr(o, name)) for o in s.solids] for s in scenes]
        out[name] = torch.tensor([row + [-1] * (SLOTS - len(row)) for row in rows])
    return out


class Residual(nn.Module):
    """Two convolutions beside the identity: [B, C, H, W] -> the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, channels), nn.GroupNorm(8, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))


def attribute_heads(width: int) -> tuple[nn.ModuleDict, nn.ModuleDict]:
    """A linear layer for each attribute of the whole picture, and of a solid."""
    kinds = (WHOLE, ATTRIBUTES)
    whole, solid = (nn.ModuleDict({n: nn.Linear(width, len(v)) for n, v in kind.items()}) for kind in kinds)
    return whole, solid


def attribute_logits(read: Tensor, whole: nn.ModuleDict, solid: nn.ModuleDict) -> dict[str, Tensor]:
    """What `attribute_heads` say of answers [B, 1 + 3, D], the first of which is the whole picture's."""
    out = {name: head(read[:, 0]) for name, head in whole.items()}
    return out | {name: head(read[:, 1:]) for name, head in solid.items()}


def attribute_losses(said: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Cross-entropy of each attribute of `labels`, over those that there are."""
    return {
        name: F.cross_entropy(said[name].float().flatten(0, -2), true.flatten(), ignore_index=-1)
        for name, true in truth.items()
    }


class Judge(nn.Module):
    """Convolutions to an 8 x 8 grid, then two transformer layers in which four query tokens (the whole
    picture, and one a solid from left to right) read the grid."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 32, 5, 2, 2), Residual(32),
            nn.Conv2d(32, 64, 3, 2, 1), Residual(64),
            nn.Conv2d(64, 96, 3, 2, 1), Residual(96),
            nn.Conv2d(96, width, 3, 2, 1), Residual(width), nn.GroupNorm(8, width),
        )  # fmt: skip
        self.place = nn.Parameter(torch.randn(64, width) * 0.02)
        self.query = nn.Parameter(torch.randn(1 + SLOTS, width) * 0.5)
        layer = nn.TransformerEncoderLayer(
            width, 4, 3 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.reader = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.whole, self.solid = attribute_heads(width)
        self.dense = nn.Linear(width, COVERAGE_CHANNELS)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """[B, 3, 128, 128] in [-1, 1] -> logits: `count`... [B, classes], `shape`... [B, 3, classes], and
        `coverage` [B, 64, 19] of the grid (used in training only)."""
        grid = self.stem(pixels).flatten(2).transpose(1, 2)  # [B, 64, D]
        tokens = torch.cat([self.query.expand(len(pixels), -1, -1), grid + self.place], 1)
        read = self.norm(self.reader(tokens)[:, : 1 + SLOTS])
        return {**attribute_logits(read, self.whole, self.solid), "coverage": self.dense(grid)}


class JudgeLoss:
    """Cross-entropy of every attribute, and the coverage of the grid; pictures are blurred and made noisy at
    random, as those of a small generator are."""

    def __init__(
        self,
        judge: Judge,
        images: NDArray[np.uint8],
        coverage: NDArray[np.uint8],
        truth: Mapping[str, Tensor],
        batch: int = 64,
    ) -> None:
        self.judge, self.images, self.coverage, self.truth, self.batch = judge, images, coverage, truth, batch

    def __call__(self, part: Part, generator: torch.Generator) -> tuple[Tensor, dict[str, float | Tensor]]:
        which = torch.randint(len(self.images), (self.batch,), generator=generator)
        pixels, device = _degrade(to_tensor(self.images[which.numpy()]), generator), self.judge.query.device
        said = self.judge(pixels.to(device).contiguous(memory_format=torch.channels_last))
        truth = {name: true[which].to(device) for name, true in self.truth.items()}
        losses = attribute_losses(said, truth)
        cover = torch.from_numpy(self.coverage[which.numpy()]).flatten(1, 2).to(device).float() / 255
        dense = F.binary_cross_entropy_with_logits(said["coverage"].float(), cover)
        figures: dict[str, float | Tensor] = {k: losses[k] for k in ("shape", "colour", "texture", "count")}
        return sum(losses.values(), 4 * dense), figures


def _degrade(x: Tensor, generator: torch.Generator) -> Tensor:
    draw = torch.rand(3, generator=generator).tolist()
    if draw[0] < 0.5:
        small = F.interpolate(x, scale_factor=0.5 + 0.4 * draw[1], mode="bilinear", antialias=True)
        x = F.interpolate(small, size=x.shape[-2:], mode="bilinear")
    return x + 0.12 * draw[2] * torch.randn(x.shape, generator=generator)


@dataclass(frozen=True)
class Verdict:
    """What the judge saw against what was asked: `right[name]` is bool [B] for the whole picture or [B, 3] a
    solid, and `asked` [B, 3] says which solids the caption names. A solid counts only in its place from left
    to right."""

    right: dict[str, Tensor]
    asked: Tensor
    log_likelihood: Tensor  # [B], of all asked attributes

    def accuracy(self) -> dict[str, float]:
        """Share right of each attribute, over the pictures or the solids asked for."""
        counted = {name: ok[self.asked] if ok.ndim == 2 else ok for name, ok in self.right.items()}
        return {name: ok.float().mean().item() for name, ok in counted.items()}

    def per_picture(self) -> Tensor:
        """Share of a picture's asked attributes that are right, [B]."""
        solid = sum(ok.float() * self.asked for ok in self.right.values() if ok.ndim == 2)
        whole = sum(ok.float() for ok in self.right.values() if ok.ndim == 1)
        names = sum(ok.ndim == 2 for ok in self.right.values())
        assert isinstance(solid, Tensor) and isinstance(whole, Tensor)
        return (solid.sum(-1) + whole) / (names * self.asked.sum(-1) + len(self.right) - names)


@torch.no_grad()
def verdict(judge: Judge, pixels: Tensor, scenes: Sequence[Scene], batch: int = 32) -> Verdict:
    """Judge pictures [B, 3, 128, 128] in [-1, 1] against the scenes that their prompts describe."""
    truth = labels(scenes)
    parts = [judge(some) for some in pixels.split(batch)]
    said = {k: torch.cat([p[k] for p in parts]).float() for k in truth}
    asked = truth["shape"] >= 0
    right = {k: said[k].argmax(-1) == truth[k] for k in truth}
    score = torch.zeros(len(scenes))
    for name, logits in said.items():
        picked = logits.log_softmax(-1).gather(-1, truth[name].clamp(min=0)[..., None])[..., 0]
        score += (picked * asked).sum(-1) if picked.ndim == 2 else picked
    return Verdict(right, asked, score)
