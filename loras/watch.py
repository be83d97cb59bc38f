"""What a LoRA run shows and keeps on the way: drawings, a validation loss, figures for trackers, files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.tracking import TensorBoardTracker, WandBTracker
from torch import Tensor, nn

from dit_heads.errors import InputError
from dit_heads.families import pipelines_of
from dit_heads.io.atomic import write_text
from dit_heads.io.pictures import write_png
from dit_heads.loras.config import TrainConfig, WatchConfig, as_mapping
from dit_heads.loras.sets.dataset import SetDataset
from dit_heads.loras.tasks.in_context import UNSAID, SetLoss
from dit_heads.loras.weights.files import save_lora
from dit_heads.training.checkpoints import load_weights


class Watcher:
    """Called by `training.fit` after every step, on the main process."""

    def __init__(
        self, pipe: Any, loss: SetLoss, config: TrainConfig, validation: SetDataset | None, precision: str
    ) -> None:
        self.pipe, self.loss, self.config, self.validation = pipe, loss, config, validation
        self.half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
        self.trackers = [_tracker(name, config) for name in config.watch.track]

    def __call__(self, step: int, figures: Mapping[str, float], average: Mapping[str, Tensor]) -> None:
        watch, last = self.config.watch, step == self.config.optimization.steps
        if figures:
            self._track(figures, step)
        due = watch.sample_every and (step % watch.sample_every == 0 or last)
        keep = watch.keep_every and step % watch.keep_every == 0 and not last
        if not (due or keep):
            return
        with averaged(self.pipe.transformer, average):
            if due:
                self._look(step)
            if keep:
                save_lora(self.pipe.transformer, self.config.out / f"lora-{step:06}.safetensors")

    def _look(self, step: int) -> None:
        model = self.pipe.transformer
        model.eval()
        try:
            with torch.no_grad(), torch.autocast(model.device.type, self.half, enabled=self.half is not None):
                if self.validation is not None:
                    self._validate(step, self.loss.validation(self.validation))
                for number, prompt in enumerate(self.config.watch.prompts):
                    self._draw(prompt, self.config.out / f"samples/step-{step:06}-{number}.png")
        finally:
            model.train()

    def _validate(self, step: int, loss: float) -> None:
        self._track({"validation": loss}, step)
        path = self.config.out / "validation.csv"
        rows = path.read_text().splitlines()[1:] if path.exists() else []
        rows = [row for row in rows if int(row.split(",")[0]) < step]  # a resumed run repeats the others
        write_text(path, "\n".join(["step,loss", *rows, f"{step},{loss:.6f}", ""]))

    def _draw(self, prompt: str, path: Path) -> None:
        """A composite of a prompt, always from the same noise."""
        grid, watch = self.loss.data[0].grid, self.config.watch
        call = drawing_call(watch, grid.height, grid.width, self.config.seed)
        texts = self._embedded("", prompt) | self._embedded("negative_", UNSAID)
        image = self.pipe(**texts, **call).images[0]
        write_png(image, path, {"prompt": prompt, "seed": self.config.seed, "steps": watch.sample_steps})

    def _embedded(self, prefix: str, prompt: str) -> dict[str, Tensor]:
        if prefix and pipelines_of(self.pipe.transformer).distilled:
            return {}  # no call would read it
        found = {name: part[None].to(self.pipe.device) for name, part in self.loss.texts(prompt).items()}
        return {f"{prefix}prompt_embeds": found["text"], f"{prefix}pooled_prompt_embeds": found["pooled"]}

    def _track(self, figures: Mapping[str, float], step: int) -> None:
        for tracker in self.trackers:
            tracker.log(dict(figures), step=step)


def drawing_call(watch: WatchConfig, height: int, width: int, seed: int) -> dict[str, Any]:
    """How pipelines are asked for a picture, whatever it shows."""
    call: dict[str, Any] = {
        "height": height,
        "width": width,
        "num_inference_steps": watch.sample_steps,
        "generator": torch.Generator().manual_seed(seed),
    }
    return call if watch.guidance_scale is None else call | {"guidance_scale": watch.guidance_scale}


@contextmanager
def averaged(model: nn.Module, average: Mapping[str, Tensor]) -> Iterator[None]:
    """The model with its averaged weights, for a while."""
    kept = {name: p.detach().clone() for name, p in model.named_parameters() if name in average}
    try:
        load_weights(model, average)
        yield
    finally:
        load_weights(model, kept)


def check_tracking(config: WatchConfig) -> None:
    """Raise ValueError for a tracker whose library is missing, before a run depends on it."""
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
