"""A wider input for a transformer: latents of a source picture beside the noisy ones, on the channel axis.

FLUX Control and InstructPix2Pix (arXiv 2211.09800, section 3.2.1) see pictures this way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dit_heads.errors import InputError, whole_number
from dit_heads.families import InputProjection, family_of
from dit_heads.families.conditioning import seeing


def widen(transformer: Any, extra: int) -> Callable[[], None]:
    """Let a transformer read more latent channels. Their weights are zero, so that it predicts what it did.

    Its config says the new number of input channels, and the number of output channels stays as it is.

    Args:
        transformer: of a family with an input that can be widened.
        extra: number of latent channels to add.

    Returns:
        A function that puts the transformer back as it was, with the very same module.

    Raises:
        InputError: for another family, for a number below 1, and for a quantised or adapted input.
    """
    where = input_of(transformer)
    whole_number("extra", extra, 1)
    parent, _, name = where.path.rpartition(".")
    owner, old = transformer.get_submodule(parent), transformer.get_submodule(where.path)
    before = {key: getattr(transformer.config, key) for key in ("in_channels", "out_channels")}
    setattr(owner, name, _wider(old, extra * where.inputs, where.path))
    transformer.register_to_config(
        in_channels=before["in_channels"] + extra * where.inputs, out_channels=transformer.out_channels
    )

    def undo() -> None:
        setattr(owner, name, old)
        transformer.register_to_config(**before)

    return undo


@contextmanager
def widened(transformer: Any, extra: int) -> Iterator[None]:
    """A transformer that reads more latent channels for a while. Arguments and errors as of `widen`."""
    undo = widen(transformer, extra)
    try:
        yield
    finally:
        undo()


@contextmanager
def reading(transformer: Any, source: Float[Tensor, "B C H W"]) -> Iterator[None]:
    """Give a widened transformer the latents of a source in every call for a while.

    From outside it then looks as narrow as before it was widened, so that a stock pipeline can call it.

    Args:
        transformer: one that `widen` added the channels of `source` to.
        source: latents, a row for each picture. They are repeated for a batch of several halves, as CFG has.
    """
    with narrow(transformer, source.shape[1]), seeing(transformer, [source], "channels"):
        yield


@contextmanager
def narrow(transformer: Any, extra: int) -> Iterator[None]:
    """The config of a widened transformer as before it was widened by `extra` channels, for a while."""
    where, channels = input_of(transformer), transformer.config.in_channels
    transformer.register_to_config(in_channels=channels - extra * where.inputs)
    try:
        yield
    finally:
        transformer.register_to_config(in_channels=channels)


def extra_channels(transformer: Any) -> int:
    """How many latent channels a transformer reads beside the noisy ones."""
    more = transformer.config.in_channels - transformer.out_channels
    return more // input_of(transformer).inputs if more else 0


def input_of(transformer: nn.Module) -> InputProjection:
    """The module that reads the latents of a transformer. Raises `InputError` if it cannot be widened."""
    family = family_of(transformer)
    if family.training is None or family.training.input is None:
        raise InputError(f"transformer: expected one whose input can be widened, got one of {family.name}")
    return family.training.input


@torch.no_grad()
def _wider(old: nn.Module, extra: int, path: str) -> nn.Module:
    """The module with `extra` more inputs, the weights of which are zero."""
    if type(old) is nn.Linear:
        new: Any = nn.Linear(old.in_features + extra, old.out_features, old.bias is not None, device="meta")
    elif type(old) is nn.Conv2d:
        new = nn.Conv2d(
            old.in_channels + extra,
            old.out_channels,
            old.kernel_size,  # pyright: ignore[reportArgumentType]
            old.stride,  # pyright: ignore[reportArgumentType]
            old.padding,  # pyright: ignore[reportArgumentType]
            bias=old.bias is not None,
            device="meta",
        )
    else:
        raise InputError(
            f"transformer: expected a plain linear module or convolution as '{path}', got a "
            f"{type(old).__name__}; quantised and adapted ones cannot be widened"
        )
    weight = old.weight.new_zeros(new.weight.shape)
    weight[:, : old.weight.shape[1]] = old.weight
    new.weight = nn.Parameter(weight, requires_grad=old.weight.requires_grad)
    new.bias = old.bias
    return new.train(old.training)
