"""The work of the Guide tab: a picture by its settings, and the unguided picture of the same seed."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from dit_heads import HeadSet
from dit_heads.cli.draw import call_arguments, finite_pictures, guidance
from dit_heads.cli.generate import GUIDANCE, Settings
from dit_heads.cli.loras import add_loras
from dit_heads.demo.isolation import MAKING
from dit_heads.demo.jobs import Job
from dit_heads.demo.limits import MAX_SEED, Limits, check_most, check_text
from dit_heads.demo.preview import Previews
from dit_heads.errors import InputError
from dit_heads.families import layout_of, pipelines_of
from dit_heads.models import check_size


@dataclass(frozen=True)
class Drawn:
    """A picture, its settings, and the picture without head guidance; None where there was none to leave
    out."""

    image: Image.Image
    settings: Settings
    unguided: Image.Image | None = None


class Cache:
    """The last pictures by their settings, for all threads."""

    def __init__(self, size: int = 32) -> None:
        self._size, self._lock = size, threading.Lock()
        self._pictures: OrderedDict[Any, Image.Image] = OrderedDict()

    def get(self, key: Any, make: Callable[[], Image.Image]) -> Image.Image:
        with self._lock:
            found = self._pictures.get(key)
        if found is None:
            found = make()
            with self._lock:
                self._pictures[key] = found
                while len(self._pictures) > self._size:
                    self._pictures.popitem(last=False)
        return found.copy()


@dataclass(frozen=True)
class Lora:
    """A LoRA file and the scale that it is used at."""

    path: Path
    scale: float = 1.0


@dataclass(frozen=True)
class Drawing:
    """Draw one picture.

    Args:
        settings: all that the picture depends on, as `dit-heads generate` has them; heads as text.
        loras: LoRAs beside it.
        compare: draw the unguided picture too.
        cache: where unguided pictures are found again.
    """

    settings: Settings
    loras: Sequence[Lora] = ()
    compare: bool = False
    cache: Cache | None = None

    def __call__(self, pipe: Any, job: Job) -> Drawn:
        heads = check_model(pipe, self.settings)
        attach_loras(pipe, self.loras)
        settings = self.settings if heads is not None else unguided(self.settings)
        calls = 2 if self.compare and heads is not None else 1
        steps = calls * settings.steps
        other = None
        if calls == 2:
            bare = unguided(settings)
            job.update(note="Without head guidance")
            make = lambda: self._picture(pipe, job, None, bare, steps, 0)  # noqa: E731
            other = self.cache.get((repr(bare), self.loras), make) if self.cache else make()
        job.update(note="With head guidance" if heads is not None else "", step=steps - settings.steps)
        image = self._picture(pipe, job, heads, settings, steps, steps - settings.steps)
        return Drawn(image, settings, other)

    def _picture(
        self, pipe: Any, job: Job, heads: HeadSet | None, settings: Settings, steps: int, done: int
    ) -> Image.Image:
        previews = Previews(job, steps, done, size_of(pipe, settings))
        with guidance(pipe, heads, settings) if heads is not None else nullcontext():
            return finite_pictures(pipe, **call_arguments(settings), callback_on_step_end=previews)[0]


def check_settings(settings: Settings, limits: Limits) -> None:
    """What can be known without the model.

    Raises:
        InputError: for settings beyond the limits, heads that are no heads, and an empty prompt.
    """
    check_text(limits, prompt=settings.prompt, negative_prompt=settings.negative_prompt)
    if not settings.prompt.strip():
        raise InputError("prompt: expected a description of the picture, got nothing")
    check_most(limits.steps, steps=settings.steps)
    check_most(limits.scale, scale=settings.scale, guidance_scale=settings.guidance_scale)
    check_most(MAX_SEED, seed=settings.seed)
    check_most(1, num_images=settings.num_images)
    check_most(limits.pixels, pixels=(settings.width or 1) * (settings.height or 1))
    if settings.heads is not None:
        check_text(limits, heads=settings.heads)
        HeadSet.parse(settings.heads)


def check_model(pipe: Any, settings: Settings) -> HeadSet | None:
    """The heads of the settings, None for no guidance, once the model is known to follow all of them.

    Raises:
        InputError: for heads that it lacks, a size that it cannot draw, a negative prompt that nothing reads.
    """
    layout = layout_of(pipe.transformer)
    heads = None if settings.heads is None else HeadSet.parse(settings.heads)
    if heads is not None:
        layout.resolve(heads)
    check_size(settings.model, pipe.transformer, width=settings.width, height=settings.height)
    distilled = pipelines_of(pipe.transformer).distilled
    if settings.negative_prompt and (distilled or settings.guidance_scale <= 1):
        raise InputError(
            "negative_prompt: expected none, as nothing reads it here; with classifier-free guidance, a "
            "guidance_scale above 1 would"
        )
    return heads if settings.scale and settings.softness else None


def unguided(settings: Settings) -> Settings:
    """The settings of the same picture without head guidance."""
    usual = Settings()
    return replace(settings, heads=None, **{name: getattr(usual, name) for name in GUIDANCE})


def attach_loras(pipe: Any, loras: Sequence[Lora]) -> None:
    """Give the pipeline's transformer these LoRAs, each at its scale; whoever lent it takes them off.

    Raises:
        InputError: for a file that does not fit, or one that widens the model's input.
    """
    if not loras:
        return
    with MAKING:
        add_loras(pipe, [(lora.path, lora.scale) for lora in loras])


def size_of(pipe: Any, settings: Settings) -> tuple[int, int]:
    """Height and width in pixels."""
    side = pipe.default_sample_size * pipe.vae_scale_factor
    return settings.height or side, settings.width or side
