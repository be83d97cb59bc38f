"""The training loop: any model, any loss.

The data and the noise of a step depend on the seed and the step alone. A run that is killed and started again
therefore ends with the same weights as one that is not.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from dit_heads.compat import lerp_all
from dit_heads.errors import InputError, whole_number
from dit_heads.training.checkpoints import (
    Progress,
    check_resumable,
    load_weights,
    resume,
    run_precision,
    save_checkpoint,
    write_settings,
)
from dit_heads.training.generators import keyed_generator
from dit_heads.training.log import Log
from dit_heads.training.optimizers import Optimizer
from dit_heads.training.precision import HALF
from dit_heads.training.processes import (
    average_figures,
    average_gradients,
    main_value,
    mean_figures,
    process_state,
)

SMALLEST_SCALE = 2.0**-10  # of a loss in fp16: below it, all gradients overflow in one step after another


@dataclass(frozen=True)
class Part:
    """The samples `index::count` of a step's batch, which one forward and backward pass processes.

    Attributes:
        step: number of the step.
        index: number of the part, among all parts of all processes.
        count: number of these parts.
    """

    step: int
    index: int = 0
    count: int = 1


Loss = Callable[[Part, torch.Generator], "tuple[Tensor, Mapping[str, float | Tensor]]"]
"""(part of a batch, its random numbers) -> the mean loss over the part, and figures to log."""
Watch = Callable[[int, Mapping[str, float], Mapping[str, Tensor]], None]
"""(steps done, figures if they are logged now, averaged weights): called after every step."""


@dataclass(frozen=True)
class FitConfig:
    """Settings of a training run."""

    steps: int
    """Number of steps in all."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    optimizer: str = "adamw"
    """One of adamw, adamw8bit and muon."""
    warmup: int = 300
    """Number of steps in which the rate rises to its peak."""
    final_rate: float = 0.03
    """Share of the peak rate that is left at the end."""
    decline: float = 1.0
    """Share of the run, at its end, in which the rate falls as a cosine."""
    weight_decay: float = 0.01
    """Decay of weights, relative to the learning rate."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Decays of the averages of the gradient and of its square in AdamW."""
    clip: float = 1.0
    """Largest norm of the gradient. A larger one is scaled down to it."""
    ema: float = 0.999
    """Decay of the averaged weights."""
    precision: str = "auto"
    """One of no, bf16, fp16 and auto, which is the fastest where the run begins, found in a second."""
    checkpoint_minutes: float = 5.0
    """Minutes between checkpoints."""
    log_every: int = 20
    """Steps between lines of the log."""
    seed: int = 0
    """Seed of all random numbers of the run."""
    accumulate: int = 1
    """Number of parts in which a process takes its share of a batch, one after the other."""


def fit(
    model: nn.Module,
    loss: Loss,
    config: FitConfig,
    folder: Path,
    *,
    until: float | None = None,
    settings: Mapping[str, Any] | None = None,
    watch: Watch | None = None,
    stop: Callable[[], bool] | None = None,
) -> nn.Module:
    """Train a model, and leave it with its averaged weights.

    Under `torchrun` or `accelerate launch`, processes share every batch, and gradients are averaged.
    `folder` gets `checkpoint.safetensors` (weights, average, optimiser, step), `log.csv` and `config.json`.
    A run that is found there continues from its checkpoint. Frozen weights and buffers are not stored.

    Args:
        model: whatever has trainable parameters. An `nn.ModuleDict` trains several parts together.
        loss: see `Loss`.
        config: see `FitConfig`.
        folder: of the run.
        until: a `time.time()` at which to stop early, with a checkpoint. For a single process.
        settings: what else the run depends on. Kept with `config`, and compared on resume.
        watch: see `Watch`. It is called before the checkpoint of its step, so that a run that is killed
            repeats the call rather than misses it.
        stop: asked after every step whether to stop early, with a checkpoint. For a single process.

    Returns:
        The model.

    Raises:
        InputError: for settings that cannot be followed, for other ones than those of the run in `folder`,
            and naming the step whose gradient is not finite, before it does harm.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once the step is done and stored. For a single process.
    """
    whole_number("accumulate", config.accumulate, 1)
    state = process_state()
    for name, early in (("until", until), ("stop", stop)):
        if early is not None and state.num_processes > 1:
            raise InputError(
                f"{name}: expected None with {state.num_processes} processes, which would not stop "
                f"at the same step, got {early}"
            )
    ended = lambda: (until is not None and time.time() > until) or (stop is not None and stop())  # noqa: E731
    config = replace(config, precision=main_value(state, run_precision(folder, config.precision)))
    check_resumable(folder, config, settings or {})
    if state.is_main_process:
        write_settings(folder, config, settings or {})
    run = _Run.started(model, config, folder, state)
    run.train(loss, ended, watch)
    if state.num_processes > 1:
        state.wait_for_everyone()
    load_weights(model, run.average)
    return model.eval()


@dataclass
class _Run:
    """A run between two starts."""

    model: nn.Module
    config: FitConfig
    folder: Path
    state: Any
    weights: dict[str, nn.Parameter]
    average: dict[str, Tensor]
    optimizer: Optimizer
    done: Progress
    log: Log

    @classmethod
    def started(cls, model: nn.Module, config: FitConfig, folder: Path, state: Any) -> _Run:
        """A run that begins, or continues from its checkpoint."""
        model.to(state.device).train()
        weights = {n: p for n, p in model.named_parameters() if p.requires_grad}
        average = {n: p.detach().clone() for n, p in weights.items()}
        optimizer = Optimizer(
            weights,
            kind=config.optimizer,
            rate=config.learning_rate,
            betas=config.betas,
            weight_decay=config.weight_decay,
            dtype=HALF.get(config.precision, torch.float32),
            scaler=torch.amp.GradScaler("cuda") if config.precision == "fp16" else None,
        )
        done = resume(folder, model, average, optimizer)
        log = Log(folder / "log.csv", done.step, done.figures, save=state.is_main_process)
        return cls(model, config, folder, state, weights, average, optimizer, done, log)

    def train(self, loss: Loss, ended: Callable[[], bool], watch: Watch | None) -> None:
        """Take the steps that are left, with a checkpoint now and then and at the end."""
        config, main = self.config, self.state.is_main_process
        steps, name = range(self.done.step, config.steps), self.folder.name
        bar = tqdm(
            steps, initial=self.done.step, total=config.steps, desc=name, mininterval=10, disable=not main
        )
        began = saved = time.time()
        with _stop_signals(noted=self.state.num_processes == 1) as stopped, _without_cudnn_attention():
            for step in bar:
                self._step(loss, step)
                seconds = self.done.seconds + time.time() - began
                shown = self._logged(step, seconds)
                if shown:
                    bar.set_postfix({name: f"{value:.4g}" for name, value in shown.items()})
                if watch is not None:
                    watch(step + 1, shown, self.average)
                now = time.time()
                last = step + 1 == config.steps or ended() or bool(stopped)
                if main and (last or now - saved > 60 * config.checkpoint_minutes):
                    progress = Progress(step + 1, self.done.seconds + now - began, self.log.begun)
                    save_checkpoint(self.folder, self.model, self.average, self.optimizer, progress)
                    saved = now
                if last:
                    break
        if stopped:
            raise KeyboardInterrupt

    def _step(self, loss: Loss, step: int) -> None:
        figures = self._gradients(loss, step)
        average_gradients(self.state, self.weights.values())
        self.optimizer.unscale()
        norm = nn.utils.clip_grad_norm_(list(self.weights.values()), self.config.clip)
        self.log.add(step, {**figures, "gradient": norm})
        _check_finite(float(norm), step, self.optimizer.scaler)
        self.optimizer.step(rate_at(step, self.config))
        update_average(self.average, self.weights, min(self.config.ema, (1 + step) / (10 + step)))

    def _gradients(self, loss: Loss, step: int) -> dict[str, float]:
        """Add up the gradients of this process's parts of a batch; the figures of the whole batch."""
        count, scaler = self.config.accumulate, self.optimizer.scaler
        half = HALF.get(self.config.precision)
        found: list[Mapping[str, float | Tensor]] = []
        for k in range(count):
            part = Part(step, self.state.process_index * count + k, self.state.num_processes * count)
            generator = keyed_generator(self.config.seed, part.step, part.index)
            with torch.autocast(self.state.device.type, half, enabled=half is not None):
                value, figures = loss(part, generator)
            (value if scaler is None else scaler.scale(value)).div(count).backward()
            found.append({"loss": value.detach(), **figures})
        return average_figures(self.state, mean_figures(found))

    def _logged(self, step: int, seconds: float) -> dict[str, float]:
        """The figures of a step with a line in the log."""
        if step % self.config.log_every:
            return {}
        shown = self.log.means()
        self.log.write(shown, seconds)
        return shown


@contextmanager
def _stop_signals(*, noted: bool) -> Iterator[list[int]]:
    """Collect Ctrl-C and SIGTERM in a list, so that a step can end first. A second signal acts at once.

    A signal that the process ignores, as a job in the background does, stays ignored. Nothing is collected
    outside of the main thread, nor from processes that share a batch: they could not stop at one step."""
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
    """Leave cuDNN's attention out: its gradients of FLUX in bf16 and fp16 were NaN on an H200 (torch 2.11,
    cuDNN 9.19). The other kernels' were not."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def _check_finite(norm: float, step: int, scaler: Any) -> None:
    """In fp16 an overflow skips the step and lowers the scale of the loss. In any other precision it is an
    error."""
    if math.isfinite(norm) or (scaler is not None and scaler.get_scale() > SMALLEST_SCALE):
        return
    raise InputError(
        f"loss: expected a finite gradient, got {norm} at step {step}; a lower learning_rate may help, "
        "and a checkpoint that was written before is kept"
    )


def rate_at(step: int, config: FitConfig) -> float:
    """The learning rate's share of its peak at a step, counted from 0: linear warm-up, constant, then a
    cosine."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    decline = max(1.0, config.decline * (config.steps - config.warmup))
    done = max(0.0, 1 - (config.steps - step) / decline)
    return config.final_rate + (1 - config.final_rate) * 0.5 * (1 + math.cos(done * math.pi))


@torch.no_grad()
def update_average(average: Mapping[str, Tensor], weights: Mapping[str, Tensor], decay: float) -> None:
    """Move averaged weights towards the weights, by the share 1 - decay.

    Args:
        average: averaged weights by name. They are changed in place.
        weights: parameters in the same order.
        decay: from 0 to 1.
    """
    lerp_all(list(average.values()), [p.detach() for p in weights.values()], 1 - decay)
