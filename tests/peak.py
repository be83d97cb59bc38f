"""Bytes of tensors that live at once, counted as they are made and freed."""

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakBytes(TorchDispatchMode):
    """`peak`: the most bytes that tensors made inside the context held at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._bytes = 0
        self._live: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {key for key, _ in map(_storage, _tensors((args, kwargs)))}
        for key, storage in map(_storage, _tensors(out)):
            if key not in given and key not in self._live:
                self._live.add(key)
                self._bytes += storage.nbytes()
                weakref.finalize(storage, self._freed, key, storage.nbytes())
        self.peak = max(self.peak, self._bytes)
        return out

    def _freed(self, key: int, count: int) -> None:
        self._live.discard(key)
        self._bytes -= count


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _storage(tensor: torch.Tensor) -> tuple[int, Any]:
    storage = tensor.untyped_storage()
    return storage._cdata, storage
