"""Train a LoRA: `dit-heads train CONFIG.yaml`. What it learns is up to its task (`loras.tasks`)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dit_heads.errors import InputError
from dit_heads.families import training_of
from dit_heads.io.atomic import write_tensors
from dit_heads.io.pictures import check_writable
from dit_heads.loras.adapter import add_adapter
from dit_heads.loras.base import Encoders, drop_text_encoders, load_base
from dit_heads.loras.config import OptimizerConfig, TrainConfig, check, shared
from dit_heads.loras.plan import check_plan, check_task
from dit_heads.loras.publish import check_hub, push, write_card
from dit_heads.loras.run_folder import (
    check_data,
    check_folder,
    check_places,
    fixed_settings,
    held,
    update_settings,
)
from dit_heads.loras.stopping import Stop, stopping
from dit_heads.loras.tasks import Task, task_of
from dit_heads.loras.tasks.loss import FlowLoss
from dit_heads.loras.watch import Watcher, check_tracking
from dit_heads.loras.weights.files import save_lora
from dit_heads.models import EMBEDDED
from dit_heads.training.checkpoints import run_precision
from dit_heads.training.loop import FitConfig, Watch, fit
from dit_heads.training.processes import main_value, process_state, wait_for_all
from dit_heads.training.widen import input_of, widen


def train(
    config: TrainConfig,
    *,
    watch: Watch | None = None,
    stop: Stop | None = None,
    making: AbstractContextManager[Any] | None = None,
) -> Path:
    """Train a LoRA.

    The folder `config.out` gets `lora.safetensors`, a checkpoint, `log.csv`, drawings in `samples/` and a
    card. Processes that `torchrun` or `accelerate launch` starts share the batches.

    Args:
        config: settings of the run.
        watch: called after every step, when the run's own drawings of that step are there.
        stop: asked after every step, and before each call of a model that encodes or draws, whether to stop
            early. What is learned by then is the LoRA. For a single process.
        making: held whenever modules are made, for processes in which others make modules too. It can be
            entered more than once.

    Returns:
        The path of the LoRA's file.

    Raises:
        InputError: for settings, data and a model that do not go together. Most of it is found before weights
            are loaded.
        Stopped: if it is to stop before there is anything to learn from.
    """
    check(config)
    check_places(config)
    check_writable(config.out / "lora.safetensors")
    check_tracking(config.watch)
    check_hub(config.watch.hub_id)
    state = process_state()
    _check_batch(config.optimization, state.num_processes)
    if state.is_main_process:
        check_folder(config)
    precision = main_value(state, run_precision(config.out, config.optimization.precision))
    making = making or nullcontext()
    with making:
        transformer = check_plan(config, precision)
    task = task_of(config)
    check_task(config, task, transformer)
    with held(config.out) if state.is_main_process else nullcontext():
        return _trained(config, task, state, precision, making, watch, stop)


def _trained(
    config: TrainConfig,
    task: Task,
    state: Any,
    precision: str,
    making: AbstractContextManager[Any],
    watch: Watch | None,
    stop: Stop | None,
) -> Path:
    """The file of a LoRA, once its folder is this run's alone."""
    if state.is_main_process:
        check_data(config.out, task.contents())
        update_settings(config)
    with making:
        pipe = load_base(config.model, config.optimization.base, precision, state.device)
    with stopping(pipe, stop):
        task.prepare(Encoders.of(pipe, config.data, config.out, state))
    if state.is_main_process:
        check_data(config.out, task.contents())
    if config.data.encode == "all":
        drop_text_encoders(pipe)
    with making:
        model = trained_parts(pipe.transformer, task, config)
    if config.model in EMBEDDED and precision == "bf16" and state.device.type == "cpu":
        write_attention_out(pipe.transformer)
    loss = flow_loss(pipe, task, config)
    own = Watcher(model, pipe, loss, config, precision, stop) if state.is_main_process else None
    fixed, both = fixed_settings(config), _after(own, watch)
    fit(model, loss, fit_config(config, precision), config.out, settings=fixed, watch=both, stop=stop)
    path = config.out / "lora.safetensors"
    if state.is_main_process:
        save_lora(pipe.transformer, path, metadata={"dit_heads": json.dumps(shared(config))})
        for name, part in task.parts().items():
            write_tensors(config.out / f"{name}.safetensors", part.state_dict(), {})
        write_card(config, pipe)
    wait_for_all(state)
    if state.is_main_process:
        push(config.watch.hub_id, config.out)
    return path


def _after(first: Watch | None, second: Watch | None) -> Watch:
    """One call after the other."""

    def both(step: int, figures: Mapping[str, float], average: Mapping[str, Tensor]) -> None:
        for each in (first, second):
            if each is not None:
                each(step, figures, average)

    return both


def trained_parts(transformer: Any, task: Task, config: TrainConfig) -> nn.ModuleDict:
    """Make all that a run trains.

    Args:
        transformer: the frozen one. It is widened for a source, and gets a LoRA.
        task: whose source and modules are trained.
        config: settings of the run.

    Returns:
        The transformer and the task's modules, by name.
    """
    whole = []
    if task.extra_channels:
        widen(transformer, task.extra_channels)
        whole = [input_of(transformer).path]
    add_adapter(transformer, config.adapter, config.seed, whole)
    if config.optimization.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    return nn.ModuleDict({"transformer": transformer, **task.parts()})


def flow_loss(pipe: Any, task: Task, config: TrainConfig) -> FlowLoss:
    """The loss of a run, on the transformer of a pipeline."""
    return FlowLoss(
        pipe.transformer,
        task,
        config.loss,
        batch_size=config.optimization.batch_size,
        seed=config.seed,
        scheduler=pipe.scheduler.config,
        vae=pipe.vae,
    )


def write_attention_out(transformer: Any) -> None:
    """Use an explicit attention map: a third faster on a CPU in bf16, and small with few tokens."""
    transformer.set_attn_processor(training_of(transformer).explicit_attention())


def fit_config(config: TrainConfig, precision: str) -> FitConfig:
    """The settings as the training loop takes them.

    Args:
        config: settings of the run.
        precision: "no", "bf16" or "fp16", once "auto" is settled.
    """
    chosen = config.optimization
    return FitConfig(
        steps=chosen.steps,
        learning_rate=chosen.learning_rate,
        optimizer=chosen.optimizer,
        warmup=chosen.warmup,
        decline=chosen.decline,
        weight_decay=chosen.weight_decay,
        betas=(0.9, 0.999),
        clip=chosen.clip,
        ema=chosen.ema,
        precision=precision,
        checkpoint_minutes=config.watch.checkpoint_minutes,
        log_every=10,
        seed=config.seed,
        accumulate=chosen.accumulate,
    )


def _check_batch(config: OptimizerConfig, processes: int) -> None:
    size, parts = config.batch_size, processes * config.accumulate
    if size % parts:
        raise InputError(
            f"batch_size: expected a multiple of {parts} ({processes} processes x {parts // processes} "
            f"parts), got {size}"
        )
