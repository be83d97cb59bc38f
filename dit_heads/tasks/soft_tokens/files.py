"""Files of tokenizers and solvers: weights in fp16 with their settings in the header, as safetensors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from dit_heads.errors import InputError
from dit_heads.io.atomic import write_tensors
from dit_heads.settings import as_mapping, from_mapping
from dit_heads.tasks.soft_tokens.solver import Solver, SolverConfig
from dit_heads.tasks.soft_tokens.tokenizer import Tokenizer, TokenizerConfig

M = TypeVar("M", bound=nn.Module)


def save_module(module: nn.Module, config: Any, path: Path) -> None:
    """Write a module in fp16, and its settings beside the weights, as one safetensors file.

    Args:
        module: whose parameters and buffers are written.
        config: made by `settings`.
        path: of the file.
    """
    tensors = {
        name: t.detach().half().contiguous() if t.is_floating_point() else t.contiguous()
        for name, t in module.state_dict().items()
    }
    write_tensors(path, tensors, {"format": "pt", "config": json.dumps(as_mapping(config))})


def read_module(path: Path, kind: type[Any]) -> tuple[Any, dict[str, Tensor]]:
    """The settings and tensors, in fp32, of a file that `save_module` wrote.

    Args:
        path: of the file.
        kind: class of the settings.

    Raises:
        InputError: there is no such file, or it is another.
    """
    try:
        with safe_open(path, "pt") as file:
            config = (file.metadata() or {}).get("config")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"'{path}': expected a file of weights: {error}") from error
    if config is None:
        raise InputError(f"'{path}': expected a file with settings of soft tokens, got other weights")
    floats = {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}
    return from_mapping(kind, json.loads(config), str(path)), floats


def load_tokenizer(path: Path) -> Tokenizer:
    """A tokenizer from its file, frozen, in evaluation mode.

    Raises:
        InputError: there is no such file, or it is another.
    """
    return _loaded(path, TokenizerConfig, Tokenizer)


def load_solver(path: Path) -> Solver:
    """A solver from its file, frozen, in evaluation mode.

    Raises:
        InputError: there is no such file, or it is another.
    """
    return _loaded(path, SolverConfig, Solver)


def _loaded(path: Path, kind: type[Any], make: Callable[[Any], M]) -> M:
    """The module that `make` makes of the settings in a file, with its weights."""
    config, tensors = read_module(path, kind)
    module = make(config)
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(f"'{path}': expected the weights of its settings: {error}") from error
    return module.eval().requires_grad_(False)
