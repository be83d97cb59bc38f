"""The work of the In-context tab: a set of pictures of one joint caption, some of them given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from dit_heads.cli.draw_set import draw_set, grid_of, panel_side, unread_words
from dit_heads.cli.in_context import SetSettings, check_set
from dit_heads.demo.drawing import Lora, attach_loras
from dit_heads.demo.facts import Facts
from dit_heads.demo.jobs import Job
from dit_heads.demo.limits import MAX_SEED, Limits, check_most, check_text
from dit_heads.demo.preview import Previews
from dit_heads.embedded.world.text import unknown_words
from dit_heads.errors import InputError
from dit_heads.families import pipelines_of
from dit_heads.loras.sets.captions import JointCaption
from dit_heads.loras.sets.grid import Grid
from dit_heads.loras.sets.panels import split
from dit_heads.models import EMBEDDED
from dit_heads.tasks.markers import PLACES

LEAST = 0.5  # share of its usual side that a panel of a layout has at least


@dataclass(frozen=True)
class DrawnSet:
    """A set.

    Attributes:
        image: all panels as one picture.
        panels: each of them.
        settings: what it depends on, beside the given panels.
        given: numbers of the given panels.
        notes: sentences about what the model could not follow.
    """

    image: Image.Image
    panels: tuple[Image.Image, ...]
    settings: SetSettings
    given: tuple[int, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class DrawingSet:
    """Draw one set.

    Args:
        settings: what it depends on. Their LoRAs are names; the files are `loras`.
        loras: the LoRAs.
        given: panels to keep, of the size of their cells, by their numbers.
    """

    settings: SetSettings
    loras: Sequence[Lora] = ()
    given: Mapping[int, Image.Image] = field(default_factory=dict)

    def __call__(self, pipe: Any, job: Job) -> DrawnSet:
        settings = self.settings
        check_negative_prompt(pipe, settings)
        attach_loras(pipe, self.loras)
        grid = grid_of(settings, pipe.transformer)
        job.update(steps=settings.steps)
        previews = Previews(job, settings.steps, size=(grid.height, grid.width))
        image = draw_set(pipe, settings, self.given, previews)
        panels, given = tuple(split(image, grid)), tuple(sorted(self.given))
        return DrawnSet(image, panels, settings, given, notes_on(pipe, settings))


def layouts(facts: Facts, most: int) -> list[tuple[int, int]]:
    """Rows and columns of the sets that a model can draw.

    Args:
        facts: of the model.
        most: pixels of a picture.
    """
    usual = panel_side(facts.side, None, 1, 1)
    return [
        (rows, columns)
        for rows, columns in PLACES
        for side in [panel_side(facts.side, facts.largest, rows, columns)]
        if side >= LEAST * usual and side * side * rows * columns <= most
    ]


def grid_for(facts: Facts, rows: int, columns: int) -> Grid:
    """The panels of a set of a model."""
    side = panel_side(facts.side, facts.largest, rows, columns)
    return Grid.equal(rows, columns, height=side, width=side)


def joint_caption(rows: int, columns: int, summary: str, texts: Sequence[str]) -> str:
    """The caption of a set.

    Raises:
        InputError: for a panel without words, and for a marker inside of a text.
    """
    markers = PLACES[rows, columns]
    if empty := [mark for mark, text in zip(markers, texts, strict=True) if not text.strip()]:
        raise InputError(f"caption: please describe each panel; there are no words for {', '.join(empty)}")
    return str(JointCaption(summary, tuple(texts), markers))


def check_set_settings(settings: SetSettings, given: Mapping[int, object], limits: Limits) -> None:
    """What can be known without the model.

    Raises:
        InputError: for settings beyond the limits, a caption that does not fit, and for all panels given.
    """
    check_text(limits, caption=settings.prompt, negative_prompt=settings.negative_prompt)
    check_set(settings)
    check_most(limits.steps, steps=settings.steps)
    check_most(limits.scale, guidance_scale=settings.guidance_scale)
    check_most(MAX_SEED, seed=settings.seed)
    check_most(limits.pixels, pixels=(settings.width or 1) * (settings.height or 1))
    check_most(limits.loras, loras=len(settings.loras))
    if len(given) == settings.rows * settings.columns:
        raise InputError("panels: all of them are given; take one out, and it will be drawn")


def check_negative_prompt(pipe: Any, settings: SetSettings) -> None:
    """Raise InputError for a negative prompt that nothing reads."""
    distilled = pipelines_of(pipe.transformer).distilled
    if settings.negative_prompt and (distilled or settings.guidance_scale <= 1):
        raise InputError(
            "negative_prompt: expected none, as nothing reads it here; with classifier-free guidance, a "
            "guidance_scale above 1 would"
        )


def notes_on(pipe: Any, settings: SetSettings) -> tuple[str, ...]:
    """What the model could not read of a caption."""
    notes = []
    if lost := unread_words(pipe, settings):
        notes.append(f"The caption is too long; these words were not read: {lost}")
    if settings.model in EMBEDDED and (words := unknown_words(settings.prompt)):
        notes.append(f"This small model has never read: {', '.join(words)}")
    return tuple(notes)
