"""What a LoRA run shows and keeps on the way: drawings, a validation loss, figures for trackers, files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.tracking import TensorBoardTracker, WandBTracker
from torch import Tensor, nn

from dit_heads.errors import InputError
from dit_heads.io.atomic import write_text
from dit_heads.io.pictures import write_png
from dit_heads.loras.config import TrainConfig, WatchConfig, as_mapping
from dit_heads.loras.stopping import Stop, Stopped, stopping
from dit_heads.loras.tasks.loss import FlowLoss
from dit_heads.loras.weights.files import save_lora
from dit_heads.training.checkpoints import load_weights
from dit_heads.training.precision import HALF


class Watcher:
    """Called by `training.fit` after every step, on the main process.

    Args:
        model: all that is trained, the same module that `fit` gets.
        pipe: draws with it.
        loss: of the run's task.
        config: settings of the run.
        precision: that the run trains in.
        stop: asked before each call of the model whether to stop, which leaves out the rest of what it draws.
    """

    def __init__(
        self,
        model: nn.Module,
        pipe: Any,
        loss: FlowLoss,
        config: TrainConfig,
        precision: str,
        stop: Stop | None = None,
    ) -> None:
        self.model, self.pipe, self.loss, self.config, self.stop = model, pipe, loss, config, stop
        self.half = HALF.get(precision)
        self.trackers = [_tracker(name, config) for name in config.watch.track]

    def __call__(self, step: int, figures: Mapping[str, float], average: Mapping[str, Tensor]) -> None:
        watch, last = self.config.watch, step == self.config.optimization.steps
        if figures:
            self._track(figures, step)
        due = watch.sample_every and (step % watch.sample_every == 0 or last)
        keep = watch.keep_every and step % watch.keep_every == 0 and not last
        if not (due or keep):
            return
        with averaged(self.model, average):
            if due:
                self._look(step)
            if keep:
                save_lora(self.pipe.transformer, self.config.out / f"lora-{step:06}.safetensors")

    def _look(self, step: int) -> None:
        """Measure and draw what the run has learned so far."""
        device = self.pipe.transformer.device.type
        half = torch.autocast(device, self.half, enabled=self.half is not None)
        self.model.eval()
        try:
            with torch.no_grad(), half, stopping(self.pipe, self.stop):
                loss = self.loss.validation()
                figures = self._draw(step)
        except Stopped:
            return
        finally:
            self.model.train()
        measured = {} if loss is None else {"validation": loss}
        if measured or figures:
            self._track(measured | figures, step)
            self._write(step, loss, figures)

    def _draw(self, step: int) -> dict[str, float]:
        """Write the task's drawings; the means of their figures."""
        found: dict[str, list[float]] = {}
        for drawing in self.loss.task.drawings(self.pipe):
            path = self.config.out / f"samples/step-{step:06}-{drawing.name}.png"
            write_png(drawing.image, path, dict(drawing.settings))
            for name, value in drawing.figures.items():
                found.setdefault(name, []).append(value)
        return {name: sum(values) / len(values) for name, values in found.items()}

    def _write(self, step: int, loss: float | None, figures: Mapping[str, float]) -> None:
        """Add a line to `validation.csv`, in place of those of steps that a resumed run repeats."""
        path = self.config.out / "validation.csv"
        rows = path.read_text().splitlines()[1:] if path.exists() else []
        rows = [row for row in rows if int(row.split(",")[0]) < step]
        values = ["" if loss is None else f"{loss:.6g}", *(f"{value:.6g}" for value in figures.values())]
        head = ",".join(["step", "loss", *figures])
        write_text(path, "\n".join([head, *rows, ",".join([str(step), *values]), ""]))

    def _track(self, figures: Mapping[str, float], step: int) -> None:
        for tracker in self.trackers:
            tracker.log(dict(figures), step=step)


@contextmanager
def averaged(model: nn.Module, average: Mapping[str, Tensor]) -> Iterator[None]:
    """Give a model its averaged weights for a while.

    Args:
        model: what is trained.
        average: averaged weights by the names of the model's parameters.
    """
    kept = {name: p.detach().clone() for name, p in model.named_parameters() if name in average}
    try:
        load_weights(model, average)
        yield
    finally:
        load_weights(model, kept)


def check_tracking(config: WatchConfig) -> None:
    """Refuse a tracker whose library is missing, before a run depends on it. Raises `InputError`."""
    from accelerate.utils import is_tensorboard_available, is_wandb_available

    there = {"tensorboard": is_tensorboard_available, "wandb": is_wandb_available}
    for name in config.track:
        if not there[name]():
            raise InputError(f"track: {name} is missing: pip install {name}")


def _tracker(name: str, config: TrainConfig) -> Any:
    if name == "tensorboard":
        tracker = TensorBoardTracker("tensorboard", logging_dir=config.out)
    else:
        tracker = WandBTracker(config.out.resolve().name)
    tracker.start()
    tracker.store_init_configuration(_flat(as_mapping(config)))
    return tracker


def _flat(config: Mapping[str, Any]) -> dict[str, str | int | float | bool]:
    """Settings without their sections, as trackers take them."""
    found: dict[str, str | int | float | bool] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= _flat(value)
        else:
            found[key] = value if isinstance(value, str | int | float | bool) else str(value)
    return found
