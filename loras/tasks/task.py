"""What a run can teach a transformer: the protocol of a task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from dit_heads.loras.base import Encoders
from dit_heads.training.generators import keyed_generator
from dit_heads.training.loop import Part

EMPTY_CAPTION = ""  # the prompt of a sample whose caption is dropped, as classifier-free guidance encodes it


@dataclass(frozen=True)
class Example:
    """One sample, on the CPU, before it gets noise.

    `source` are latents that a widened input reads beside the noisy ones, None for zeros; `reference` are
    latents whose tokens stand in the sequence, for all samples of a batch or for none. `weight` is what each
    latent's error counts, None for 1. `shift` moves the noise level beside the shift of the loss, and
    `droppable` says whether the loss may leave out the prompt."""

    prompt: Any
    latents: Float[Tensor, "C H W"]
    source: Float[Tensor, "S H W"] | None = None
    weight: Float[Tensor, "1 H W"] | None = None
    reference: Float[Tensor, "C H W"] | None = None
    shift: float = 1.0
    droppable: bool = True


@dataclass(frozen=True)
class Drawing:
    """A picture that shows what a run has learned so far: the end of its file's name, the settings that its
    file keeps, and figures that say how good it is."""

    name: str
    image: Image.Image
    settings: Mapping[str, Any] = field(default_factory=dict)
    figures: Mapping[str, float] = field(default_factory=dict)


class Task(Protocol):
    """What a run teaches a transformer. The trainer brings the loop, the loss, the LoRA and the files.

    A task is made from the settings of the run, and reads its data then. `plan` is called first, then
    `prepare`, then the other methods in any order."""

    extra_channels: int
    """Latent channels of a source that the transformer reads beside the noisy ones, 0 without a source."""

    def plan(self, transformer: nn.Module) -> None:
        """Raise InputError for all that would stop the run later.

        The transformer has no weights yet: it is on the `meta` device, and not widened."""
        ...

    def prepare(self, encoders: Encoders) -> None:
        """Make and encode what the run reads, while all encoders are in memory."""
        ...

    def contents(self) -> Mapping[str, Mapping[str, list[str]]]:
        """What the run learns from: by the setting that names it, hashes of each item by its name."""
        ...

    def parts(self) -> Mapping[str, nn.Module]:
        """Modules that are trained together with the transformer, by name. Each is stored in a file of its
        name."""
        ...

    def examples(self, part: Part, batch_size: int) -> list[Example]:
        """The samples of a part of a batch, all of one size.

        Args:
            part: `part.index::part.count` of batch `part.step`.
            batch_size: number of samples in the whole batch, over all processes.
        """
        ...

    def prior(self, part: Part, batch_size: int) -> list[Example]:
        """Samples that the transformer should keep drawing as it does, likewise. Empty without any."""
        ...

    def validation(self) -> Iterator[Example]:
        """Samples whose loss is measured during the run, always in the same order."""
        ...

    def embed(self, prompts: Sequence[Any]) -> tuple[Float[Tensor, "B L D"], Float[Tensor, "B P"]]:
        """Prompt embeddings and pooled ones, as pipelines make them. `EMPTY_CAPTION` is always a prompt."""
        ...

    def drawings(self, pipe: Any) -> Iterator[Drawing]:
        """Pictures by the pipeline with its present weights, always from the same noise."""
        ...


def left_out(share: float, seed: int, step: int, place: int) -> tuple[bool, bool]:
    """Whether a sample is trained without its instruction, and without its picture: each alone and both in
    equal shares, so that guidance towards each can be had later (InstructPix2Pix, arXiv 2211.09800, section
    3.2.1).

    Args:
        share: of samples without the instruction alone, without the picture alone, and without both.
        seed, step, place: that decide.
    """
    draw = torch.rand((), generator=keyed_generator(seed, "dropout", step, place)).item()
    return draw < share or 2 * share <= draw < 3 * share, share <= draw < 3 * share
