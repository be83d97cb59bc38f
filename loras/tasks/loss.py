"""The flow-matching loss of a task: which sample gets which noise, noise level and prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dit_heads.families import pipelines_of
from dit_heads.families.latents import denormalised
from dit_heads.loras.config import LossConfig
from dit_heads.loras.tasks.task import EMPTY_CAPTION, Example, Task
from dit_heads.training.batch import Batch
from dit_heads.training.flow import logit_normal_sigmas, mode_sigmas, scheduler_shift, shifted
from dit_heads.training.generators import keyed_generator
from dit_heads.training.loop import Part

VALIDATION_SIGMAS = (0.125, 0.375, 0.625, 0.875)


class FlowLoss:
    """The loss of a batch, with prior preservation (arXiv 2208.12242) if the task has a prior.

    It is called as `training.fit` calls a loss. Noise, noise level and dropout of a sample depend on the
    seed, the step and its place in the whole batch, not on how the batch is shared.

    Args:
        transformer: what is trained.
        task: where samples come from.
        config: settings of the loss.
        batch_size: samples in a batch, over all processes.
        seed: of noise, noise levels and dropout.
        scheduler: config of the pipeline's scheduler, whose shift noise levels get unless `config` has one.
        vae: the autoencoder, whose decoded pixels are compared if `config` gives them a weight.
    """

    def __init__(
        self,
        transformer: Any,
        task: Task,
        config: LossConfig,
        *,
        batch_size: int,
        seed: int,
        scheduler: Any,
        vae: Any = None,
    ) -> None:
        self.transformer, self.task, self.config = transformer, task, config
        self.batch_size, self.seed, self.scheduler, self.vae = batch_size, seed, scheduler, vae

    def __call__(self, part: Part, _: torch.Generator) -> tuple[Tensor, dict[str, float | Tensor]]:
        examples = self.task.examples(part, self.batch_size)
        clean = self._pixel_loss if self.config.pixel_weight else None
        loss = self._noised(examples, part, "set").loss(self.transformer, clean)
        prior = self.task.prior(part, self.batch_size)
        if not prior:
            return loss, {}
        kept = self._noised(prior, part, "prior").loss(self.transformer)
        figures: dict[str, float | Tensor] = {"sets": loss.detach(), "prior": kept.detach()}
        return loss + self.config.prior_weight * kept, figures

    @torch.no_grad()
    def validation(self) -> float | None:
        """The mean loss of the validation samples, None without any.

        Noise levels and noise are fixed, so that any two steps can be compared."""
        losses = [batch.loss(self.transformer).item() for batch in self._validation_batches()]
        return sum(losses) / len(losses) if losses else None

    def _validation_batches(self) -> Iterator[Batch]:
        for number, example in enumerate(self.task.validation()):
            for level in VALIDATION_SIGMAS:
                generator = keyed_generator(self.seed, "validation", number, int(1000 * level))
                yield self._batch([example], [example.prompt], torch.tensor([level]), [generator])

    def _noised(self, examples: Sequence[Example], part: Part, kind: str) -> Batch:
        """A part of a batch, each sample with the random numbers of its place."""
        places = range(self.batch_size)[part.index :: part.count]
        generators = [keyed_generator(self.seed, kind, part.step, place) for place in places]
        each = list(zip(generators, examples, strict=True))
        dropped = [bool(torch.rand((), generator=g) < self.config.caption_dropout) for g in generators]
        prompts = [
            EMPTY_CAPTION if drop and example.droppable else example.prompt
            for drop, example in zip(dropped, examples, strict=True)
        ]
        shift = self.config.shift or scheduler_shift(self.scheduler, self._tokens(examples[0].latents))
        sigmas = [shifted(_sigma(self.config, g), shift * example.shift) for g, example in each]
        return self._batch(examples, prompts, torch.cat(sigmas), generators)

    def _batch(
        self,
        examples: Sequence[Example],
        prompts: Sequence[Any],
        sigmas: Float[Tensor, " B"],
        generators: Sequence[torch.Generator],
    ) -> Batch:
        """Samples with prompts, noise levels and noise, on the transformer's device."""
        latents = torch.stack([example.latents.float() for example in examples])
        noise = torch.stack([torch.randn(latents.shape[1:], generator=g) for g in generators])
        text, pooled = self.task.embed(prompts)
        source = self._source(examples) if self.task.extra_channels else None
        weight, reference = (
            _stacked([getattr(e, name) for e in examples]) for name in ("weight", "reference")
        )
        batch = Batch(latents, text, pooled, sigmas, noise, source, reference, weight)
        return batch.to(next(self.transformer.parameters()).device)

    def _pixel_loss(
        self, implied: Float[Tensor, "B C H W"], latents: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, ""]:
        """The mean distance of decoded pixels in [-1, 1] (Edit2Perceive, arXiv 2511.18673), weighted."""
        wanted, got = (denormalised(self.vae, part.to(self.vae.dtype)) for part in (latents, implied))
        with torch.no_grad():
            target = self.vae.decode(wanted).sample
        return self.config.pixel_weight * (self.vae.decode(got).sample - target).abs().mean()

    def _tokens(self, latents: Float[Tensor, "C H W"]) -> int:
        """Number of image tokens of a picture."""
        return latents[0].numel() // pipelines_of(self.transformer).patch ** 2

    def _source(self, examples: Sequence[Example]) -> Float[Tensor, "B S H W"]:
        shape = self.task.extra_channels, *examples[0].latents.shape[1:]
        return torch.stack([torch.zeros(shape) if e.source is None else e.source.float() for e in examples])


def _stacked(parts: Sequence[Tensor | None]) -> Tensor | None:
    """The parts that samples have, None if none has one."""
    there = [part.float() for part in parts if part is not None]
    return torch.stack(there) if there else None


def _sigma(config: LossConfig, generator: torch.Generator) -> Float[Tensor, " 1"]:
    if config.timesteps == "uniform":
        return torch.rand(1, generator=generator)
    if config.timesteps == "mode":
        return mode_sigmas(1, generator, scale=config.mode_scale)
    return logit_normal_sigmas(1, generator, mean=config.timestep_mean, std=config.timestep_std)
