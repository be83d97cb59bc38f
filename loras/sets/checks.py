"""What sizes, prompts and captions of sets tell before a model is loaded."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from dit_heads.errors import InputError
from dit_heads.loras.config import DataConfig
from dit_heads.loras.run_folder import listed
from dit_heads.loras.sets.captions import PLACES, check_panels, markers, markers_in
from dit_heads.loras.sets.dataset import SetDataset

logger = logging.getLogger(__name__)


def check_composites(data: DataConfig, most: int | None) -> None:
    """Refuse panels whose composites have a side of more than `most` pixels.

    Raises:
        InputError: a line for each size.
    """
    sides = [(data.rows * height, data.columns * width) for height, width in data.sizes]
    problems = [
        f"sizes: expected composites of at most {most} pixels a side for this model, got panels of "
        f"{size[0]} x {size[1]}, whose composites are {height} x {width}"
        for size, (height, width) in zip(data.sizes, sides, strict=True)
        if most is not None and max(height, width) > most
    ]
    if problems:
        raise InputError("\n".join(problems))


def check_prompts(prompts: Sequence[str]) -> None:
    """Refuse prompts of samples that are empty."""
    for number, prompt in enumerate(prompts, 1):
        if not prompt.strip():
            raise InputError(f"prompts: expected words in each, got none in number {number}")


def warn_of_prompts(prompts: Sequence[str], data: DataConfig) -> None:
    """Warn of prompts that `InContextPipeline` would not take for the grid of a run."""
    for prompt in prompts if data.rows * data.columns > 1 else ():
        try:
            check_panels(prompt, data.rows, data.columns)
        except InputError as error:
            logger.warning("prompts: %r: %s; the sample is drawn all the same", prompt, error)


def warn_of_captions(sets: SetDataset, data: DataConfig) -> None:
    """Warn of captions without markers: a LoRA learns them, but `InContextPipeline` asks for markers."""
    bare = [each.source for each in sets.samples if not markers_in(each.caption)]
    if bare and data.rows * data.columns > 1:
        shape = data.rows, data.columns
        logger.warning(
            "root: captions have no markers such as %s, which InContextPipeline asks for: %s",
            " ".join(PLACES.get(shape) or markers(*shape, "images")),
            listed(bare),
        )
