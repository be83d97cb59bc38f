"""The loss of sets of images: which sample gets which noise, and what each panel counts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dit_heads.loras.cache import CachedEncoder
from dit_heads.loras.config import LossConfig
from dit_heads.loras.sets.dataset import Sample, SetDataset
from dit_heads.loras.sets.panels import PIXELS, Grid, loss_weight
from dit_heads.training.batch import Batch
from dit_heads.training.flow import flux_shift, logit_normal_sigmas, mode_sigmas, shifted
from dit_heads.training.loop import Part

UNSAID = ""  # the caption of a sample whose caption is dropped, as classifier-free guidance encodes it
LEVELS = (0.125, 0.375, 0.625, 0.875)  # noise levels of the validation loss


class SetLoss:
    """The flow-matching loss of a batch of sets, with prior preservation (arXiv 2208.12242) if there is a
    `prior`: called as `training.fit` calls a loss.

    Noise, noise level and dropout of a sample depend on the seed, the step and its place in the whole batch,
    not on how the batch is shared. `shift` as in `flow.shifted`, a number or None for FLUX's by resolution.
    """

    def __init__(
        self,
        transformer: Any,
        data: SetDataset,
        latents: CachedEncoder,
        texts: CachedEncoder,
        config: LossConfig,
        *,
        batch_size: int,
        seed: int,
        shift: float | None,
        prior: SetDataset | None = None,
    ) -> None:
        self.transformer, self.data, self.latents, self.texts = transformer, data, latents, texts
        self.config, self.batch_size, self.seed, self.shift = config, batch_size, seed, shift
        self.prior = prior

    def __call__(self, part: Part, _: torch.Generator) -> tuple[Tensor, dict[str, float | Tensor]]:
        loss = self._batch(self.data, part, "set").loss(self.transformer)
        if self.prior is None:
            return loss, {}
        kept = self._batch(self.prior, part, "prior").loss(self.transformer)
        figures: dict[str, float | Tensor] = {"sets": loss.detach(), "prior": kept.detach()}
        return loss + self.config.prior_weight * kept, figures

    def _batch(self, data: SetDataset, part: Part, what: str) -> Batch:
        places = range(self.batch_size)[part.index :: part.count]
        samples = data.batch_at(part.step, self.batch_size)[part.index :: part.count]
        generators = [drawing(self.seed, what, part.step, place) for place in places]
        said = [
            UNSAID if torch.rand((), generator=g) < self.config.caption_dropout else sample.caption
            for g, sample in zip(generators, samples, strict=True)
        ]
        shift = flux_shift(_tokens(samples[0].grid)) if self.shift is None else self.shift
        sigmas = [shifted(_sigma(self.config, g), shift) for g in generators]
        weights = self.config.panel_weights if what == "set" else ()
        return self.batch(samples, said, torch.cat(sigmas), generators, weights)

    def batch(
        self,
        samples: Sequence[Sample],
        said: Sequence[str],
        sigmas: Tensor,
        generators: Sequence[torch.Generator],
        weights: Sequence[float] = (),
    ) -> Batch:
        """Samples with captions, noise levels and noise from generators of their own, on the device."""
        latents = torch.stack([self.latents(sample)["latents"].float() for sample in samples])
        noise = [torch.randn(latents.shape[1:], generator=g) for g in generators]
        texts = [self.texts(caption) for caption in said]
        weight = loss_weight(samples[0].grid, weights).expand(len(samples), 1, -1, -1) if weights else None
        return Batch(
            latents,
            torch.stack([text["text"] for text in texts]),
            torch.stack([text["pooled"] for text in texts]),
            sigmas,
            torch.stack(noise),
            weight=weight,
        ).to(next(self.transformer.parameters()).device)

    @torch.no_grad()
    def validation(self, data: SetDataset) -> float:
        """The mean loss of sets at fixed noise levels with fixed noise: comparable between any two steps."""
        losses = []
        for number, sample in enumerate(data.samples):
            for level in LEVELS:
                generator = drawing(self.seed, "validation", number, int(1000 * level))
                sigma = torch.tensor([level])
                weights = self.config.panel_weights
                batch = self.batch([sample], [sample.caption], sigma, [generator], weights)
                losses.append(batch.loss(self.transformer).item())
        return sum(losses) / len(losses)


def drawing(*key: object) -> torch.Generator:
    """A generator for what `key` names, unlike that of any other key."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def _sigma(config: LossConfig, generator: torch.Generator) -> Tensor:
    if config.timesteps == "uniform":
        return torch.rand(1, generator=generator)
    if config.timesteps == "mode":
        return mode_sigmas(1, generator, scale=config.mode_scale)
    return logit_normal_sigmas(1, generator, mean=config.timestep_mean, std=config.timestep_std)


def _tokens(grid: Grid) -> int:
    return grid.height * grid.width // PIXELS["tokens"] ** 2
