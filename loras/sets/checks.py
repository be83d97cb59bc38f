"""What sizes, prompts and captions of sets tell before a model is loaded."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from dit_heads.errors import InputError, listed
from dit_heads.loras.config import DataConfig
from dit_heads.loras.sets.captions import check_caption
from dit_heads.loras.sets.dataset import SetDataset
from dit_heads.tasks.markers import families

logger = logging.getLogger(__name__)
_SHOWN = 5  # orders of names that are shown


def check_composites(data: DataConfig, most: int | None) -> None:
    """Refuse panels whose composites are too large for a model.

    Args:
        data: the panels, with sizes in pixels.
        most: the longest side in pixels that the model has positions for, None for any.

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
    """Refuse prompts of samples that are empty. Raises `InputError` with the number of the first."""
    for number, prompt in enumerate(prompts, 1):
        if not prompt.strip():
            raise InputError(f"prompts: expected words in each, got none in number {number}")


def warn_of_prompts(prompts: Sequence[str], data: DataConfig) -> None:
    """Warn of prompts that are not joint captions of a run's grid: their samples show little of what it
    learns.

    Args:
        prompts: of samples.
        data: the grid.
    """
    for prompt in prompts if data.rows * data.columns > 1 else ():
        try:
            if check_caption(prompt, data.rows, data.columns) is not None:
                continue
            problem = f"expected markers such as {_example(data)}, got none"
        except InputError as error:
            problem = str(error)
        logger.warning("prompts: %r: %s; the sample is drawn all the same", prompt, problem)


def warn_of_captions(sets: SetDataset, data: DataConfig) -> None:
    """Warn of captions without markers, which `InContextPipeline` takes with `marker_style="none"` alone.

    Args:
        sets: with their captions.
        data: the grid.
    """
    if data.rows * data.columns == 1:
        return
    bare = [each.source for each in sets.samples if check_caption(each.caption, *each.grid.shape) is None]
    if bare:
        logger.warning(
            "root: captions have no markers such as %s; InContextPipeline then needs marker_style='none': %s",
            _example(data),
            listed(bare),
        )


def _example(data: DataConfig) -> str:
    return " ".join(families(data.rows, data.columns)[-1])


def panel_orders(sets: SetDataset) -> str:
    """Which file of a set becomes which panel, for people to look at before they train.

    Returns:
        The number of sets, then a line for each order of file names, the most common one first. Ready
        composites have no order; "" if there is nothing else, or only single pictures.
    """
    joined = [sample for sample in sets.samples if not sample.ready and len(sample.files) > 1]
    if not joined:
        return ""
    places = families(*joined[0].grid.shape)[-1]
    orders: dict[tuple[str, ...], list[str]] = {}
    for sample in joined:
        orders.setdefault(tuple(path.name for path in sample.files), []).append(sample.source)
    lines = [
        f"  {', '.join(map(' '.join, zip(places, names, strict=True)))} in {listed(sources, 3)}"
        for names, sources in sorted(orders.items(), key=lambda order: -len(order[1]))
    ]
    more = [f"  and {len(lines) - _SHOWN} other orders"] if len(lines) > _SHOWN else []
    return "\n".join([f"panels of {len(joined)} sets, in this order:", *lines[:_SHOWN], *more])
