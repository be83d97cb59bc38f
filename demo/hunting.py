"""The work of the Hunt tab: a search for heads, whose pictures can be watched."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar

from PIL import Image
from torch import Tensor

from dit_heads import HeadSet
from dit_heads.demo.jobs import Job
from dit_heads.demo.limits import Limits, check_text
from dit_heads.errors import InputError
from dit_heads.families import layout_of
from dit_heads.hunt import HuntConfig
from dit_heads.hunt.config import style_prompts
from dit_heads.hunt.hunter import HeadHunter, contact_sheet
from dit_heads.hunt.result import Result
from dit_heads.hunt.rounds import picture_count
from dit_heads.hunt.scorer import InProcess, Scorer
from dit_heads.hunt.screen import Screening, Slopes
from dit_heads.hunt.trials import TrialBatch
from dit_heads.io.quiet import quiet_libraries
from dit_heads.models import text_arguments
from dit_heads.objectives import Objective, load_objective

PROMPTS = 8  # the most of a search on this page
BATCH = 8
SHOWN = 12  # pictures that are in sight while a search runs


@dataclass(frozen=True)
class Hunted:
    """What a search found.

    Attributes:
        heads: the chosen heads, best first.
        gains: of each head that was drawn, its mean score less that of pictures without heads.
        unguided, guided: mean scores without heads and with the chosen ones together.
        pictures: number of pictures that were drawn.
        sheet: pictures without and with the heads.
        scale, softness: the strength that the heads were searched at.
    """

    heads: HeadSet
    gains: Mapping[str, float]
    unguided: float
    guided: float
    pictures: int
    sheet: Image.Image
    scale: float
    softness: float


@dataclass(frozen=True)
class Seen:
    """The last pictures of a search, each with what it was drawn for."""

    pictures: tuple[tuple[Image.Image, str], ...] = ()


@dataclass(frozen=True)
class Hunting:
    """Search the heads of a model.

    Args:
        model: its name.
        prompts: what is drawn.
        objective: name of the score to raise, as `dit-heads hunt` takes it.
        budget: pictures, about; the fast search draws the more of a head the better it does.
        count: heads to find.
        steps: denoising steps of each picture.
    """

    model: str
    prompts: tuple[str, ...]
    objective: str = "clip"
    budget: int = 64
    count: int = 3
    steps: int = 8
    scale: float = 3.0
    softness: float = 1.0
    long: ClassVar[bool] = True

    def __call__(self, pipe: Any, job: Job) -> Hunted:
        job.update(note="Loading the score")
        call = {"guidance_scale": 1.0, **text_arguments(self.model)}
        scorer = Watched(pipe, self._objective(), call, job)
        with tempfile.TemporaryDirectory(prefix="dit-heads-hunt-") as folder:
            hunter = HeadHunter.on(InProcess(scorer), self.prompts, Path(folder), self._config(pipe))
            scorer.total = self._total(hunter)
            job.update(note="Ranking all heads by one gradient", steps=scorer.total)
            result = hunter.run()
            job.update(note="Drawing the contact sheet")
            guided = fmean(hunter.scores([result.heads])[0])
            return self._hunted(result, guided, contact_sheet(hunter, result, rows=3))

    def _objective(self) -> Objective:
        from dit_heads.embedded.objective import embedded_clip

        with quiet_libraries():
            return load_objective(self.objective, {"clip": embedded_clip})

    def _config(self, pipe: Any) -> HuntConfig:
        layout = layout_of(pipe.transformer)
        every = len(self.prompts) * (1 + sum(layout.heads) + sum(layout.image_only_heads))
        return HuntConfig(
            method="fast",
            share=min(1.0, max(self.budget, 2) / every),
            per_round=self.count,
            scale=self.scale,
            softness=self.softness,
            steps=self.steps,
            batch=BATCH,
        )

    def _total(self, hunter: HeadHunter) -> int:
        """Pictures of the search, and those of the chosen heads together."""
        found = picture_count(hunter.config, len(hunter.pairs), len(hunter.candidates))
        return found + len(hunter.pairs)

    def _hunted(self, result: Result, guided: float, sheet: Image.Image) -> Hunted:
        scores = result.rounds[0].scores
        gains = {str(h): fmean(s) - fmean(result.unguided[: len(s)]) for h, s in scores.items()}
        return Hunted(
            heads=result.heads,
            gains=gains,
            unguided=fmean(result.unguided),
            guided=guided,
            pictures=result.pictures,
            sheet=sheet,
            scale=self.scale,
            softness=self.softness,
        )


class Watched(Scorer):
    """A scorer that shows each batch of pictures once it is painted, and gives way to others before each."""

    def __init__(self, pipe: Any, objective: Objective, call: Mapping[str, Any], job: Job) -> None:
        super().__init__(pipe, objective, call)
        self.job, self.total, self._count = job, 1, 0
        self._last: list[tuple[Image.Image, str]] = []

    def __call__(self, batch: TrialBatch) -> list[float]:
        self.job.give_way()
        return super().__call__(batch)

    def screen(self, batch: TrialBatch, screening: Screening) -> tuple[list[float], Slopes]:
        """As of a scorer; here, too, others go first."""
        self.job.give_way()
        return super().screen(batch, screening)

    def paint(self, batch: TrialBatch) -> Tensor:
        """The pictures of a batch, shown."""
        images = super().paint(batch)
        drawn = zip(self._pictures(images), batch, strict=True)
        named = [(image, trial.heads or "no heads") for image, trial in drawn]
        self._last = [*reversed(named), *self._last][:SHOWN]
        self._count += len(batch)
        self.job.update(
            note="Drawing with the most promising heads",
            step=min(self._count, self.total),
            steps=self.total,
            preview=Seen(tuple(self._last)),
        )
        return images

    def _pictures(self, images: Tensor) -> list[Image.Image]:
        processor = self.pipe.image_processor
        return processor.numpy_to_pil(processor.pt_to_numpy(images))


def hunting(
    model: str, text: str, style: str, objective: str, budget: float, count: float, limits: Limits
) -> Hunting:
    """A search as a visitor asks for it.

    Args:
        text: prompts, one a line.
        style: words such as "line drawing" that stand before each prompt; "" for none.

    Raises:
        InputError: for no prompts, too many, and what is beyond the limits.
    """
    check_text(limits, prompts=text, style=style)
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    if not 1 <= len(prompts) <= PROMPTS:
        raise InputError(f"prompts: expected 1 to {PROMPTS}, one a line, got {len(prompts)}")
    if style.strip():
        prompts = style_prompts("{style}, {content}", [style.strip()], prompts)
    if not (1 <= count <= 8 and 8 <= budget <= 400):
        raise InputError("budget, heads: expected 8 to 400 pictures and 1 to 8 heads")
    return Hunting(model, tuple(prompts), objective, int(budget), int(count))
