"""What the processes of one run do together. Alone, a process does all of it by itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, reduce
from torch import Tensor, distributed, nn


def process_state() -> Any:
    """The processes of this run, as `torchrun` or `accelerate launch` started them."""
    return PartialState(cpu=not torch.cuda.is_available())


def main_value(state: Any, value: Any) -> Any:
    """The main process's value, in every process.

    Args:
        state: the processes of the run.
        value: of this process. It can be pickled.
    """
    return broadcast_object_list([value])[0] if state.num_processes > 1 else value


def wait_for_all(state: Any, limit: timedelta = timedelta(days=7)) -> None:
    """Wait for work of unequal length, such as encoding a data set: NCCL's barrier gives up after ten
    minutes.

    Args:
        state: the processes of the run.
        limit: after which to give up.
    """
    if state.num_processes > 1:
        group: Any = distributed.new_group(backend="gloo", timeout=limit)
        distributed.barrier(group)
        distributed.destroy_process_group(group)


def average_gradients(state: Any, weights: Iterable[nn.Parameter]) -> None:
    """Give each process the mean of all processes' gradients.

    Args:
        state: the processes of the run.
        weights: parameters, the same ones in every process.
    """
    if state.num_processes == 1:
        return
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    flat: Any = reduce(torch.cat([g.flatten() for g in gradients]), "mean")
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def average_figures(state: Any, figures: Mapping[str, float]) -> dict[str, float]:
    """The mean of each figure over all processes.

    Args:
        state: the processes of the run.
        figures: of this process, by name. All processes have the same ones.
    """
    if state.num_processes == 1 or not figures:
        return dict(figures)
    values = torch.tensor(list(figures.values()), device=state.device, dtype=torch.float64)
    means: Any = reduce(values, "mean")
    return dict(zip(figures, means.tolist(), strict=True))


def number(value: float | Tensor) -> float:
    """A figure as a plain number, also where it has a gradient."""
    return value.item() if isinstance(value, Tensor) else value


def mean_figures(parts: Iterable[Mapping[str, float | Tensor]]) -> dict[str, float]:
    """The mean of each figure over the parts that have it."""
    found: dict[str, list[float]] = {}
    for figures in parts:
        for name, value in figures.items():
            found.setdefault(name, []).append(number(value))
    return {name: sum(values) / len(values) for name, values in found.items()}
