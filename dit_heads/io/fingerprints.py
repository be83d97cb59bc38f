"""Hashes of models, over everything that they have learned, wherever their weights are."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from dit_heads.compat import (
    align_module_device,
    has_offloaded_params,
    is_offloaded_to_disk,
    is_traceable_wrapper_subclass,
    plain_tensors,
)
from dit_heads.errors import InputError

_THREADS = min(8, os.cpu_count() or 1)


def fingerprint(model: nn.Module) -> str:
    """A hash of the name, type, shape and every value of a model's weights and buffers.

    It serves as a cache key: a single changed bit changes it. It depends neither on the device nor on
    offloading to the CPU's memory. Quantised weights (torchao, bitsandbytes, GGUF) are hashed as they are
    stored. Several threads hash a large model, at about the speed of memory.

    Args:
        model: any module.

    Returns:
        32 hexadecimal digits.

    Raises:
        InputError: for weights that are not in memory.
    """
    found: dict[str, str] = {}
    here: list[tuple[str, Tensor]] = []
    for path, module in model.named_modules():
        if is_offloaded_to_disk(module):
            raise InputError(
                f"{path or 'model'}: expected weights in memory, got some that are offloaded to disk"
            )
        if has_offloaded_params(module):
            with align_module_device(module, torch.device("cpu")):
                found |= {name: tensor_hash(tensor, name) for name, tensor in _own_tensors(module, path)}
        else:
            here += _own_tensors(module, path)
    with ThreadPoolExecutor(_THREADS) as pool:
        found |= pool.map(lambda named: (named[0], tensor_hash(named[1], named[0])), here)
    return content_hash(*(f"{name} {found[name]}" for name in sorted(found)))


def tensor_hash(tensor: Tensor, name: str = "tensor") -> str:
    """A hash of a tensor's type, shape and values; for a wrapper (torchao), of its parts.

    Args:
        tensor: a tensor of any shape and type.
        name: its name in the error message.

    Raises:
        InputError: for a tensor on the meta device.
    """
    head = f"{tensor.dtype} {tuple(tensor.shape)}"
    if is_traceable_wrapper_subclass(tensor):
        parts, context = tensor.__tensor_flatten__()
        inner = (tensor_hash(getattr(tensor, part), f"{name}.{part}") for part in parts)
        return content_hash(head, type(tensor).__name__, re.sub("0x[0-9a-f]+", "", repr(context)), *inner)
    if tensor.is_meta:
        raise InputError(
            f"{name}: expected a weight in memory, got one on the meta device (offloaded to disk?)"
        )
    with plain_tensors():
        plain = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return content_hash(head, plain.numpy().data)


def content_hash(*parts: str | bytes | memoryview) -> str:
    """A hash of texts and bytes in order.

    Args:
        parts: texts or bytes. Where one ends and the next begins counts too.

    Returns:
        32 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(f"{len(data)} ".encode())
        digest.update(data)
    return digest.hexdigest()[:32]


def _own_tensors(module: nn.Module, path: str) -> Iterator[tuple[str, Tensor]]:
    """A module's weights, buffers and quantisation state, without those of its children."""
    children = dict(module.named_children())
    kept = module.state_dict(keep_vars=True) | dict(module.named_buffers(recurse=False))
    for name, tensor in kept.items():
        if name.split(".")[0] not in children and isinstance(tensor, Tensor):
            yield f"{path}.{name}", tensor
