"""A pipeline lent to one job: whatever the job does to it is undone, and that this is so is looked at."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn

State = tuple[Any, ...]
# Loading a model changes for a moment how every thread of the process makes modules.
MAKING = threading.RLock()


@contextmanager
def lent(pipe: Any, before_step: Callable[[], None]) -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Lend a pipeline to one job. Afterwards it is as it was.

    The job gets a copy of the scheduler and a random state of its own, so that it depends on no other.

    Args:
        pipe: the pipeline.
        before_step: called before each call of the transformer; what it raises ends the job there.

    Yields:
        A context manager, inside of which the pipeline is as it was before and can be lent to another job.
    """
    kept = dict(vars(pipe))
    hook = _hooked(pipe, before_step)

    @contextmanager
    def paused() -> Iterator[None]:
        nonlocal hook
        own = dict(vars(pipe))
        hook.remove()
        _set(pipe, kept)
        try:
            yield
        finally:
            _set(pipe, own)
            hook = _hooked(pipe, before_step)

    try:
        with _own_random_state():
            pipe.scheduler = copy.deepcopy(pipe.scheduler)
            yield paused
    finally:
        hook.remove()
        if getattr(pipe.transformer, "peft_config", None):
            pipe.transformer.unload_lora()
        _set(pipe, kept)


def _hooked(pipe: Any, before_step: Callable[[], None]) -> Any:
    return pipe.transformer.register_forward_pre_hook(lambda *_: before_step())


def _set(pipe: Any, attributes: dict[str, Any]) -> None:
    vars(pipe).clear()
    vars(pipe).update(attributes)


@contextmanager
def _own_random_state() -> Iterator[None]:
    """Seed torch's one random state, and put it back; never while another thread makes modules with it."""
    with MAKING:
        before = torch.random.get_rng_state()
        torch.random.manual_seed(0)
    try:
        yield
    finally:
        with MAKING:
            torch.random.set_rng_state(before)


def state_of(pipe: Any) -> State:
    """All of a pipeline that a job could change, by reference: quick, and different after any change.

    A tensor's version counts the writes to it, so equal versions mean equal numbers.
    """
    parts = [(name, part) for name, part in sorted(pipe.components.items()) if isinstance(part, nn.Module)]
    return (
        tuple(sorted((name, id(value)) for name, value in vars(pipe).items())),
        tuple((name, _state(part, not name.startswith("text_encoder"))) for name, part in parts),
    )


def _state(part: nn.Module, with_hooks: bool) -> State:
    """A part of a pipeline. Text encoders are hooked by transformers itself when they are first called."""
    tensors = (*part.named_parameters(), *part.named_buffers())
    return (
        tuple((name, _of_module(module, with_hooks)) for name, module in part.named_modules()),
        tuple((name, tensor.data_ptr(), tensor._version, tensor.dtype) for name, tensor in tensors),
    )


def _of_module(module: nn.Module, with_hooks: bool) -> State:
    hooks = (module._forward_pre_hooks, module._forward_hooks) if with_hooks else ()
    return (
        id(module),
        module.training,
        tuple(id(hook) for each in hooks for hook in each.values()),
        id(getattr(module, "processor", None)),
        id(vars(module).get("forward")),
    )
