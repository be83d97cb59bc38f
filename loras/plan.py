"""Checks of a LoRA run before any weight is read, by its settings and the configs of its model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from torch import nn

from dit_heads.errors import InputError
from dit_heads.families import family_of
from dit_heads.io.quiet import quiet_libraries
from dit_heads.loras.adapter import targeted
from dit_heads.loras.base import base_format
from dit_heads.loras.config import TrainConfig
from dit_heads.loras.publish import DORA_NOTE
from dit_heads.loras.tasks import Task
from dit_heads.loras.weights.low_rank import require_peft
from dit_heads.models import empty_transformer, pipeline_class
from dit_heads.training.optimizers import require_bitsandbytes
from dit_heads.training.processes import process_state
from dit_heads.training.widen import input_of

logger = logging.getLogger(__name__)


def check_plan(config: TrainConfig, precision: str) -> nn.Module:
    """Refuse a run that could not come to its end, whatever its task.

    Args:
        config: the settings.
        precision: "no", "bf16" or "fp16", once "auto" is settled.

    Returns:
        The model's transformer on the meta device: its modules and its position table, without weights.

    Raises:
        InputError: a line for each problem: a package or a GPU that is missing, a model that cannot be
            trained, modules that it does not have.
    """
    found: list[nn.Module] = []
    raise_all(_checks(config, precision, found))
    if config.adapter.dora and process_state().is_main_process:
        logger.warning("dora: %s", DORA_NOTE)
    return found[0]


def check_task(config: TrainConfig, task: Task, transformer: nn.Module) -> None:
    """Refuse what the task of a run cannot do with its transformer.

    Args:
        config: the settings.
        task: made of them.
        transformer: on the meta device, as `check_plan` gives it.

    Raises:
        InputError: a line for each problem.
    """
    checks: list[Callable[[], object]] = [partial(task.plan, transformer)]
    if task.extra_channels:
        checks += [partial(input_of, transformer), partial(_check_whole, config)]
    raise_all(checks)


def raise_all(checks: Iterable[Callable[[], object]]) -> None:
    """Run every check. Raises one `InputError` with the messages of all that failed."""
    if problems := list(_problems(checks)):
        raise InputError("\n".join(problems))


def _problems(checks: Iterable[Callable[[], object]]) -> Iterator[str]:
    for check in checks:
        try:
            check()
        except InputError as error:
            yield str(error)


def _checks(config: TrainConfig, precision: str, found: list[nn.Module]) -> Iterator[Callable[[], object]]:
    yield require_peft
    if config.optimization.optimizer == "adamw8bit":
        yield partial(require_bitsandbytes, "optimizer")
    yield partial(base_format, config.model, config.optimization.base, precision)
    yield lambda: found.append(_transformer(config.model))
    if found:
        yield partial(targeted, found[0], config.adapter)


def _transformer(model: str) -> Any:
    with quiet_libraries():
        transformer = empty_transformer(model)
    family = family_of(transformer)
    if family.training is None or family.pipelines is None:
        raise InputError(f"model: expected one that can be trained, '{model}' can only be guided")
    if (name := pipeline_class(model)) != family.pipelines.text_to_image:
        raise InputError(f"model: expected a {family.pipelines.text_to_image}, '{model}' is a {name}")
    return transformer


def _check_whole(config: TrainConfig) -> None:
    """A widened input is a part of the LoRA whose weight is trained whole."""
    if config.adapter.dora:
        raise InputError(f"dora: expected false for the task {config.task}, which trains an input whole")
    if config.optimization.base == "8bit":
        raise InputError(f"base: 8bit cannot be widened for a source, which the task {config.task} has")
