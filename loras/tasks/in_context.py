"""In-Context LoRA (arXiv 2410.23775): sets of pictures, joined into composites of panels."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from dit_heads.families import pipelines_of
from dit_heads.loras.base import Encoders
from dit_heads.loras.config import DataConfig, TrainConfig
from dit_heads.loras.run_folder import contents
from dit_heads.loras.sets.captions import warn_of_cuts
from dit_heads.loras.sets.checks import (
    check_composites,
    check_prompts,
    panel_orders,
    warn_of_captions,
    warn_of_prompts,
)
from dit_heads.loras.sets.dataset import Sample, SetDataset
from dit_heads.loras.sets.grid import PIXELS, loss_weight
from dit_heads.loras.tasks.drawing import prompt_arguments, sampling_arguments
from dit_heads.loras.tasks.prior import draw_prior
from dit_heads.loras.tasks.task import EMPTY_CAPTION, Drawing, Example
from dit_heads.training.loop import Part
from dit_heads.training.processes import process_state


@dataclass
class InContext:
    """The task of In-Context LoRA.

    `held_out` are the sets for validation, `kept` the pictures of the prior."""

    config: TrainConfig
    data: SetDataset
    held_out: SetDataset | None = None
    kept: SetDataset | None = None
    encoders: Encoders | None = None
    extra_channels: int = 0

    @classmethod
    def of(cls, config: TrainConfig) -> InContext:
        """The task of a run. Reads all sets but those of the prior, which may not be drawn yet."""
        root = config.watch.validation
        held_out = None if root is None else sets_of(config.data, root, config.seed)
        return cls(config, sets_of(config.data, config.data.root, config.seed), held_out)

    def plan(self, transformer: nn.Module) -> None:
        """Raise InputError if a composite is larger than what the transformer has positions for, or a prompt
        is empty. Tell which file is which panel, and warn of captions and prompts that `InContextPipeline`
        would not take."""
        pipe = SimpleNamespace(transformer=transformer, vae_scale_factor=PIXELS["latents"])
        data, prompts = self.config.data, self.config.watch.prompts
        check_composites(data, pipelines_of(transformer).largest_side(pipe))
        check_prompts(prompts)
        if process_state().is_main_process:
            if order := panel_orders(self.data):
                print(order, file=sys.stderr)
            warn_of_prompts(prompts, data)
            warn_of_captions(self.data, data)

    def prepare(self, encoders: Encoders) -> None:
        """Draw the prior's missing pictures, and encode all pictures and captions."""
        self.encoders, loss = encoders, self.config.loss
        if loss.prior is not None:
            if loss.prior_prompt is not None:
                draw_prior(encoders, loss.prior_prompt, loss.prior, self.config)
            single = DataConfig(sizes=self.config.data.sizes[:1], columns=1, fit=self.config.data.fit)
            self.kept = sets_of(single, loss.prior, self.config.seed)
        everything = [data for data in (self.data, self.held_out, self.kept) if data is not None]
        samples = [sample for data in everything for sample in data.samples]
        captions = {sample.caption: f"caption of {sample.source}" for sample in samples}
        captions |= dict.fromkeys(self.config.watch.prompts, "prompts")
        if encoders.state.is_main_process:
            warn_of_cuts(encoders.pipe, captions, encoders.tokens)
        pictures = [view for data in everything for view in data.views()]
        encoders.fill([EMPTY_CAPTION, *captions], pictures)

    def contents(self) -> Mapping[str, Mapping[str, list[str]]]:
        """Hashes of the pictures and the caption of each set."""
        prior = {} if self.kept is None else {"prior": contents(self.kept)}
        return {"root": contents(self.data), **prior}

    def parts(self) -> Mapping[str, nn.Module]:
        """None beside the transformer."""
        return {}

    def examples(self, part: Part, batch_size: int) -> list[Example]:
        """Sets, the latents of each panel weighted as the settings say. Arguments as of `Task.examples`."""
        samples = self.data.batch_at(part.step, batch_size)[part.index :: part.count]
        return [self._example(sample, self.config.loss.panel_weights) for sample in samples]

    def prior(self, part: Part, batch_size: int) -> list[Example]:
        """Single pictures that the transformer should keep drawing. Arguments as of `Task.examples`."""
        if self.kept is None:
            return []
        samples = self.kept.batch_at(part.step, batch_size)[part.index :: part.count]
        return [self._example(sample) for sample in samples]

    def validation(self) -> Iterator[Example]:
        """The sets for validation."""
        for sample in () if self.held_out is None else self.held_out.samples:
            yield self._example(sample, self.config.loss.panel_weights)

    def embed(self, prompts: Sequence[str]) -> tuple[Float[Tensor, "B L D"], Float[Tensor, "B P"]]:
        """Embeddings of captions."""
        return self._ready.embed(prompts)

    def drawings(self, pipe: Any) -> Iterator[Drawing]:
        """A composite of each prompt, always from the same noise."""
        grid, watch, seed = self.data[0].grid, self.config.watch, self.config.seed
        for number, prompt in enumerate(watch.prompts):
            call = sampling_arguments(watch, grid.height, grid.width, seed)
            image = pipe(**prompt_arguments(pipe, self._ready, prompt), **call).images[0]
            settings = {"prompt": prompt, "seed": seed, "steps": watch.sample_steps}
            yield Drawing(str(number), image, settings)

    @property
    def _ready(self) -> Encoders:
        assert self.encoders is not None, "not prepared"
        return self.encoders

    def _example(self, sample: Sample, weights: Sequence[float] = ()) -> Example:
        latents = self._ready.latents(sample)["latents"]
        return Example(sample.caption, latents, weight=loss_weight(sample.grid, weights) if weights else None)


def sets_of(data: DataConfig, root: Path, seed: int) -> SetDataset:
    """Read the sets in a folder as the settings say.

    Args:
        data: the settings.
        root: the folder.
        seed: of the order.
    """
    return SetDataset(
        root,
        rows=data.rows,
        columns=data.columns,
        buckets=data.sizes,
        fit=data.fit,
        flip=data.flip,
        seed=seed,
        on_error=data.on_error,
    )
