"""The training data of the embedded transformers: latents, coverage and captions of single pictures and of
composites of unrelated panels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from diffusers import AutoencoderKL
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from dit_heads.embedded.nets.vae import to_tensor
from dit_heads.embedded.world.captions import (
    GRIDS,
    caption,
    described,
    padded_length,
    scenes_caption,
    varied_caption,
)
from dit_heads.embedded.world.scenes import Scene
from dit_heads.families.latents import normalised

SHORT, MEDIUM, LONG, STOCK = 32, 64, 128, 256  # T5 tokens; the last is the default length of SD3's pipeline
GRID_ODDS = (0.24, 0.14, 0.22, 0.2, 0.14, 0.06)  # probabilities of the grids in `GRIDS`
Composites = tuple[Tensor, list[list[int]]]  # latents [n, C, h, w], and the scenes of their panels


@dataclass(frozen=True)
class Draw:
    """The batch of one training step."""

    latents: Tensor  # [B, C, h, w], normalised
    captions: list[str]
    length: int  # T5 tokens
    coverage: Tensor  # [B, tokens, 19], 0 to 1
    clip_captions: list[str]  # the captions that CLIP reads

    def to(self, device: torch.device) -> Draw:
        """The batch on a device."""
        return replace(self, latents=self.latents.to(device), coverage=self.coverage.to(device))


class Corpus:
    """Random batches of single pictures and of composites.

    Args:
        latents: latents of the scenes' pictures, [N, C, 16, 16].
        coverage: attributes that each image token shows, from 0 to 255, [N, 8, 8, 19] (`data.coverage`).
        scenes: the N scenes.
        composites: one entry for each of `GRIDS`, or none at all.
        batch: pictures per step with the shortest texts; longer texts and composites take fewer.
        stock: number of T5 tokens in the pipeline's default call.
        dots: relative frequency of scenes with a dotted solid.
        panels: share of batches that are composites.
        clip_dropout: share of captions that only T5 reads, and CLIP does not.
    """

    def __init__(
        self,
        latents: Tensor,
        coverage: NDArray[np.uint8],
        scenes: Sequence[Scene],
        composites: Sequence[Composites],
        batch: int,
        stock: int = STOCK,
        dots: float = 1.0,
        panels: float = 0.1,
        clip_dropout: float = 0.0,
    ) -> None:
        self.latents, self.coverage, self.scenes, self.batch = latents, coverage, scenes, batch
        self.composites, self.stock, self.panels = composites, stock, panels
        self.clip_dropout = clip_dropout
        dotted = [any(solid.texture == "dotted" for solid in scene.solids) for scene in scenes]
        odds = np.where(dotted, dots, 1.0)
        self.odds = odds / odds.sum()

    def draw(self, generator: torch.Generator, *, stock_length: bool) -> Draw:
        """A batch of single pictures or of composites, with a tenth of the captions left empty.

        Args:
            generator: source of random numbers.
            stock_length: whether every other batch of single pictures has the pipeline's default length.
        """
        kind = torch.rand(2, generator=generator).tolist()
        rng = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator)))
        if kind[0] < self.panels and self.composites:
            return self._composites(rng)
        length = self._length(kind[1], stock_length)
        which = rng.choice(len(self.scenes), size=self._count(1, length), p=self.odds)
        captions = [self._caption(self.scenes[i], length, rng) for i in which]
        return self._drawn(self.latents[which], captions, length, self.coverage[which], rng)

    def _drawn(
        self,
        latents: Tensor,
        captions: list[str],
        length: int,
        coverage: NDArray[np.uint8],
        rng: np.random.Generator,
    ) -> Draw:
        captions = _without_some(captions, rng, 0.1)
        shares = torch.from_numpy(coverage).flatten(1, 2).float() / 255
        clip_captions = _without_some(captions, rng, self.clip_dropout)
        return Draw(latents.float(), captions, length, shares, clip_captions)

    def _length(self, draw: float, stock_length: bool) -> int:
        """A random length: T5 is called without a mask, so it must learn to ignore padding of any length."""
        if stock_length and draw < 0.5:
            return self.stock
        return LONG if draw > 0.93 else (MEDIUM if draw > 0.83 else SHORT)

    def _count(self, panels: int, length: int) -> int:
        """Number of pictures, chosen so that a step always has about the same number of tokens."""
        image = self.latents.shape[-2] * self.latents.shape[-1] // 4
        return max(4, self.batch * (image + SHORT) // (panels * image + length))

    def _caption(self, scene: Scene, length: int, rng: np.random.Generator) -> str:
        if length >= LONG and rng.random() < 0.5:
            return described(scene, rng)
        text = varied_caption(scene, rng)
        return text if len(text.split()) < length - 8 else caption(scene)

    def _composites(self, rng: np.random.Generator) -> Draw:
        k = int(rng.choice(len(GRIDS), p=GRID_ODDS))
        (latents, panels), (rows, columns) = self.composites[k], GRIDS[k]
        which = rng.integers(len(panels), size=self._count(rows * columns, MEDIUM))
        texts = [scenes_caption([self.scenes[i] for i in panels[w]], rows, columns, rng) for w in which]
        coverage = np.stack([in_grid(self.coverage[panels[w]], rows, columns) for w in which])
        return self._drawn(latents[which], texts, padded_length(texts), coverage, rng)


def _without_some(captions: list[str], rng: np.random.Generator, share: float) -> list[str]:
    return ["" if rng.random() < share else c for c in captions]


def in_grid(panels: NDArray[np.uint8], rows: int, columns: int) -> NDArray[np.uint8]:
    """Panels [rows * columns, h, w, c] in reading order -> one picture [rows * h, columns * w, c]."""
    _, height, width, channels = panels.shape
    grid = panels.reshape(rows, columns, height, width, channels).transpose(0, 2, 1, 3, 4)
    return grid.reshape(rows * height, columns * width, channels)


@torch.no_grad()
def encode_latents(
    vae: AutoencoderKL, images: NDArray[np.uint8], batch: int = 8
) -> Float[Tensor, "n c h w"]:
    """Normalised latents of pictures [N, H, W, 3] in fp16, by the posterior's mean.

    Small batches fit the cache of a CPU: 8 is 1.7 times as fast as 64. A GPU gets 16 times `batch`.
    """
    batch *= 1 if vae.device.type == "cpu" else 16
    parts = []
    for i in range(0, len(images), batch):
        x = to_tensor(images[i : i + batch]).to(vae.device, vae.dtype)
        x = x.contiguous(memory_format=torch.channels_last)
        mean = vae.encode(x).latent_dist.mean  # pyright: ignore[reportAttributeAccessIssue]
        parts.append(normalised(vae, mean.float()).half().cpu())
    return torch.cat(parts)


def make_composites(
    vae: AutoencoderKL, images: NDArray[np.uint8], grid: tuple[int, int], count: int
) -> Composites:
    """Composites of random, unrelated panels, encoded as a whole. Each grid always gets the same ones."""
    rows, columns = grid
    rng = np.random.default_rng((rows, columns))
    panels = rng.integers(len(images), size=(count, rows * columns))
    parts = []
    for some in np.array_split(panels, max(1, count // 64)):  # 64 sheets of pixels at a time
        sheets = np.stack([in_grid(images[each], rows, columns) for each in some])
        parts.append(encode_latents(vae, sheets, batch=2))
    return torch.cat(parts), panels.tolist()
