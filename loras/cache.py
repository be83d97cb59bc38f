"""What frozen encoders make of pictures and captions, kept on disk and in memory by content and settings."""

from __future__ import annotations

import json
import warnings
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import safetensors.torch
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dit_heads.errors import InputError
from dit_heads.io.atomic import atomic_file
from dit_heads.io.fingerprints import content_hash

Policy = Literal["all", "lazy", "off"]
"""When an item is encoded: "all" of them before training, "lazy" each when it is needed first, "off" each
whenever it is needed. With "off" nothing is kept on disk."""

Encoded = dict[str, Tensor]


class Picture(Protocol):
    """A picture whose pixels are made when they are needed. A `Sample` of a set is one."""

    @property
    def key(self) -> str:
        """Names the pixels by content."""
        ...

    @property
    def source(self) -> str:
        """Where the picture comes from, for messages."""
        ...

    def composite(self) -> Image.Image:
        """The pixels."""
        ...


class CachedEncoder:
    """An encoder that does its work once for each item.

    Files are named by the content of the item and the settings. Tensors come back on the CPU, equal bit by
    bit whether they were stored before or not. The checksum of a file is compared when it is read first; a
    file that is damaged is made again, with a warning.

    Args:
        encode: (item) -> tensors by name. An item is a caption or a `Picture`.
        folder: of the files.
        settings: whatever changes the result, as JSON can hold it: a fingerprint of the autoencoder, or of
            text encoders and tokenizers with the maximum length, and the precision.
        policy: see `Policy`. "all" and "lazy" differ for whoever fills the cache alone.
        memory: bytes of the latest results to keep in memory too.
        encode_all: (items) -> tensors by name of each, as `encode` gives them, in one go.

    Raises:
        InputError: a result is not finite.
    """

    def __init__(
        self,
        encode: Callable[[Any], Mapping[str, Tensor]],
        folder: str | Path,
        settings: Mapping[str, Any],
        policy: Policy = "all",
        memory: int = 0,
        encode_all: Callable[[Sequence[Any]], Sequence[Mapping[str, Tensor]]] | None = None,
    ) -> None:
        self.encode_all = encode_all or (lambda items: [encode(item) for item in items])
        self.encode, self.folder = encode, Path(folder)
        self.policy: Policy = policy
        self._settings = json.dumps(dict(settings), sort_keys=True, allow_nan=False)
        self._latest = _Latest(memory)
        self._compared: set[str] = set()

    def __call__(self, item: Picture | str) -> Encoded:
        key = self._key(item)
        found = self._latest.get(key) or self._read(key)
        if found is None:
            found = self._new(key, item, self.encode(item))
        self._latest.put(key, found)
        return dict(found)

    def each(self, items: Sequence[Picture | str]) -> list[Encoded]:
        """The results of several items; those that are not there yet are encoded in one go.

        With the policy "off" these are all of them: which items stand together can change the last bits of
        a result, and must not depend on what a process that was started again has lost.

        Raises:
            InputError: a result is not finite.
        """
        keys = [self._key(item) for item in items]
        found: dict[str, Encoded] = {}
        for key in dict.fromkeys(keys if self.policy != "off" else ()):
            if (there := self._latest.get(key) or self._read(key)) is not None:
                found[key] = there
        missing = {key: item for key, item in zip(keys, items, strict=True) if key not in found}
        if missing:
            made = self.encode_all(list(missing.values()))
            for (key, item), tensors in zip(missing.items(), made, strict=True):
                found[key] = self._new(key, item, tensors)
        for key in found:
            self._latest.put(key, found[key])
        return [dict(found[key]) for key in keys]

    def _key(self, item: Picture | str) -> str:
        content = ["caption", item] if isinstance(item, str) else ["sample", item.key]
        return content_hash(self._settings, *content)

    def _new(self, key: str, item: Picture | str, made: Mapping[str, Tensor]) -> Encoded:
        """A result, as the cache holds it from now on."""
        found = _checked(item, made)
        if self.policy != "off":
            self._write(key, found)
        return found

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def _write(self, key: str, tensors: Encoded) -> None:
        metadata = {"key": key, "crc32": _checksum(tensors)}
        with atomic_file(self._path(key)) as file:
            file.write(safetensors.torch.save(tensors, metadata))

    def _read(self, key: str) -> Encoded | None:
        path = self._path(key)
        if self.policy == "off" or not path.exists():
            return None
        try:
            found = _load(path, key, compare=key not in self._compared)
        except (SafetensorError, OSError, ValueError) as error:
            warnings.warn(f"cache: '{path}' is damaged ({error}); it is made again", stacklevel=3)
            return None
        self._compared.add(key)
        return found


class _Latest:
    """The latest entries, up to a number of bytes."""

    def __init__(self, limit: int) -> None:
        self.limit, self.size = limit, 0
        self.entries: OrderedDict[str, Encoded] = OrderedDict()

    def get(self, key: str) -> Encoded | None:
        if key in self.entries:
            self.entries.move_to_end(key)
        return self.entries.get(key)

    def put(self, key: str, tensors: Encoded) -> None:
        if key in self.entries or _bytes(tensors) > self.limit:
            return
        self.entries[key] = tensors
        self.size += _bytes(tensors)
        while self.size > self.limit:
            _, oldest = self.entries.popitem(last=False)
            self.size -= _bytes(oldest)


def _checked(item: Picture | str, made: Mapping[str, Tensor]) -> Encoded:
    """A result on the CPU, in memory of its own. Raises InputError if it is not finite."""
    whole = torch.contiguous_format
    tensors = {name: tensor.detach().cpu().clone(memory_format=whole) for name, tensor in made.items()}
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            source = repr(item) if isinstance(item, str) else item.source
            raise InputError(f"encode: expected finite numbers, got others in '{name}' of {source}")
    return tensors


def _bytes(tensors: Encoded) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def _load(path: Path, key: str, *, compare: bool) -> Encoded:
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        names = file.keys()
        tensors = {name: file.get_tensor(name) for name in names}
    if metadata.get("key") != key:
        raise InputError("it holds something else")
    # Files of the first version have another checksum.
    if compare and "crc32" in metadata and metadata["crc32"] != _checksum(tensors):
        raise InputError("its checksum is another")
    return tensors


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    value = 0
    for name, tensor in sorted(tensors.items()):
        value = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), value)
        value = zlib.crc32(tensor.flatten().view(torch.uint8).numpy().data, value)
    return f"{value:08x}"
