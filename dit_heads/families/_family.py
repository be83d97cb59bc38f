"""What a family of diffusion transformers says of itself. The families there are: `FAMILIES` in `__init__`.

A family is plain data and functions. Module names and shapes are all that a layout reads, so it works on the
`meta` device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from dit_heads.errors import InputError
from dit_heads.families.processors import HeadProcessor
from dit_heads.heads import HeadId, HeadSet
from dit_heads.heads.names import every_head

Call = Mapping[str, Any]
"""The arguments of one call of a transformer, or of one of its blocks, by name."""


@dataclass(frozen=True)
class Residuals:
    """A list of ControlNet residuals that a transformer adds after its blocks `blocks`: after each one the
    residual number `pick(place of the block among these, length of the list, arguments of the call)`."""

    argument: str
    blocks: range
    pick: Callable[[int, int, Call], int]


@dataclass(frozen=True)
class HeadLayout:
    """The addressable parts of one transformer.

    `blocks[b]` is the path of block b; `heads[b]` and `image_only_heads[b]` count the heads of its joint and
    its image-only attention (0: none), which are its modules `joint` and `image_only`. `final` is the path
    of the modulated norm after the last block.
    """

    model: str
    family: Family
    blocks: tuple[str, ...]
    heads: tuple[int, ...]
    image_only_heads: tuple[int, ...]
    final: str
    residuals: tuple[Residuals, ...] = ()
    joint: str = "attn"
    image_only: str = "attn2"

    def resolve(self, heads: HeadSet) -> tuple[HeadId, ...]:
        """Every single head of the set, sorted. Raises InputError naming what this model lacks."""
        return heads.resolve(self.heads, self.image_only_heads)

    def every_head(self) -> tuple[HeadId, ...]:
        """All heads, sorted, those of image-only attention too."""
        return every_head(self.heads, self.image_only_heads)

    def attentions(self, block: int) -> tuple[str, ...]:
        """Names of the attention modules in a block."""
        return (self.joint, self.image_only) if self.image_only_heads[block] else (self.joint,)

    def attention(self, head: HeadId) -> str:
        """Name of the attention module, in its block, that `head` belongs to."""
        return self.image_only if head.image_only else self.joint

    def block_of(self, module: str) -> str | None:
        """Path of the block that a module is in, by the module's name; None if it is in none."""
        return next((path for path in self.blocks if module.startswith(f"{path}.")), None)

    def count(self, head: HeadId) -> int:
        """Heads of the attention that `head` belongs to."""
        return (self.image_only_heads if head.image_only else self.heads)[head.block]

    def batch(self, call: Call) -> int:
        """Samples in a call of the transformer."""
        return len(call[self.family.arguments.latents])

    def rows(self, call: Call, rows: slice) -> dict[str, Any]:
        """A call of the transformer with these rows of the batch alone."""
        batch, lists = self.batch(call), {kind.argument for kind in self.residuals}
        return {
            name: _rows(value, rows, batch, name in lists) if name in self.family.arguments.batched else value
            for name, value in call.items()
        }


def _rows(value: Any, rows: slice, batch: int, residuals: bool) -> Any:
    """`rows` of a tensor or list with an entry a sample, or of each tensor in a list of residuals."""
    if residuals and isinstance(value, list | tuple):
        return [_rows(item, rows, batch, False) for item in value]
    has_rows = value.ndim > 0 if isinstance(value, Tensor) else isinstance(value, list | tuple)
    return value[rows] if has_rows and len(value) == batch else value


@dataclass(frozen=True)
class Arguments:
    """Names of arguments.

    Of the transformer: `latents` are the noisy latents, `batched` all that have a row, or a list entry, a
    sample. Of a block: `block` are all in order, `grown` those with a row a sample, the image's stream first.
    """

    latents: str
    batched: tuple[str, ...]
    block: tuple[str, ...]
    grown: tuple[str, ...]


class Carrier(Protocol):
    """How something of ours travels in the arguments of a call down to the attentions.

    It has to be in arguments: gradient checkpointing runs blocks a second time, long after the call, and must
    see the same."""

    def put(self, call: Call, key: str, value: Any) -> dict[str, Any]:
        """The call with `value` under `key`, for the transformer, its blocks or its attentions."""
        ...

    def pop(self, call: Call, key: str) -> tuple[Any, dict[str, Any]]:
        """What is under `key`, None for nothing, and the call without it."""
        ...

    def mapped(self, call: Call, change: Callable[[Any], Any]) -> dict[str, Any]:
        """The arguments that carry things, with each of these changed; those of others travel so too."""
        ...


@dataclass(frozen=True)
class Keywords:
    """In a dictionary of keyword arguments, which transformer and blocks hand to the attention processors."""

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
    """A way to show a transformer the latents of a source picture, of the size of the noisy ones.

    beside: (call, source [B, C, h, w]) -> the call with the source in it.
    alone: (prediction, the call without the source) -> what is predicted of the noisy latents.
    covered: height and width of a picture -> those of the area that the transformer then reads.
    """

    beside: Callable[[Call, Tensor], dict[str, Any]]
    alone: Callable[[Tensor, Call], Tensor] = lambda prediction, call: prediction
    covered: Callable[[int, int], tuple[int, int]] = lambda height, width: (height, width)


@dataclass(frozen=True)
class Pipelines:
    """How a family's ordinary pipelines draw.

    text_to_image, fill: names of their classes in diffusers (fill: it paints what a mask leaves free).
    distilled: its guidance scale is an input of the model; no call reads a negative prompt by default.
    reads_guidance: whether the guidance scale has an effect on this transformer at all.
    text_tokens: tokens that the last text encoder reads by default.
    pack, unpack: latents [B, C, h, w] as the pipeline keeps them, and back for this height and width.
    latent_size: height and width of a call's latents. Raises InputError if other tokens are among them.
    noise: the latents that a pipeline would start from: (pipe, pictures, height and width in pixels,
        dtype, generator) -> as `pack` puts them out.
    largest_side: the most pixels that a side can have, None for no limit.
    text_of: text [B, L, D] and pooled text [B, P] of a call.
    with_text: the call with another text.
    tokens: how the tokens of a source picture stand in the sequence, None if they cannot.
    cfg_scale: the argument that is the scale of real CFG.
    cfg_calls: how many calls real CFG makes in a step.
    patch: latents along the side of an image token.
    """

    text_to_image: str
    fill: str | None
    distilled: bool
    reads_guidance: Callable[[Any], bool]
    text_tokens: int
    pack: Callable[[Tensor], Tensor]
    unpack: Callable[[Tensor, int, int], Tensor]
    latent_size: Callable[[Call], tuple[int, int]]
    noise: Callable[[Any, int, tuple[int, int], Any, Any], Tensor]
    largest_side: Callable[[Any], int | None]
    text_of: Callable[[Call], tuple[Tensor, Tensor]]
    with_text: Callable[[Call, Tensor, Tensor], dict[str, Any]]
    tokens: Conditioning | None
    cfg_scale: str
    cfg_calls: int
    patch: int = 2

    def fills(self, pipe: object) -> bool:
        """Whether a pipeline paints what a mask leaves free."""
        return self.fill in class_names(type(pipe))


@dataclass(frozen=True)
class LoraDialect:
    """Another naming of modules in LoRA files: keys that begin with one of `prefixes`, and `convert`, from
    tensors by such keys to tensors by diffusers' keys (joint projections split). Names that begin with one of
    `roots` are of this naming too; `root_prefix` makes them keys."""

    prefixes: tuple[str, ...]
    convert: Callable[[dict[str, Tensor]], Mapping[str, Tensor]]
    roots: tuple[str, ...] = ()
    root_prefix: str = ""


@dataclass(frozen=True)
class InputProjection:
    """What reads the latents of a transformer: the path of a linear module or a convolution, and how many of
    its inputs one latent channel is."""

    path: str
    inputs: int


@dataclass(frozen=True)
class Training:
    """How a family learns.

    velocity: (transformer, noisy latents [B, C, h, w], noise levels [B], text [B, L, D], pooled text [B, P],
        guidance) -> the prediction of noise - latents, [B, C, h, w].
    encode_prompt: (pipe, caption, tokens) -> text [1, L, D] and pooled text [1, P].
    targets: what ends the name of a linear module, by what it is part of.
    eight_bit: components that are too large for one GPU of 24 GB in 16 bits.
    explicit_attention: a processor that makes the attention map, fast backwards on CPUs.
    input: what reads the latents, None for a family whose input cannot be widened.
    """

    velocity: Callable[[Any, Tensor, Tensor, Tensor, Tensor, float | Tensor], Tensor]
    encode_prompt: Callable[[Any, str, int], tuple[Tensor, Tensor]]
    targets: Mapping[str, tuple[str, ...]]
    eight_bit: tuple[str, ...]
    explicit_attention: Callable[[], Any]
    input: InputProjection | None = None


def class_names(given: type) -> list[str]:
    """Names of a class and of those that it is a subclass of, nearest first. By its name a class is known
    without being imported."""
    return [kind.__name__ for kind in given.__mro__]


def first_output(output: Any) -> Tensor:
    return output[0]


def with_first_output(output: Any, sample: Tensor) -> Any:
    """The output of a transformer with another prediction, as a tuple or as diffusers' class."""
    if isinstance(output, tuple):
        return (sample, *output[1:])
    return type(output)(**{**output, "sample": sample})


@dataclass(frozen=True)
class Family:
    """All that is particular to one architecture.

    name: what cards and messages call it.
    layout: the addressable parts of a transformer.
    arguments, carrier: what its calls and those of its blocks look like.
    processor: what takes the place of its attention processors where heads are perturbed.
    text_length: text tokens in the sequence of a call of the transformer.
    conditional_rows: (pipe, batch) -> rows of the conditional prompts in the first call of a step: how CFG is
        done. `second_half` and `every_row` are the usual ones.
    noise_level: the noise level of a call of the transformer, from 0 to 1.
    prediction, with_prediction: the prediction [B, ...] in an output, and the output with another one.
    pipelines, training: None for a family that can only be guided.
    lora_dialects: other namings of modules in LoRA files than diffusers'.
    """

    name: str
    layout: Callable[[Any], HeadLayout]
    arguments: Arguments
    carrier: Carrier
    processor: type[HeadProcessor]
    text_length: Callable[[Call], int]
    conditional_rows: Callable[[Any, int], slice]
    noise_level: Callable[[Call], float]
    prediction: Callable[[Any], Tensor] = first_output
    with_prediction: Callable[[Any, Tensor], Any] = with_first_output
    pipelines: Pipelines | None = None
    training: Training | None = None
    lora_dialects: tuple[LoraDialect, ...] = ()


# --- what several families share ---

# Linear modules of diffusers' `Attention` class, those of the text's own stream included.
JOINT_PROJECTIONS = (
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "add_q_proj",
    "add_k_proj",
    "add_v_proj",
    "to_add_out",
)


def every_row(pipe: Any, batch: int) -> slice:
    """No CFG, or CFG as two calls, the conditional one first."""
    return slice(0, batch)


def second_half(pipe: Any, batch: int) -> slice:
    """CFG as one call, the negative prompts first."""
    if not getattr(pipe, "do_classifier_free_guidance", False):
        return slice(0, batch)
    if batch % 2:
        raise InputError(f"pipe: with CFG the batch is two halves, got {batch} rows")
    return slice(batch // 2, batch)


def head_counts(blocks: Iterable[Any], attention: str = "attn") -> tuple[int, ...]:
    """Heads of the attention of each block. Raises InputError for a block that keeps none under this
    name."""
    found = [getattr(getattr(block, attention, None), "heads", None) for block in blocks]
    for number, count in enumerate(found):
        if count is None:
            raise InputError(f"transformer: expected an attention '{attention}' in block {number}, got none")
    return tuple(found)  # pyright: ignore[reportReturnType]
