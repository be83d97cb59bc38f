"""Calls of a transformer and its blocks: names of their arguments, and what we add to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

Call = Mapping[str, Any]
"""The arguments of one call of a transformer, or of one of its blocks, by name."""


@dataclass(frozen=True)
class Arguments:
    """Names of the arguments of a transformer and of its blocks.

    Attributes:
        latents: the transformer's noisy latents.
        batched: arguments of the transformer with one row, or one list entry, per sample.
        block: arguments of a block, in order.
        grown: arguments of a block with one row per sample, the image stream first.
    """

    latents: str
    batched: tuple[str, ...]
    block: tuple[str, ...]
    grown: tuple[str, ...]


class Carrier(Protocol):
    """The way in which values of ours travel from a call of the transformer to its attention modules.

    They have to be arguments of the call: gradient checkpointing runs blocks again long after the call, and
    the second run must see the same values.
    """

    def put(self, call: Call, key: str, value: Any) -> dict[str, Any]:
        """The call with one more value.

        Args:
            call: arguments of the transformer, a block or an attention.
            key: name of the value.
            value: what travels.
        """
        ...

    def pop(self, call: Call, key: str) -> tuple[Any, dict[str, Any]]:
        """A value (None if it is missing) and the call without it.

        Args:
            call: arguments of the transformer, a block or an attention.
            key: name of the value.
        """
        ...

    def mapped(self, call: Call, change: Callable[[Any], Any]) -> dict[str, Any]:
        """The carrying arguments with every value changed, including values that other code has put there.

        Args:
            call: arguments of the transformer, a block or an attention.
            change: value -> new value.
        """
        ...


@dataclass(frozen=True)
class Keywords(Carrier):
    """Carries values in a dictionary of keyword arguments that reaches the attention processors.

    Attributes:
        argument: name of the argument that holds the dictionary.
    """

    argument: str

    def put(self, call: Call, key: str, value: Any) -> dict[str, Any]:
        return {**call, self.argument: {**(call.get(self.argument) or {}), key: value}}

    def pop(self, call: Call, key: str) -> tuple[Any, dict[str, Any]]:
        held = dict(call.get(self.argument) or {})
        found = held.pop(key, None)
        return found, {**call, self.argument: held}

    def mapped(self, call: Call, change: Callable[[Any], Any]) -> dict[str, Any]:
        held = call.get(self.argument)
        return {} if not held else {self.argument: {name: change(value) for name, value in held.items()}}


@dataclass(frozen=True)
class Conditioning:
    """A way to show a transformer the latents of a source picture, which have the size of the noisy ones.

    Attributes:
        beside: (call, source [B, C, h, w]) -> the call with the source in it.
        alone: (prediction, the call without the source) -> the prediction for the noisy latents alone.
        covered: (height, width) of a picture -> those of the area that the transformer then reads.
        several: whether pictures of any sizes can be shown one after the other and are told apart.
    """

    beside: Callable[[Call, Tensor], dict[str, Any]]
    alone: Callable[[Tensor, Call], Tensor] = lambda prediction, call: prediction
    covered: Callable[[int, int], tuple[int, int]] = lambda height, width: (height, width)
    several: bool = False
