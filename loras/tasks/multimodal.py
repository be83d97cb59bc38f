"""Instructions with pictures in them (MIGE, arXiv 2502.21291): subjects in new scenes, edits, and both.

Beside the LoRA and the widened input, the encoder of references is trained. So text is encoded in each step,
all of a batch in one go.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from dit_heads.embedded.world.scenes import Split
from dit_heads.errors import InputError
from dit_heads.fusion.encoder import FusionConfig, ReferenceEncoder
from dit_heads.fusion.splice import last_text_encoder, spliced
from dit_heads.loras.base import Encoders
from dit_heads.loras.config import MultimodalConfig, TrainConfig
from dit_heads.loras.sets.captions import warn_of_cuts
from dit_heads.loras.tasks.drawing import sampling_arguments
from dit_heads.loras.tasks.edit_pairs import EditFolder, EditPair, EditPairs, WorldEdits
from dit_heads.loras.tasks.instruct import latent_channels
from dit_heads.loras.tasks.references import References
from dit_heads.loras.tasks.task import EMPTY_CAPTION, Drawing, Example, left_out
from dit_heads.models import load_image_tower
from dit_heads.objectives.image_tower import ImageTower
from dit_heads.tasks.multimodal import MultimodalInstruction
from dit_heads.training.loop import Part
from dit_heads.training.sampler import draws_at
from dit_heads.training.widen import reading

REFERENCES = "references"
EMPTY = MultimodalInstruction((EMPTY_CAPTION,))


@dataclass
class Multimodal:
    """The task of instructions with pictures in them.

    `pairs` are those of the run, `held_out` those that are measured on the way, if any are."""

    config: TrainConfig
    pairs: EditPairs
    held_out: EditPairs | None
    extra_channels: int
    encoders: Encoders | None = None
    encoder: ReferenceEncoder | None = None
    tower: ImageTower | None = None
    references: References | None = None

    @classmethod
    def of(cls, config: TrainConfig) -> Multimodal:
        """The task of a run."""
        if config.data.encode == "all":
            raise InputError(
                "encode: expected lazy or off for the task multimodal, which reads text in each step, got all"
            )
        trained, measured = _pairs(config, "train"), _pairs(config, "validation")
        assert trained is not None
        return cls(config, trained, measured, latent_channels(config.model))

    def plan(self, transformer: nn.Module) -> None:
        """Nothing beside what `check_task` looks at."""

    def prepare(self, encoders: Encoders) -> None:
        """Make the encoder of references for the model of the run."""
        self.encoders, chosen = encoders, self.config.multimodal
        self.tower = tower = load_image_tower(chosen.tower)
        config = fusion_config(encoders.pipe, tower, chosen)
        with torch.random.fork_rng():
            torch.manual_seed(self.config.seed)
            self.encoder = ReferenceEncoder(config).to(encoders.state.device)
        self.references = References.of(encoders, tower, chosen.features)

        if encoders.state.is_main_process:
            self._warn_of_cuts()

    def _warn_of_cuts(self) -> None:
        """Warn of words of the first batch, and of those that are measured, that no encoder reads."""
        first = draws_at(0, self.config.optimization.batch_size, [range(len(self.pairs))], self.config.seed)
        for pair in [*(self._pair(*draw) for draw in first), *self._measured()]:
            words, pictures = pair.instruction, len(pair.instruction.pictures)
            room = self._ready.tokens - pictures * self.config.multimodal.tokens
            warn_of_cuts(self._ready.pipe, {words.text: f"the instruction of {pair.name}"}, max(room, 1))

    def contents(self) -> Mapping[str, Mapping[str, list[str]]]:
        """Hashes of the pairs."""
        return {"root": {self.config.multimodal.pairs: [self.pairs.key, self.pairs.key]}}

    def parts(self) -> Mapping[str, nn.Module]:
        """The encoder of references."""
        assert self.encoder is not None, "not prepared"
        return {REFERENCES: self.encoder}

    def examples(self, part: Part, batch_size: int) -> list[Example]:
        """Instructions with their results. Arguments as of `Task.examples`."""
        places = range(batch_size)[part.index :: part.count]
        draws = draws_at(part.step, batch_size, [range(len(self.pairs))], self.config.seed)
        made = self._examples([self._pair(*draws[k]) for k in places])
        return [self._dropped(example, part.step, k) for example, k in zip(made, places, strict=True)]

    def prior(self, part: Part, batch_size: int) -> list[Example]:
        """None."""
        return []

    def validation(self) -> Iterator[Example]:
        """Instructions about scenes that no step is about."""
        for pair in self._measured():
            yield from self._examples([pair])

    def embed(
        self, prompts: Sequence[MultimodalInstruction]
    ) -> tuple[Float[Tensor, "B L D"], Float[Tensor, "B P"]]:
        """Embeddings of instructions; gradients reach the encoder of references."""
        assert self.encoder is not None and self.references is not None, "not prepared"
        found = self.references.embedded(self.encoder, [p for one in prompts for p in one.pictures])
        each = iter(found)
        pictures = [[next(each) for _ in one.pictures] for one in prompts]
        return spliced(self._ready.pipe, prompts, pictures, self._ready.tokens)

    def drawings(self, pipe: Any) -> Iterator[Drawing]:
        """What the model makes of instructions, with the distance from the right result in levels of 255."""
        for number, pair in enumerate(self._measured()):
            image = self._drawn(pipe, pair)
            apart = np.asarray(image, float) - np.asarray(pair.target.composite(), float)
            kind = "edit" if pair.source else "subject"
            kind = "compositional" if pair.source and pair.instruction.pictures else kind
            settings = {"prompt": pair.instruction.text, "seed": self.config.seed}
            figures = {f"{kind} error": float(np.abs(apart).mean())}
            yield Drawing(f"{kind}-{number}", image, settings, figures)

    @torch.no_grad()
    def _drawn(self, pipe: Any, pair: EditPair) -> Image.Image:
        height, width = self.config.data.sizes[0]
        call = sampling_arguments(self.config.watch, height, width, self.config.seed)
        text, pooled = self.embed([pair.instruction])
        call |= {"prompt_embeds": text, "pooled_prompt_embeds": pooled}
        (example,) = self._examples([pair])
        assert example.source is not None
        with reading(pipe.transformer, example.source[None].to(text)):
            return pipe(**call).images[0]

    def _pair(self, index: int, epoch: int) -> EditPair:
        rng = np.random.default_rng((8, self.config.seed, epoch, index))
        pair = self.pairs.pair(index, rng)
        return pair.mirrored() if self.config.data.flip and rng.integers(2) else pair

    def _measured(self) -> list[EditPair]:
        held_out = self.held_out
        if held_out is None:
            return []
        count = min(self.config.multimodal.validation_pairs, len(held_out))
        places = (k * len(held_out) // count for k in range(count))
        return [held_out.pair(at, np.random.default_rng((9, at))) for at in places]

    def _examples(self, pairs: Sequence[EditPair]) -> list[Example]:
        """Samples; all of their pictures are encoded in one go. The source of a blank canvas is zero."""
        shown = [picture for pair in pairs for picture in (pair.target, pair.source) if picture is not None]
        found = iter(self._ready.latents.each(shown))
        made = []
        for pair in pairs:
            target = next(found)["latents"]
            source = torch.zeros_like(target) if pair.source is None else next(found)["latents"]
            made.append(Example(pair.instruction, target, source=source, droppable=False))
        return made

    def _dropped(self, example: Example, step: int, place: int) -> Example:
        """A sample without its instruction, its source, or both, in equal shares."""
        instruction, source = left_out(self.config.multimodal.dropout, self.config.seed, step, place)
        changed: dict[str, Any] = {}
        if instruction:
            changed["prompt"] = EMPTY
        if source:
            changed["source"] = torch.zeros_like(example.source)  # pyright: ignore[reportArgumentType]
        return replace(example, **changed)

    @property
    def _ready(self) -> Encoders:
        assert self.encoders is not None, "not prepared"
        return self.encoders


def fusion_config(pipe: Any, tower: ImageTower, chosen: MultimodalConfig) -> FusionConfig:
    """The sizes of an encoder of references for a pipeline.

    Args:
        pipe: with its text encoders.
        tower: the vision tower.
        chosen: settings of the task.
    """
    _, text = last_text_encoder(pipe)
    return FusionConfig(
        vision=tower.width,
        patches=pipe.transformer.inner_dim,
        text=text.get_input_embeddings().weight.shape[1],
        tokens=chosen.tokens,
        width=chosen.width,
        heads=chosen.heads,
        layers=chosen.layers,
    )


def _pairs(config: TrainConfig, split: Split) -> EditPairs | None:
    """The pairs of a split; None if there are none to measure."""
    size, *more = config.data.sizes
    chosen, measured = config.multimodal, split == "validation"
    if more or size[0] != size[1]:
        raise InputError(f"sizes: expected one square size, got {[list(each) for each in config.data.sizes]}")
    if measured and not chosen.validation_pairs:
        return None
    if chosen.pairs == "world":
        weights = chosen.kind_weights or (1.0,) * len(chosen.kinds)
        count = chosen.validation_pairs if measured else chosen.scenes
        return WorldEdits(split, count, size[0], chosen.kinds, weights)
    root = config.watch.validation if measured else config.data.root
    return None if root is None else EditFolder(root, size)
