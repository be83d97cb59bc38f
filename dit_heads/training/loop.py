"""One training loop for everything: any loss, AdamW, weight averaging, atomic checkpoints, exact resume.

A step's data and noise are functions of (seed, step) alone, so a run that was killed and started again gives
the same weights as one that was not. Nothing here knows what is trained.
"""

from __future__ import annotations

import csv
import io
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors import safe_open
from torch import Tensor, nn
from tqdm import tqdm

from dit_heads.errors import InputError
from dit_heads.io.atomic import write_tensors, write_text
from dit_heads.training.optimizers import Descent
from dit_heads.training.precision import training_precision


@dataclass(frozen=True)
class Part:
    """What one forward and backward pass takes of the batch of a step: its samples `index::count`."""

    step: int
    index: int = 0
    count: int = 1


SMALLEST_SCALE = 2.0**-10  # of a loss in fp16: below it, all gradients overflow in one step after another
Loss = Callable[[Part, torch.Generator], "tuple[Tensor, Mapping[str, float | Tensor]]"]
Watch = Callable[[int, Mapping[str, float], Mapping[str, Tensor]], None]


@dataclass(frozen=True)
class FitConfig:
    """`ema` is the decay of the averaged weights, `clip` the largest norm of the gradient. The rate rises
    over `warmup` steps, stays, and falls over the last `decline` share of the run as a cosine to `final_rate`
    times its peak. `optimizer` is "adamw", "adamw8bit" or "muon"; `precision` is "no", "bf16", "fp16" or
    "auto" (a one-second probe of this machine). Each process takes its share of a batch in `accumulate`
    parts."""

    steps: int
    learning_rate: float = 1e-3
    optimizer: str = "adamw"
    warmup: int = 300
    final_rate: float = 0.03
    decline: float = 1.0
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    clip: float = 1.0
    ema: float = 0.999
    precision: str = "auto"
    checkpoint_minutes: float = 5.0
    log_every: int = 20
    seed: int = 0
    accumulate: int = 1


def fit(
    model: nn.Module,
    loss: Loss,
    config: FitConfig,
    folder: Path,
    *,
    until: float | None = None,
    settings: Mapping[str, Any] | None = None,
    watch: Watch | None = None,
) -> nn.Module:
    """Train `model` by `loss(part, generator) -> (mean over the part, figures to log)`, up to its averaged
    weights. Under `accelerate launch`, processes share every batch, and gradients are averaged.

    `folder` gets `checkpoint.safetensors` (weights, average, optimiser, step; renamed into place), `log.csv`
    and `config.json`; a run found there goes on where it stopped, and one of other settings, `settings` of
    the caller among them, is refused (ValueError). `until` stops early at that `time.time()`, with a
    checkpoint, and so do Ctrl-C and SIGTERM once the step is done (KeyboardInterrupt); one process alone can.
    `watch(steps done, figures, averaged weights)` is called after every step and before its checkpoint, so
    that a run that was killed repeats the call rather than misses it; figures come when they are logged.
    Frozen weights and buffers are not stored. Raises ValueError naming the step if its gradient is not
    finite, before it does harm."""
    if config.accumulate < 1:
        raise InputError(f"accumulate: expected at least 1, got {config.accumulate}")
    precision = training_precision(config.precision)
    AcceleratorState._reset_state()  # or one Python process could not train in two precisions
    accelerator = Accelerator(mixed_precision=precision, cpu=not torch.cuda.is_available())
    main, alone = accelerator.is_main_process, accelerator.num_processes == 1
    if until is not None and not alone:
        raise InputError(
            f"until: expected None with {accelerator.num_processes} processes, which would not stop "
            f"at the same step, got {until}"
        )
    with accelerator.main_process_first():
        _claim(folder, config, settings or {})
    model.to(accelerator.device).train()
    weights = {n: p for n, p in model.named_parameters() if p.requires_grad}
    average = {n: p.detach().clone() for n, p in weights.items()}
    descent = Descent(
        weights,
        kind=config.optimizer,
        rate=config.learning_rate,
        betas=config.betas,
        weight_decay=config.weight_decay,
        scaler=accelerator.scaler,
    )
    start, spent = _resume(folder, model, average, descent)
    log = Log(folder / "log.csv", start, save=main)
    began = saved = time.time()
    steps = range(start, config.steps)
    bar = tqdm(steps, initial=start, total=config.steps, desc=folder.name, mininterval=10, disable=not main)
    with _stop_signals(noted=alone) as stopped, _without_cudnn_attention():
        for step in bar:
            _gradients(accelerator, loss, config, step, log)
            _average_gradients(accelerator, weights.values())
            descent.unscale()
            norm: Any = accelerator.clip_grad_norm_(list(weights.values()), config.clip)
            log.add(step, {"gradient": norm})
            _check_finite(float(norm), step, accelerator.scaler)
            descent.step(rate_at(step, config))
            _follow(average, weights, min(config.ema, (1 + step) / (10 + step)))
            shown: dict[str, float] = {}
            if step % config.log_every == 0:
                shown = _over_processes(accelerator, log.means())
                bar.set_postfix({name: f"{value:.4g}" for name, value in shown.items()})
                log.write(shown, spent + time.time() - began)
            if watch is not None:
                watch(step + 1, shown, average)
            now = time.time()
            last = step + 1 == config.steps or (until is not None and now > until) or bool(stopped)
            if main and (last or now - saved > 60 * config.checkpoint_minutes):
                save_checkpoint(folder, model, average, descent, step + 1, spent + now - began)
                saved = now
            if last:
                break
    if stopped:
        raise KeyboardInterrupt
    accelerator.wait_for_everyone()
    load_weights(model, average)
    return model.eval()


@contextmanager
def _stop_signals(*, noted: bool) -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM, if `noted` and in the main thread: the first one waits in a list for the end of a
    step, the second one acts at once. One that the process ignores, as of a job in the background, stays
    ignored. Processes that share a batch could not stop at the same step."""
    seen: list[int] = []
    if not noted or threading.current_thread() is not threading.main_thread():
        yield seen
        return
    handlers = {sign: signal.getsignal(sign) for sign in (signal.SIGINT, signal.SIGTERM)}
    before = {sign: handler for sign, handler in handlers.items() if handler is not signal.SIG_IGN}

    def note(sign: int, _: object) -> None:
        seen.append(sign)
        signal.signal(sign, before[signal.Signals(sign)])

    for sign in before:
        signal.signal(sign, note)
    try:
        yield seen
    finally:
        for sign, handler in before.items():
            signal.signal(sign, handler)


@contextmanager
def _without_cudnn_attention() -> Iterator[None]:
    """PyTorch's own attention kernels alone: gradients of FLUX by cuDNN's in bf16 and fp16 were NaN on an
    H200 (torch 2.11, cuDNN 9.19), by the others they were not."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def _gradients(accelerator: Accelerator, loss: Loss, config: FitConfig, step: int, log: Log) -> None:
    """Add up the gradients of this process's parts of a batch."""
    parts = accelerator.num_processes * config.accumulate
    for k in range(config.accumulate):
        part = Part(step, accelerator.process_index * config.accumulate + k, parts)
        with accelerator.autocast():
            value, figures = loss(part, _generator(config.seed, part))
        accelerator.backward(value / config.accumulate)
        log.add(step, {"loss": value, **figures})


def _generator(seed: int, part: Part) -> torch.Generator:
    # torch's CPU generator reads 32 bits of a seed; multiples of 2^32 over the golden ratio keep parts apart.
    return torch.Generator().manual_seed(seed * 1_000_003 + part.step + part.index * 2_654_435_761)


def _check_finite(norm: float, step: int, scaler: Any) -> None:
    """fp16 leaves a step out whose gradients overflow, and scales the next loss less; nothing else may."""
    if math.isfinite(norm) or (scaler is not None and scaler.get_scale() > SMALLEST_SCALE):
        return
    raise InputError(
        f"loss: expected a finite gradient, got {norm} at step {step}; a lower learning_rate may help, "
        "and the last checkpoint is kept"
    )


def _average_gradients(accelerator: Accelerator, weights: Iterable[nn.Parameter]) -> None:
    """The mean over processes of what each found for its parts."""
    if accelerator.num_processes == 1:
        return
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    flat: Any = accelerator.reduce(torch.cat([g.flatten() for g in gradients]), "mean")
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def _over_processes(accelerator: Accelerator, means: dict[str, float]) -> dict[str, float]:
    if accelerator.num_processes == 1:
        return means
    values = torch.tensor(list(means.values()), device=accelerator.device, dtype=torch.float32)
    reduced: Any = accelerator.reduce(values, "mean")
    return dict(zip(means, reduced.tolist(), strict=True))


def rate_at(step: int, config: FitConfig) -> float:
    """The learning rate's share of its peak: linear warm-up, constant, then a cosine."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    decline = max(1.0, config.decline * (config.steps - config.warmup))
    done = max(0.0, 1 - (config.steps - step) / decline)
    return config.final_rate + (1 - config.final_rate) * 0.5 * (1 + math.cos(done * math.pi))


@torch.no_grad()
def _follow(average: Mapping[str, Tensor], weights: Mapping[str, Tensor], decay: float) -> None:
    torch._foreach_lerp_(list(average.values()), [p.detach() for p in weights.values()], 1 - decay)


@torch.no_grad()
def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy the tensors that are named like a parameter into it; parameters without one stay as they are."""
    for name, parameter in model.named_parameters():
        if name in weights:
            parameter.copy_(weights[name])


# --- checkpoints ---


def check_resumable(folder: Path, config: FitConfig, settings: Mapping[str, Any]) -> None:
    """Raise ValueError if a run in `folder` has other settings than `fit` would be called with."""
    path = folder / "config.json"
    if not path.exists():
        return
    found, wanted = json.loads(path.read_text()), _stored_settings(config, settings)
    free = {"steps", "checkpoint_minutes", "log_every", "precision"}  # a run may be made longer
    names = [name for name in {**found, **wanted} if name not in free]
    other = {k: (found.get(k), wanted.get(k)) for k in names if found.get(k) != wanted.get(k)}
    if other:
        raise InputError(f"{folder}: a run of other settings is there (found, wanted): {other}")


def _stored_settings(config: FitConfig, settings: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps({**settings, **asdict(config)}))


def _claim(folder: Path, config: FitConfig, settings: Mapping[str, Any]) -> None:
    check_resumable(folder, config, settings)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.json", json.dumps(_stored_settings(config, settings), indent=1))


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    average: Mapping[str, Tensor],
    descent: Descent,
    step: int,
    seconds: float,
) -> None:
    """Store weights, average and optimiser state after `step` steps and `seconds` of training."""
    tensors = {f"model.{n}": p.detach() for n, p in model.named_parameters() if n in average}
    tensors |= {f"average.{n}": t for n, t in average.items()}
    tensors |= {f"optimizer.{n}": t for n, t in descent.state().items()}
    metadata = {"step": str(step), "seconds": f"{seconds:.1f}"}
    write_tensors(folder / "checkpoint.safetensors", tensors, metadata)


def read_average(folder: Path) -> tuple[dict[str, Tensor], int, float]:
    """Averaged weights, step and seconds of training of the checkpoint in `folder`."""
    stored, step, seconds = _read(folder / "checkpoint.safetensors")
    return _part(stored, "average."), step, seconds


def _resume(
    folder: Path, model: nn.Module, average: dict[str, Tensor], descent: Descent
) -> tuple[int, float]:
    path = folder / "checkpoint.safetensors"
    if not path.exists():
        return 0, 0.0
    stored, step, seconds = _read(path)
    load_weights(model, _part(stored, "model."))
    for name in average:
        average[name].copy_(stored[f"average.{name}"])
    descent.restore(_part(stored, "optimizer."))
    return step, seconds


def _read(path: Path) -> tuple[dict[str, Tensor], int, float]:
    with safe_open(path, "pt") as file:
        names, metadata = file.keys(), file.metadata()
        tensors = {name: file.get_tensor(name) for name in names}
    return tensors, int(metadata["step"]), float(metadata["seconds"])


def _part(stored: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in stored.items() if k.startswith(prefix)}


class Log:
    """A CSV of mean figures, a column each; lines of steps that a resumed run repeats are dropped first. With
    `save=False` nothing is written, as by all processes but the main one."""

    def __init__(self, path: Path, start: int, *, save: bool = True) -> None:
        self.path, self.save = path, save
        self._rows = [row for row in _read_rows(path) if int(row["step"]) < start]
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._step = 0
        if path.exists():
            self._save()

    def add(self, step: int, figures: Mapping[str, float | Tensor]) -> None:
        """Take in the figures of a step; a step may lack some."""
        self._step = step
        for name, value in figures.items():
            number = value.item() if isinstance(value, Tensor) else value
            self._sums[name] = self._sums.get(name, 0.0) + number
            self._counts[name] = self._counts.get(name, 0) + 1

    def means(self) -> dict[str, float]:
        """Of each figure, over the steps since the last line that had it."""
        return {k: round(v / self._counts[k], 4) for k, v in self._sums.items()}

    def write(self, means: Mapping[str, float], seconds: float) -> None:
        """Add a line of `means` and begin new ones; `seconds` of training until now."""
        self._rows.append({"step": self._step, "seconds": round(seconds, 1), **means})
        self._save()
        self._sums, self._counts = {}, {}

    def _save(self) -> None:
        if not self.save:
            return
        text = io.StringIO()
        names = dict.fromkeys(name for row in self._rows for name in row)
        writer = csv.DictWriter(text, list(names), restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows)
        write_text(self.path, text.getvalue())


def _read_rows(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [{k: v for k, v in row.items() if k and v} for row in csv.DictReader(file)]
