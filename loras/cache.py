"""What frozen encoders make of samples and captions, kept on disk by content and settings."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dit_heads.errors import InputError
from dit_heads.io.atomic import atomic_file
from dit_heads.loras.sets.dataset import Sample
from dit_heads.loras.sets.folders import content_hash


class CachedEncoder:
    """`encode(item)` -> tensors by name, kept on disk under the content of the item and the settings.

    An item is a Sample or a caption. `settings` (anything that JSON can hold) must tell apart whatever
    changes the result: a fingerprint of the autoencoder, or of text encoders and tokenizers with the maximum
    length, and the precision. A file that is damaged is made again, with a warning. Tensors come back on the
    CPU, equal bit by bit whether they were stored before or not. Raises ValueError if a result is not finite.
    """

    def __init__(
        self,
        encode: Callable[[Any], Mapping[str, Tensor]],
        folder: str | Path,
        settings: Mapping[str, Any],
    ) -> None:
        self.encode, self.folder = encode, Path(folder)
        self._settings = json.dumps(dict(settings), sort_keys=True, allow_nan=False)

    def __call__(self, item: Sample | str) -> dict[str, Tensor]:
        content = ["caption", item] if isinstance(item, str) else ["sample", item.key]
        key = content_hash(self._settings, *content)
        path = self.folder / f"{key}.safetensors"
        if path.exists():
            try:
                return _load(path, key)
            except (SafetensorError, OSError, ValueError) as error:
                warnings.warn(f"cache: '{path}' is damaged ({error}); it is made again", stacklevel=2)
        whole = torch.contiguous_format
        tensors = {n: t.detach().cpu().clone(memory_format=whole) for n, t in self.encode(item).items()}
        for name, tensor in tensors.items():
            if not tensor.isfinite().all():
                source = repr(item) if isinstance(item, str) else item.source
                raise InputError(f"encode: expected finite numbers, got others in '{name}' of {source}")
        metadata = {"key": key, "checksum": _checksum(tensors)}
        with atomic_file(path) as file:
            file.write(safetensors.torch.save(tensors, metadata))
        return tensors


def _load(path: Path, key: str) -> dict[str, Tensor]:
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        names = file.keys()
        tensors = {name: file.get_tensor(name) for name in names}
    if metadata.get("key") != key or metadata.get("checksum") != _checksum(tensors):
        raise InputError("it holds something else")
    return tensors


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    parts: list[str | bytes] = []
    for name, tensor in sorted(tensors.items()):
        parts += [f"{name} {tensor.dtype} {tuple(tensor.shape)}"]
        parts += [tensor.flatten().view(torch.uint8).numpy().tobytes()]
    return content_hash(*parts)
