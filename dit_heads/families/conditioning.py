"""How a transformer sees a source picture: on the channel axis of a widened input (InstructPix2Pix, arXiv
2211.09800, and FLUX Control), or as tokens in the sequence (FLUX.1 Kontext)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dit_heads.errors import InputError
from dit_heads.families import Call, Conditioning, family_of, pipelines_of

KINDS = ("channels", "tokens")


def conditioning_of(transformer: nn.Module, kind: str) -> Conditioning:
    """A way for a transformer to see a source.

    Args:
        transformer: of a family whose pipelines are known.
        kind: "channels" or "tokens".

    Raises:
        InputError: for another kind, and for a family that has no place for tokens of a source.
    """
    form, name = pipelines_of(transformer), family_of(transformer).arguments.latents
    if kind not in KINDS:
        raise InputError(f"conditioning: expected {' or '.join(KINDS)}, got {kind!r}")
    if kind == "tokens":
        if form.tokens is None:
            raise InputError(f"conditioning: {family_of(transformer).name} has no place for tokens")
        return form.tokens

    def beside(call: Call, source: Tensor) -> dict[str, Any]:
        noisy, packed = call[name], form.pack(source)
        return {**call, name: torch.cat([noisy, packed], 1 if noisy.ndim == 4 else -1)}

    return Conditioning(beside)


@contextmanager
def seeing(transformer: nn.Module, sources: Sequence[Tensor], kind: str) -> Iterator[None]:
    """Show a transformer the latents of sources in every call for a while.

    Args:
        transformer: for "channels", one whose input was widened by the channels of the sources.
        sources: each [B, C, h, w], with a row for each picture. Rows are repeated for a batch of several
            halves, as CFG has.
        kind: "channels" or "tokens".
    """
    family, how = family_of(transformer), conditioning_of(transformer, kind)
    calls: list[Call] = []

    def before(_: nn.Module, args: tuple[Any, ...], call: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        calls.append(call)
        return args, with_sources(how, call, sources, call[family.arguments.latents])

    def after(_: nn.Module, __: tuple[Any, ...], ___: dict[str, Any], output: Any) -> Any:
        prediction = how.alone(family.prediction(output), calls.pop())
        return family.with_prediction(output, prediction)

    hooks = [
        transformer.register_forward_pre_hook(before, with_kwargs=True, prepend=True),
        transformer.register_forward_hook(after, with_kwargs=True),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def with_sources(how: Conditioning, call: Call, sources: Sequence[Tensor], noisy: Tensor) -> dict[str, Any]:
    """A call with sources in it, one after the other.

    Args:
        how: they are shown.
        call: one without them.
        sources: the latents of each, [n, C, h, w].
        noisy: the latents of the call, whose batch may hold the same pictures several times.
    """
    shown = dict(call)
    for source in sources:
        shown = how.beside(shown, tiled(source, noisy))
    return shown


def tiled(source: Float[Tensor, "n C H W"], noisy: Tensor) -> Float[Tensor, "B C H W"]:
    """The source of each row of a batch that holds the same pictures one or several times."""
    return source.to(noisy).repeat(len(noisy) // len(source), 1, 1, 1)
