"""What a search computes from a batch: its pictures, their scores, and the slopes of all heads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from dit_heads.families import layout_of
from dit_heads.guidance import HeadGuidance
from dit_heads.guidance.perturb import Perturbation
from dit_heads.hunt.cost import ScreenCost, screen_cost
from dit_heads.hunt.identity import objective_identity, pipeline_identity, plain
from dit_heads.hunt.screen import Recorder, Screening, Slopes, screened
from dit_heads.hunt.trials import Execute, Scored, TrialBatch
from dit_heads.objectives import Objective, checked_scores

HeadCounts = tuple[Sequence[int], Sequence[int]]
"""Number of heads of the joint attention of each block, and of its image-only attention."""


class Scorer:
    """Draws the pictures of a batch side by side, each with its own heads and seed, and scores them.

    A picture's noise depends on its seed alone (common random numbers).

    Args:
        pipe: a text-to-image pipeline.
        objective: what scores its pictures.
        call: further arguments of the pipeline, such as `guidance_scale`, size and text length.
        perturbation, region, temperature: what is done to heads, as for `HeadGuidance`.
    """

    def __init__(
        self,
        pipe: Any,
        objective: Objective,
        call: Mapping[str, Any],
        *,
        perturbation: str = "identity",
        region: str = "joint",
        temperature: float | None = None,
    ) -> None:
        self.pipe, self.objective, self.call = pipe, objective, dict(call)
        self.perturbation = Perturbation(perturbation, region, temperature)

    @cached_property
    def head_counts(self) -> HeadCounts:
        """Number of heads of each block."""
        layout = layout_of(self.pipe.transformer)
        return layout.heads, layout.image_only_heads

    @cached_property
    def identity(self) -> dict[str, Any]:
        """All that scores depend on beside the settings of each picture, as JSON."""
        kind = self.perturbation
        return {
            **pipeline_identity(self.pipe),
            **objective_identity(self.objective),
            "call": plain(self.call, "call"),
            "perturbation": kind.name,
            "region": kind.region,
            **({} if kind.temperature is None else {"temperature": kind.temperature}),
        }

    def __call__(self, batch: TrialBatch) -> list[float]:
        """Draw a batch and score it.

        Returns:
            A score for each picture.

        Raises:
            InputError: if the objective does not give one finite number for each picture.
        """
        return self._scores(batch, self.paint(batch))

    def paint(self, batch: TrialBatch) -> Float[Tensor, "b 3 h w"]:
        """Draw a batch. All its pictures share a setting.

        Returns:
            The pictures in [0, 1].
        """
        first = batch[0]
        kind = self.perturbation
        with (
            HeadGuidance(
                self.pipe,
                [trial.heads for trial in batch],
                scale=first.scale,
                softness=first.softness,
                perturbation=kind.name,
                region=kind.region,
                temperature=kind.temperature,
            )
            if first.heads
            else nullcontext()
        ):
            return self.pipe(
                [trial.prompt for trial in batch],
                num_inference_steps=first.steps,
                generator=[torch.Generator().manual_seed(trial.seed) for trial in batch],
                output_type="pt",
                **self.call,
            ).images.float()

    def screen(self, batch: TrialBatch, screening: Screening) -> tuple[list[float], Slopes]:
        """Draw and score a batch, and differentiate its scores with respect to the softness of each head.

        Returns:
            A score for each picture, and for every head the mean slope over pictures and noise levels.
        """
        with Recorder(self.pipe) as recorder:
            images = self.paint(batch)
        scores, prompts = self._scores(batch, images), [trial.prompt for trial in batch]
        found = screened(
            self.pipe,
            self.objective,
            [(prompts, recorder.calls)],
            scale=screening.scale,
            chosen=screening.chosen,
            perturbation=self.perturbation,
            micro_batch=screening.micro_batch,
        )
        return scores, found

    def cost(self, prompt: str, pictures: int, micro_batch: int | None) -> ScreenCost:
        """What the screen of that many pictures takes; see `cost.screen_cost`."""
        return screen_cost(self.pipe, self.call, prompt, pictures, micro_batch)

    def _scores(self, batch: TrialBatch, images: Tensor) -> list[float]:
        with torch.no_grad():
            return checked_scores(self.objective, images, [trial.prompt for trial in batch]).tolist()


class Backend(Protocol):
    """Where batches are computed: in this process, or by workers. Batches come back in any order.

    Attributes:
        identity: all that scores depend on beside the settings of each picture, as JSON.
        head_counts: number of heads of each block.
    """

    identity: dict[str, Any]
    head_counts: HeadCounts

    def score(self, batches: Sequence[TrialBatch], /) -> Iterable[Scored]:
        """Each batch with a score for each picture."""
        ...

    def paint(self, batches: Sequence[TrialBatch]) -> Iterable[tuple[TrialBatch, Float[Tensor, "b 3 h w"]]]:
        """Each batch with its pictures in [0, 1]."""
        ...

    def screen(
        self, batches: Sequence[TrialBatch], screening: Screening
    ) -> Iterable[tuple[TrialBatch, tuple[list[float], Slopes]]]:
        """Each batch with a score for each picture, and the mean slope of every head."""
        ...

    def cost(self, prompt: str, pictures: int, micro_batch: int | None) -> ScreenCost:
        """What the screen of that many pictures takes; see `cost.screen_cost`."""
        ...


class InProcess:
    """A backend in this process.

    Args:
        scorer: draws and scores.
        execute: scores batches in its place. Default: the scorer, one batch after the other.
    """

    def __init__(self, scorer: Scorer, execute: Execute | None = None) -> None:
        self.scorer, self.score = scorer, execute or in_process(scorer)
        self.identity, self.head_counts, self.cost = scorer.identity, scorer.head_counts, scorer.cost

    def paint(self, batches: Sequence[TrialBatch]) -> Iterator[tuple[TrialBatch, Float[Tensor, "b 3 h w"]]]:
        """Each batch with its pictures in [0, 1], one batch after the other."""
        for batch in batches:
            yield batch, self.scorer.paint(batch)

    def screen(
        self, batches: Sequence[TrialBatch], screening: Screening
    ) -> Iterator[tuple[TrialBatch, tuple[list[float], Slopes]]]:
        """Each batch with its scores and slopes, one batch after the other."""
        for batch in batches:
            yield batch, self.scorer.screen(batch, screening)


def in_process(scorer: Scorer) -> Execute:
    """Score one batch after the other in this process."""

    def execute(batches: Sequence[TrialBatch]) -> Iterator[Scored]:
        for batch in batches:
            yield batch, scorer(batch)

    return execute
