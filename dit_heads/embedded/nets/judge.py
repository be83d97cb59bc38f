"""The judge: recognises the attributes of a picture, so that pictures can be checked against their prompts.

It shares nothing with the CLIP that searches optimise. Its architecture, labels and training are different.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
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
    """Class indices of scenes.

    Returns:
        `count`, `ground`, `sky` and `style`, each [B]; `shape`, `colour`, `texture` and `size`, each [B, 3]
        with the solids from left to right, and -1 for a missing solid.
    """
    out = {"count": torch.tensor([COUNTS.index(len(s.solids)) for s in scenes])}
    for name in ("ground", "sky", "style"):
        out[name] = torch.tensor([WHOLE[name].index(getattr(s, name)) for s in scenes])
    for name, values in ATTRIBUTES.items():
        rows = [[values.index(getattr(o, name)) for o in s.solids] for s in scenes]
        out[name] = torch.tensor([row + [-1] * (SLOTS - len(row)) for row in rows])
    return out


class Residual(nn.Module):
    """A residual block of two convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, channels), nn.GroupNorm(8, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return x + self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))


def attribute_heads(width: int) -> tuple[nn.ModuleDict, nn.ModuleDict]:
    """Linear layers for the attributes of the whole picture, and for those of a solid."""
    kinds = (WHOLE, ATTRIBUTES)
    whole, solid = (nn.ModuleDict({n: nn.Linear(width, len(v)) for n, v in kind.items()}) for kind in kinds)
    return whole, solid


def attribute_logits(
    answers: Float[Tensor, "b 4 d"], whole: nn.ModuleDict, solid: nn.ModuleDict
) -> dict[str, Tensor]:
    """Logits of every attribute. The first answer is about the whole picture, the others about its solids."""
    out = {name: head(answers[:, 0]) for name, head in whole.items()}
    return out | {name: head(answers[:, 1:]) for name, head in solid.items()}


def attribute_losses(logits: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Cross-entropy of each attribute in `labels`, ignoring missing solids."""
    return {
        name: F.cross_entropy(logits[name].float().flatten(0, -2), true.flatten(), ignore_index=-1)
        for name, true in truth.items()
    }


class Judge(nn.Module):
    """Convolutions down to an 8 x 8 grid, then two transformer layers in which four query tokens read it: one
    for the whole picture, and one for each solid from left to right."""

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

    def forward(self, pixels: Float[Tensor, "b 3 128 128"]) -> dict[str, Tensor]:
        """Logits of pictures in [-1, 1]: `count`... [B, classes], `shape`... [B, 3, classes], and `coverage`
        [B, 64, 19] of the grid, which only training uses."""
        grid = self.stem(pixels).flatten(2).transpose(1, 2)  # [B, 64, D]
        tokens = torch.cat([self.query.expand(len(pixels), -1, -1), grid + self.place], 1)
        read = self.norm(self.reader(tokens)[:, : 1 + SLOTS])
        return {**attribute_logits(read, self.whole, self.solid), "coverage": self.dense(grid)}


class JudgeLoss:
    """Cross-entropy of every attribute and of the grid's coverage, for pictures with random blur and noise,
    as those of a small generator have."""

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
        logits = self.judge(pixels.to(device).contiguous(memory_format=torch.channels_last))
        truth = {name: true[which].to(device) for name, true in self.truth.items()}
        losses = attribute_losses(logits, truth)
        cover = torch.from_numpy(self.coverage[which.numpy()]).flatten(1, 2).to(device).float() / 255
        dense = F.binary_cross_entropy_with_logits(logits["coverage"].float(), cover)
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
    """The judge's findings compared with captions. A solid counts only at its place from left to right.

    Attributes:
        right: whether each attribute is right, [B] for the whole picture or [B, 3] for its solids.
        asked: which solids the caption names.
        log_likelihood: log-likelihood of all attributes in the caption.
    """

    right: dict[str, Bool[Tensor, "b ..."]]
    asked: Bool[Tensor, "b 3"]
    log_likelihood: Float[Tensor, " b"]

    def accuracy(self) -> dict[str, float]:
        """Share of pictures, or of the solids in captions, for which each attribute is right."""
        counted = {name: ok[self.asked] if ok.ndim == 2 else ok for name, ok in self.right.items()}
        return {name: ok.float().mean().item() for name, ok in counted.items()}

    def per_picture(self) -> Float[Tensor, " b"]:
        """Share of the attributes in each picture's caption that are right."""
        solid = sum(ok.float() * self.asked for ok in self.right.values() if ok.ndim == 2)
        whole = sum(ok.float() for ok in self.right.values() if ok.ndim == 1)
        names = sum(ok.ndim == 2 for ok in self.right.values())
        assert isinstance(solid, Tensor) and isinstance(whole, Tensor)
        return (solid.sum(-1) + whole) / (names * self.asked.sum(-1) + len(self.right) - names)


@torch.no_grad()
def verdict(
    judge: Judge, pixels: Float[Tensor, "b 3 h w"], scenes: Sequence[Scene], batch: int = 32
) -> Verdict:
    """Judge pictures in [-1, 1] against the scenes that their prompts describe."""
    truth = labels(scenes)
    parts = [judge(some) for some in pixels.split(batch)]
    logits = {k: torch.cat([p[k] for p in parts]).float() for k in truth}
    asked = truth["shape"] >= 0
    right = {k: logits[k].argmax(-1) == truth[k] for k in truth}
    score = torch.zeros(len(scenes))
    for name, classes in logits.items():
        picked = classes.log_softmax(-1).gather(-1, truth[name].clamp(min=0)[..., None])[..., 0]
        score += (picked * asked).sum(-1) if picked.ndim == 2 else picked
    return Verdict(right, asked, score)
