"""The work of the Train tab: the one trainer, on a copy of the model, watched and stopped."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from PIL import Image

from dit_heads.demo.isolation import MAKING
from dit_heads.demo.jobs import Cancelled, Job
from dit_heads.demo.limits import MAX_SEED, Limits
from dit_heads.demo.lora_files import FILE, LoraFile, layout_in
from dit_heads.demo.set_files import captions_of
from dit_heads.demo.shelf import Shelf
from dit_heads.errors import InputError
from dit_heads.io.pictures import read_image
from dit_heads.loras.config import (
    AdapterConfig,
    DataConfig,
    LossConfig,
    OptimizerConfig,
    TrainConfig,
    WatchConfig,
)
from dit_heads.models import EMBEDDED

BATCH = 4
DRAWINGS = 4  # times that a run draws
DRAWING_STEPS = 12
TOKENS = 128


@dataclass(frozen=True)
class Trained:
    """What was learned.

    Attributes:
        lora: its file, on the shelf.
        done, steps: steps that were taken, and those that were asked for.
        points: the loss by steps.
        drawings: what was drawn on the way, with the step of each.
        caption: a joint caption of what it learned from.
    """

    lora: LoraFile
    done: int
    steps: int
    points: tuple[tuple[int, float], ...]
    drawings: tuple[tuple[int, Image.Image], ...]
    caption: str


@dataclass(frozen=True)
class Learning:
    """A run under way: the loss by steps, and drawings with their steps."""

    points: tuple[tuple[int, float], ...] = ()
    drawings: tuple[tuple[int, Image.Image], ...] = ()


@dataclass(frozen=True)
class Training:
    """Train a LoRA.

    Args:
        model: name of the model.
        name: of the LoRA's file.
        write: makes the folder of sets that it is given the name of; its second argument, which it calls now
            and then, ends it when the job is cancelled.
        rows, columns, side: of a set's panels.
        shelf: where the LoRA goes.
        steps: of the training loop.
        rank: of the LoRA.
        seed: of the run.
        precision: as `TrainConfig` has it.
    """

    model: str
    name: str
    write: Callable[[Path, Callable[[], None]], None]
    rows: int
    columns: int
    side: int
    shelf: Shelf
    steps: int = 120
    rank: int = 8
    seed: int = 0
    precision: Any = "auto"

    def __call__(self, pipe: Any, job: Job) -> Trained:
        from dit_heads.loras.stopping import Stopped
        from dit_heads.loras.train import train

        with tempfile.TemporaryDirectory(prefix="dit-heads-train-") as folder:
            job.update(note="Preparing the sets", steps=self.steps)
            root, out = Path(folder) / "sets", Path(folder) / "run"
            self.write(root, job.check)
            caption = next(iter(captions_of(root)), "")
            job.update(note="Loading a copy of the model, and encoding the sets")
            watch = Watching(job, self.steps, out)
            config = self.config(root, out, caption)
            try:
                path = train(config, watch=watch, stop=lambda: job.stopped, making=_Making(job))
            except Stopped as error:
                job.check()
                raise Cancelled from error
            return self._trained(path, watch, caption)

    def config(self, root: Path, out: Path, caption: str) -> TrainConfig:
        """The settings of the run, as `dit-heads train` takes them; those of loras/configs, but shorter."""
        return TrainConfig(
            model=self.model,
            out=out,
            seed=self.seed,
            data=DataConfig(
                root=root,
                rows=self.rows,
                columns=self.columns,
                sizes=((self.side, self.side),),
                text_tokens=TOKENS if self.model in EMBEDDED else None,
            ),
            adapter=AdapterConfig(rank=self.rank),
            loss=LossConfig(shift=4.0, caption_dropout=0.1),
            optimization=OptimizerConfig(
                steps=self.steps,
                batch_size=BATCH,
                learning_rate=6e-3,
                optimizer="muon",
                warmup=min(30, self.steps // 4),
                decline=0.5,
                ema=0.96,
                precision=self.precision,
            ),
            watch=WatchConfig(
                prompts=(caption,) if caption else (),
                sample_every=max(1, -(-self.steps // DRAWINGS)),
                sample_steps=DRAWING_STEPS,
                guidance_scale=4.0,
                checkpoint_minutes=1e6,
            ),
        )

    def _trained(self, path: Path, watch: Watching, caption: str) -> Trained:
        def fill(folder: Path) -> Mapping[str, str]:
            shutil.copyfile(path, folder / FILE)
            return {"name": self.name, "model": self.model}

        entry = self.shelf.put(fill)
        kept = entry.folder / FILE
        lora = LoraFile(entry.id, self.name, kept, layout_in(kept))
        seen = watch.seen
        return Trained(lora, watch.done, self.steps, seen.points, seen.drawings, caption)


class Watching:
    """Called by the trainer after every step: tells the job how far it is, and shows loss and drawings."""

    def __init__(self, job: Job, steps: int, out: Path) -> None:
        self.job, self.steps, self.out, self.done = job, steps, out, 0
        self.seen = Learning()
        self._files: set[Path] = set()
        self._began = time.perf_counter()

    def __call__(self, step: int, figures: Mapping[str, float], average: Mapping[str, Any]) -> None:
        points, drawings = self.seen.points, self.seen.drawings
        if "loss" in figures and step > 1:  # a mean of ten steps; the first line is one batch
            points = (*points, (step, figures["loss"]))
        new = [path for path in sorted((self.out / "samples").glob("*.png")) if path not in self._files]
        drawings = (*drawings, *((step, read_image(path)) for path in new))
        self._files.update(new)
        if (points, drawings) != (self.seen.points, self.seen.drawings):
            self.seen = Learning(points, drawings)
        if not self.done:
            self._began = time.perf_counter()  # the first step takes longer than the others
        self.done = step
        self.job.update(note=self._note(step), step=step, steps=self.steps, preview=self.seen)

    def _note(self, step: int) -> str:
        loss = f" \u00b7 loss {self.seen.points[-1][1]:.3f}" if self.seen.points else ""
        if step < 4:
            return f"Training{loss}"
        left = (time.perf_counter() - self._began) / (step - 1) * (self.steps - step)
        return f"Training{loss} \u00b7 about {_duration(left)} left"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


class _Making:
    """Held while the trainer makes modules; a job that was cancelled before its first step ends here."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def __enter__(self) -> None:
        self.job.check()
        MAKING.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        MAKING.release()
        if error is None and self.job.stopped:
            raise Cancelled


def check_training(limits: Limits, steps: object, rank: object, seed: object) -> tuple[int, int, int]:
    """Steps, rank and seed as whole numbers. Raises InputError for what is beyond the limits."""
    bounds = {"steps": (steps, 1, limits.training_steps), "rank": (rank, 1, limits.rank)}
    bounds["seed"] = seed, 0, MAX_SEED
    for name, (value, least, most) in bounds.items():
        if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= most:
            raise InputError(f"{name}: expected a whole number from {least} to {most}, got {value!r}")
    found = (int(value) for value, *_ in bounds.values())  # pyright: ignore[reportArgumentType]
    return next(found), next(found), next(found)
