"""What a diffusion transformer knows of a picture: outputs of attention heads, or inputs of attentions after
modulation, at low noise levels. One forward pass a level; any family serves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from dit_heads.errors import InputError
from dit_heads.families import HeadLayout, layout_of, training_of
from dit_heads.guidance.branch import BranchRunner
from dit_heads.guidance.checks import check_runs_hooks
from dit_heads.heads import HeadId, HeadSet
from dit_heads.settings import Field, settings
from dit_heads.training.generators import keyed_generator

MASSIVE = 10.0  # times the median channel: larger ones are massive activations (DiTF, arXiv 2505.18584)


@settings
class FeatureConfig:
    """Which features are taken."""

    heads: str = "all"
    """Heads such as "L3-5" or "L3H2, L7H0"; all of them for "all"."""
    kind: Literal["outputs", "inputs"] = "outputs"
    """outputs of the chosen heads, or inputs, after modulation, of the attentions that have a chosen head."""
    levels: tuple[Annotated[float, Field(ge=0, le=1)], ...] = (0.1,)
    """Noise levels, from 0, no noise, to 1."""

    def __post_init__(self) -> None:
        if not self.levels or len(set(self.levels)) < len(self.levels):
            raise InputError(f"levels: expected one noise level or several different ones, got {self.levels}")
        if self.heads != "all":
            HeadSet.parse(self.heads)


@dataclass(frozen=True)
class Channels:
    """Where the features of each head, or of each attention, stand among the channels.

    Attributes:
        names: `L3H2` for outputs, `L3` or `L3i` for inputs. Channels of several noise levels follow each
            other, each level with all names.
        width: number of channels of each name.
    """

    names: tuple[str, ...]
    width: tuple[int, ...]


class _Recorder:
    """A perturbation that changes nothing and keeps what heads put out."""

    name = "identity"

    def __init__(self) -> None:
        self.outputs: list[Tensor] = []  # [B, H, N, D] each
        self.image: list[tuple[slice, int]] = []

    def __call__(self, out: Tensor, q: Tensor, k: Tensor, v: Tensor, u: Tensor, image: slice, /) -> Tensor:
        self.outputs.append(out[:, :, image].detach())
        self.image.append((image, out.shape[2]))
        return out

    def clear(self) -> None:
        """Forget what was kept."""
        self.outputs.clear()
        self.image.clear()


def chosen_heads(layout: HeadLayout, chosen: str) -> tuple[HeadId, ...]:
    """The heads that a setting names, sorted.

    Raises:
        InputError: for text that names none, and for heads that the model lacks.
    """
    return layout.every_head() if chosen == "all" else layout.resolve(HeadSet.parse(chosen))


@torch.no_grad()
def features_of(
    transformer: Any,
    latents: Float[Tensor, "b c h w"],
    text: Float[Tensor, "b l d"],
    pooled: Float[Tensor, "b p"],
    config: FeatureConfig,
) -> Float[Tensor, "b n f"]:
    """Features of each image token of a picture, row by row.

    Args:
        transformer: of a family that can be trained.
        latents: of the pictures, normalised, as the model reads them.
        text: embeddings of the prompts, usually of the empty one.
        pooled: pooled embeddings of the prompts.
        config: which features.

    Returns:
        The levels one after the other in the last axis; within a level block by block, head by head.

    Raises:
        InputError: for heads that the model lacks, and for a model whose attention cannot be recorded.
    """
    layout = layout_of(transformer)
    heads, velocity = chosen_heads(layout, config.heads), training_of(transformer).velocity
    found = []
    outputs = config.kind == "outputs"
    kept = nullcontext([]) if outputs else _inputs(transformer, layout, heads)
    with _recorded(transformer, layout, heads) as recorder, kept as inputs:
        for level in config.levels:
            recorder.clear()
            inputs.clear()
            noisy = (1 - level) * latents + level * _noise(latents, level)
            sigmas = torch.full((len(latents),), level, device=latents.device, dtype=latents.dtype)
            velocity(transformer, noisy, sigmas, text, pooled, 1.0)
            if outputs:
                found += _of_heads(recorder, layout, heads)
            else:
                found += _of_inputs(recorder, inputs, layout, heads)
    return torch.cat(found, -1)


def channels_of(transformer: Any, config: FeatureConfig) -> Channels:
    """What the channels of `features_of` are, of one noise level.

    Args:
        transformer: the model.
        config: which features.
    """
    layout = layout_of(transformer)
    heads = chosen_heads(layout, config.heads)
    if config.kind == "inputs":
        places = _attentions(layout, heads)
        width = [_attention(transformer, layout, place).to_q.in_features for place in places]
        return Channels(
            tuple(f"L{block}{'' if name == layout.joint else 'i'}" for block, name in places), tuple(width)
        )
    width = [
        _attention(transformer, layout, (head.block, layout.attention(head))).to_q.out_features
        // layout.count(head)
        for head in heads
    ]
    return Channels(tuple(map(str, heads)), tuple(width))


def massive_channels(features: Float[Tensor, "*n f"], ratio: float = MASSIVE) -> Int[Tensor, " m"]:
    """Channels whose mean magnitude is more than `ratio` times that of the median channel."""
    size = features.flatten(0, -2).float().abs().mean(0)
    return torch.nonzero(size > ratio * size.median()).flatten()


class Normaliser(nn.Module):
    """Features without their massive channels, each with a mean of 0 and a deviation of 1.

    Args:
        channels: number of channels that come in.
        kept: numbers of those that are kept; all by default.
    """

    kept: Tensor
    mean: Tensor
    deviation: Tensor

    def __init__(self, channels: int, kept: int | None = None) -> None:
        super().__init__()
        count = channels if kept is None else kept
        self.register_buffer("kept", torch.arange(count))
        self.register_buffer("mean", torch.zeros(count))
        self.register_buffer("deviation", torch.ones(count))

    @classmethod
    def fitted(cls, features: Float[Tensor, "*n f"], ratio: float = MASSIVE) -> Normaliser:
        """The normaliser of these features."""
        flat = features.flatten(0, -2).float()
        massive = massive_channels(flat, ratio)
        mask = torch.ones(flat.shape[-1], dtype=torch.bool, device=flat.device)
        mask[massive] = False
        made = cls(flat.shape[-1], int(mask.sum()))
        made.kept = torch.nonzero(mask).flatten()
        made.mean, made.deviation = flat[:, mask].mean(0), flat[:, mask].std(0).clamp(min=1e-4)
        return made

    def forward(self, features: Float[Tensor, "b n f"]) -> Float[Tensor, "b n k"]:
        """Normalised features, in fp32."""
        return (features[..., self.kept].float() - self.mean) / self.deviation


# --- recording ---


def _noise(latents: Float[Tensor, "b c h w"], level: float) -> Float[Tensor, "#b c h w"]:
    """The noise of a level, the same for all pictures, so that features depend on the picture alone."""
    generator = keyed_generator("features", round(level, 6))
    return torch.randn(latents.shape[1:], generator=generator).to(latents)[None]


@contextmanager
def _recorded(transformer: Any, layout: HeadLayout, heads: Sequence[HeadId]) -> Iterator[_Recorder]:
    """Record the outputs of all heads of the chosen blocks, through the hooks of head guidance."""
    check_runs_hooks(transformer, layout)
    recorder: Any = _Recorder()
    blocks = sorted({head.block for head in heads})
    runner = BranchRunner(transformer, layout, blocks, recorder)
    latents = layout.family.arguments.latents

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        call = runner.arguments(args, kwargs)
        rows, like = layout.batch(call), call[latents]
        u = {
            block: {
                name: like.new_zeros(rows, _attention(transformer, layout, (block, name)).heads)
                for name in layout.attentions(block)
            }
            for block in blocks
        }
        return (), runner.perturbed(call, u)

    try:
        with ExitStack() as undo:
            undo.callback(transformer.register_forward_pre_hook(before, with_kwargs=True).remove)
            yield recorder
    finally:
        runner.remove()


@contextmanager
def _inputs(transformer: Any, layout: HeadLayout, heads: Sequence[HeadId]) -> Iterator[list[Tensor]]:
    """Record what comes into the attentions that have a chosen head, in the order of `_attentions`."""
    found: list[Tensor] = []

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append(next(iter((*args, *kwargs.values()))).detach())  # the tokens come first

    with ExitStack() as undo:
        for block in sorted({head.block for head in heads}):
            for name in layout.attentions(block):
                module = _attention(transformer, layout, (block, name))
                undo.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
        yield found


def _of_heads(recorder: _Recorder, layout: HeadLayout, heads: Sequence[HeadId]) -> list[Tensor]:
    """The outputs [B, N, D] of the chosen heads."""
    order = _attentions_of_blocks(layout, heads)
    outputs = dict(zip(order, recorder.outputs, strict=True))
    return [outputs[head.block, layout.attention(head)][:, head.head] for head in heads]


def _of_inputs(
    recorder: _Recorder, inputs: Sequence[Tensor], layout: HeadLayout, heads: Sequence[HeadId]
) -> list[Tensor]:
    """The rows [B, N, C] of image tokens in what came into the attentions that have a chosen head."""
    wanted, found = set(_attentions(layout, heads)), []
    order = _attentions_of_blocks(layout, heads)
    for place, tokens, (image, count) in zip(order, inputs, recorder.image, strict=True):
        if place in wanted:
            found.append(tokens[:, image] if tokens.shape[1] == count else tokens)
    return found


def _attentions(layout: HeadLayout, heads: Sequence[HeadId]) -> list[tuple[int, str]]:
    """The attentions that have a chosen head: block and name of the module."""
    return list(dict.fromkeys((head.block, layout.attention(head)) for head in heads))


def _attentions_of_blocks(layout: HeadLayout, heads: Sequence[HeadId]) -> list[tuple[int, str]]:
    """All attentions of the blocks that have a chosen head, in the order in which they are computed."""
    blocks = sorted({head.block for head in heads})
    return [(block, name) for block in blocks for name in layout.attentions(block)]


def _attention(transformer: Any, layout: HeadLayout, place: tuple[int, str]) -> Any:
    block, name = place
    return transformer.get_submodule(f"{layout.blocks[block]}.{name}")
