"""What would stop a LoRA run later, told from settings and the model's configs, before weights are read."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from dit_heads.errors import InputError
from dit_heads.families import family_of
from dit_heads.loras.base import base_format, targeted
from dit_heads.loras.config import TrainConfig
from dit_heads.loras.publish import DORA_NOTE
from dit_heads.loras.run_folder import listed
from dit_heads.loras.sets.captions import PLACES, check_panels, markers, markers_in
from dit_heads.loras.sets.dataset import SetDataset
from dit_heads.loras.weights.low_rank import require_peft
from dit_heads.models import check_size, empty_transformer, pipeline_class, quiet_loading
from dit_heads.training.optimizers import require_bitsandbytes

logger = logging.getLogger(__name__)


def check_plan(config: TrainConfig, precision: str) -> None:
    """Refuse a run that could not come to its end, and warn of one that would not be what it seems.

    The transformer is made on the meta device: its modules and its position table are known, no weight is.

    Args:
        config: the settings.
        precision: "no", "bf16" or "fp16", once "auto" is decided.

    Raises:
        InputError: a line for each problem: a package or a GPU that is missing, a model that cannot be
            trained, modules that it does not have, composites beyond its position table, empty prompts.
    """
    problems = list(_told(_checks(config, precision)))
    if problems:
        raise InputError("\n".join(problems))
    if config.adapter.dora:
        logger.warning("dora: %s", DORA_NOTE)
    for prompt in config.watch.prompts if len(_markers(config)) > 1 else ():
        for warning in _told([partial(check_panels, prompt, *_grid(config))]):
            logger.warning("prompts: %r: %s; the sample is drawn all the same", prompt, warning)


def warn_of_captions(data: SetDataset, config: TrainConfig) -> None:
    """Warn of captions without markers: the LoRA learns them, but `InContextPipeline` asks for markers."""
    bare = [each.source for each in data.samples if not markers_in(each.caption)]
    if bare and len(_markers(config)) > 1:
        logger.warning(
            "root: the captions of %s have no markers such as %s; InContextPipeline, which draws sets, asks "
            "for them",
            listed(bare),
            " ".join(_markers(config)),
        )


def _markers(config: TrainConfig) -> tuple[str, ...]:
    """The usual markers of the run's grid."""
    grid = _grid(config)
    return PLACES.get(grid) or markers(*grid, "images")


def _told(checks: Iterable[Callable[[], object]]) -> Iterator[str]:
    """What each check has to say against the settings."""
    for check in checks:
        try:
            check()
        except InputError as error:
            yield str(error)


def _checks(config: TrainConfig, precision: str) -> Iterator[Callable[[], object]]:
    yield require_peft
    if config.optimization.optimizer == "adamw8bit":
        yield partial(require_bitsandbytes, "optimizer")
    yield partial(base_format, config.model, config.optimization.base, precision)
    yield partial(_check_model, config)
    yield partial(_check_prompts, config.watch.prompts)


def _check_model(config: TrainConfig) -> None:
    with quiet_loading():
        transformer = empty_transformer(config.model)
    family = family_of(transformer)
    if family.training is None or family.pipelines is None:
        raise InputError(f"model: expected one that can be trained, '{config.model}' can only be guided")
    if (name := pipeline_class(config.model)) != family.pipelines.text_to_image:
        raise InputError(f"model: expected a {family.pipelines.text_to_image}, '{config.model}' is a {name}")
    problems = list(_told(_transformer_checks(config, transformer)))
    if problems:
        raise InputError("\n".join(problems))


def _transformer_checks(config: TrainConfig, transformer: Any) -> Iterator[Callable[[], object]]:
    yield partial(targeted, transformer, config.adapter)
    for size in config.data.sizes:
        yield partial(_check_composite, config, transformer, size)


def _check_composite(config: TrainConfig, transformer: Any, size: tuple[int, int]) -> None:
    (rows, columns), (height, width) = _grid(config), size
    try:
        check_size(config.model, transformer, height=rows * height, width=columns * width)
    except InputError as error:
        raise InputError(
            f"sizes: {rows} x {columns} panels of {height} x {width} do not fit: {error}"
        ) from error


def _check_prompts(prompts: tuple[str, ...]) -> None:
    for number, prompt in enumerate(prompts, 1):
        if not prompt.strip():
            raise InputError(f"prompts: expected words in each, got none in number {number}")


def _grid(config: TrainConfig) -> tuple[int, int]:
    return config.data.rows, config.data.columns
