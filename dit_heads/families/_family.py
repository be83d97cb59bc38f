"""The description of a family of diffusion transformers, as plain data and functions.

A layout depends on module names and shapes only, so it works on the `meta` device. `FAMILIES` in `__init__`
lists the families.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dit_heads.errors import InputError
from dit_heads.families.calls import Arguments, Call, Carrier, Conditioning
from dit_heads.families.processors import HeadProcessor
from dit_heads.heads import HeadId, HeadSet
from dit_heads.heads.names import every_head


@dataclass(frozen=True)
class Residuals:
    """ControlNet residuals: a list of tensors, one of which the transformer adds after each of some blocks.

    Attributes:
        argument: name of the transformer's argument that holds the list.
        blocks: numbers of the blocks that are followed by an addition.
        pick: (place of the block among `blocks`, length of the list, arguments of the call) -> index of the
            residual that is added.
    """

    argument: str
    blocks: range
    pick: Callable[[int, int, Call], int]


@dataclass(frozen=True)
class HeadLayout:
    """The addressable parts of one transformer.

    Attributes:
        model: class name of the transformer.
        family: its family.
        blocks: path of each block's module.
        heads: number of heads in the joint attention of each block.
        image_only_heads: the same for the image-only attention; 0 for a block that has none.
        final: path of the modulated norm after the last block.
        residuals: the ControlNet residuals that the transformer takes.
        joint: name of a block's joint attention module.
        image_only: name of a block's image-only attention module.
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
        """Every single head of a set, sorted.

        Args:
            heads: heads and whole blocks.

        Raises:
            InputError: for heads and blocks that this model lacks.
        """
        return heads.resolve(self.heads, self.image_only_heads)

    def every_head(self) -> tuple[HeadId, ...]:
        """All heads of both kinds of attention, sorted."""
        return every_head(self.heads, self.image_only_heads)

    def attentions(self, block: int) -> tuple[str, ...]:
        """Names of the attention modules in a block.

        Args:
            block: number of the block.
        """
        return (self.joint, self.image_only) if self.image_only_heads[block] else (self.joint,)

    def attention(self, head: HeadId) -> str:
        """Name, within its block, of the attention module that a head belongs to.

        Args:
            head: the head.
        """
        return self.image_only if head.image_only else self.joint

    def block_of(self, module: str) -> str | None:
        """Path of the block that a module is part of, or None.

        Args:
            module: path of the module.
        """
        return next((path for path in self.blocks if module.startswith(f"{path}.")), None)

    def count(self, head: HeadId) -> int:
        """Number of heads in the attention that a head belongs to.

        Args:
            head: the head.
        """
        return (self.image_only_heads if head.image_only else self.heads)[head.block]

    def batch(self, call: Call) -> int:
        """Batch size of a call of the transformer.

        Args:
            call: its arguments by name.
        """
        return len(call[self.family.arguments.latents])

    def rows(self, call: Call, rows: slice) -> dict[str, Any]:
        """A call of the transformer, reduced to some rows of its batch.

        Args:
            call: its arguments by name.
            rows: the rows to keep.
        """
        batch, lists = self.batch(call), {kind.argument for kind in self.residuals}
        return {
            name: _rows(value, rows, batch, name in lists) if name in self.family.arguments.batched else value
            for name, value in call.items()
        }


def _rows(value: Any, rows: slice, batch: int, residuals: bool) -> Any:
    """The rows of a tensor or list with one entry per sample, or of each tensor in a list of residuals."""
    if residuals and isinstance(value, list | tuple):
        return [_rows(item, rows, batch, False) for item in value]
    has_rows = value.ndim > 0 if isinstance(value, Tensor) else isinstance(value, list | tuple)
    return value[rows] if has_rows and len(value) == batch else value


@dataclass(frozen=True)
class Pipelines:
    """How a family's ordinary pipelines generate pictures.

    Attributes:
        text_to_image: class name of the text-to-image pipeline in diffusers.
        fill: class name of the pipeline that paints inside of a mask, or None.
        distilled: whether the guidance scale is an input of the model, so that negative prompts are ignored
            by default.
        reads_guidance: transformer -> whether the guidance scale has an effect on it.
        text_tokens: default number of tokens that the last text encoder reads.
        pack: latents [B, C, h, w] -> the form in which the pipeline keeps them.
        unpack: (packed latents, h, w) -> latents [B, C, h, w].
        latent_size: call of the transformer -> (h, w) of its latents. Raises InputError if it has other
            image tokens beside them.
        noise: (pipe, pictures, (height, width) in pixels, dtype, generator) -> the packed latents that the
            pipeline itself would start from.
        largest_side: pipe -> largest height or width in pixels, or None for no limit.
        text_of: call of the transformer -> its text [B, L, D] and pooled text [B, P].
        with_text: (call, text, pooled text) -> the call with this text.
        tokens: the way in which the tokens of a source picture join the sequence, or None if they cannot.
        cfg_scale: name of the argument that is the scale of true CFG.
        cfg_calls: number of calls that true CFG makes in a step.
        patch: latents along each side of an image token.
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
        """Whether a pipeline paints inside of a mask.

        Args:
            pipe: any object.
        """
        return self.fill in class_names(type(pipe))


@dataclass(frozen=True)
class LoraDialect:
    """A naming of modules in LoRA files other than that of diffusers.

    Attributes:
        prefixes: beginnings of the keys of such files.
        convert: tensors by such keys -> tensors by diffusers' keys, with joint projections split.
        roots: beginnings of module names of this naming, for files whose keys lack a prefix.
        root_prefix: prefix that turns such a name into a key.
    """

    prefixes: tuple[str, ...]
    convert: Callable[[dict[str, Tensor]], Mapping[str, Tensor]]
    roots: tuple[str, ...] = ()
    root_prefix: str = ""


@dataclass(frozen=True)
class InputProjection:
    """The module through which a transformer reads latents.

    Attributes:
        path: path of the linear module or convolution.
        inputs: number of its input channels per latent channel.
    """

    path: str
    inputs: int


@dataclass(frozen=True)
class Training:
    """How a family's transformers are trained.

    Attributes:
        velocity: (transformer, noisy latents [B, C, h, w], noise levels [B], text [B, L, D], pooled text
            [B, P], guidance) -> prediction of noise - latents, [B, C, h, w].
        encode_prompt: (pipe, caption or captions, tokens) -> text [B, L, D] and pooled text [B, P].
        targets: kind of module (attention, mlp, ...) -> endings of the names of its linear modules.
        eight_bit: components that do not fit on one 24 GB GPU in 16 bits.
        explicit_attention: makes a processor that computes the attention map explicitly; its backward pass is
            fast on CPUs.
        input: the module that reads the latents, or None for a family whose input cannot be widened.
    """

    velocity: Callable[[Any, Tensor, Tensor, Tensor, Tensor, float | Tensor], Tensor]
    encode_prompt: Callable[[Any, str | list[str], int], tuple[Tensor, Tensor]]
    targets: Mapping[str, tuple[str, ...]]
    eight_bit: tuple[str, ...]
    explicit_attention: Callable[[], Any]
    input: InputProjection | None = None


def class_names(given: type) -> list[str]:
    """Names of a class and of its parents, nearest first, so that no class has to be imported to be known.

    Args:
        given: the class.
    """
    return [kind.__name__ for kind in given.__mro__]


def first_output(output: Any) -> Tensor:
    """The prediction in the output of a transformer."""
    return output[0]


def with_first_output(output: Any, sample: Tensor) -> Any:
    """The output of a transformer, a tuple or an object of diffusers, with another prediction."""
    if isinstance(output, tuple):
        return (sample, *output[1:])
    return type(output)(**{**output, "sample": sample})


@dataclass(frozen=True)
class Family:
    """Everything that is particular to one architecture.

    Attributes:
        name: name in model cards and messages.
        layout: transformer -> its addressable parts.
        arguments: names of the arguments of the transformer and its blocks.
        carrier: the way of our values through these arguments.
        processor: class of the attention processors that perturb heads.
        text_length: call of the transformer -> number of text tokens in its sequence.
        conditional_rows: (pipe, batch) -> rows of the conditional prompts in the first call of a step, which
            depend on how CFG is done. `second_half` and `every_row` are the usual ones.
        noise_level: call of the transformer -> its noise level, from 0 to 1.
        prediction: output of the transformer -> its prediction [B, ...].
        with_prediction: (output, prediction) -> the output with this prediction.
        pipelines: how pictures are generated, or None for a family that can only be guided.
        training: how it is trained, or None for a family that cannot be trained.
        lora_dialects: namings of modules in LoRA files other than that of diffusers.
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


# --- shared by several families ---

# Linear modules of diffusers' `Attention` class, including those of the text stream.
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
    """Conditional rows without CFG, or where CFG is two calls, the conditional one first."""
    return slice(0, batch)


def second_half(pipe: Any, batch: int) -> slice:
    """Conditional rows where CFG is one call with the negative prompts first."""
    if not getattr(pipe, "do_classifier_free_guidance", False):
        return slice(0, batch)
    if batch % 2:
        raise InputError(f"pipe: with CFG the batch is two halves, got {batch} rows")
    return slice(batch // 2, batch)


def head_counts(blocks: Iterable[Any], attention: str = "attn") -> tuple[int, ...]:
    """Number of heads in the attention of each block.

    Raises:
        InputError: for a block without an attention module of this name.
    """
    found = [getattr(getattr(block, attention, None), "heads", None) for block in blocks]
    for number, count in enumerate(found):
        if count is None:
            raise InputError(f"transformer: expected an attention '{attention}' in block {number}, got none")
    return tuple(found)  # pyright: ignore[reportReturnType]
