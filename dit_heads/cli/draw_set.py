"""From the settings of a set to its pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from PIL import Image

from dit_heads.cli.draw import unread_end
from dit_heads.cli.in_context import SetSettings
from dit_heads.errors import InputError
from dit_heads.loras.sets.grid import PIXELS, Grid
from dit_heads.models import EMBEDDED, model_sides
from dit_heads.pipelines import InContextPipeline

MOST = 512  # pixels of a panel's side, unless the settings say more
CAPTION_TOKENS = 128  # that the embedded models' LoRAs were trained with


def grid_of(settings: SetSettings, transformer: Any) -> Grid:
    """The panels of settings.

    Args:
        settings: the settings; a side that they leave open is the model's, and fits into its positions.
        transformer: the model's, as `empty_transformer` gives it.
    """
    usual, largest = model_sides(settings.model, transformer)
    rows, columns = settings.rows, settings.columns
    height = settings.height or panel_side(usual, largest, rows, columns)
    width = settings.width or panel_side(usual, largest, rows, columns)
    grid = Grid.equal(rows, columns, height=height, width=width)
    if largest is not None and max(grid.height, grid.width) > largest:
        raise InputError(
            f"height, width: expected a set of at most {largest} x {largest} pixels, as far as this model's "
            f"positions reach, got {grid.width} x {grid.height}"
        )
    return grid


def panel_side(usual: int, largest: int | None, rows: int, columns: int) -> int:
    """Side of a panel in pixels, where the settings say none.

    Args:
        usual: side of the model's pictures.
        largest: side that its positions reach, None for any.
        rows, columns: of the grid.
    """
    step = PIXELS["tokens"]
    side = min(usual, MOST, MOST if largest is None else largest // max(rows, columns))
    return max(step, side // step * step)


def caption_arguments(model: str) -> dict[str, Any]:
    """The arguments about text of a set's call that a model wants otherwise than by default."""
    return {"max_sequence_length": CAPTION_TOKENS} if model in EMBEDDED else {}


def draw_set(
    pipe: Any,
    settings: SetSettings,
    given: Mapping[int, Image.Image] | None = None,
    callback: Callable[..., Any] | None = None,
) -> Image.Image:
    """Draw a set.

    Args:
        pipe: the pipeline, its LoRAs attached.
        settings: the settings.
        given: panels to keep, by their numbers.
        callback: the pipeline's `callback_on_step_end`.

    Returns:
        The picture of all panels.

    Raises:
        InputError: as of `InContextPipeline`, and for pixels that are not finite.
    """
    call: dict[str, Any] = {
        "num_inference_steps": settings.steps,
        "guidance_scale": settings.guidance_scale,
        "generator": torch.Generator("cpu").manual_seed(settings.seed),
        **caption_arguments(settings.model),
    }
    if settings.negative_prompt:
        call["negative_prompt"] = settings.negative_prompt
    if callback is not None:
        call["callback_on_step_end"] = callback
    grid = grid_of(settings, pipe.transformer)
    drawn = InContextPipeline(pipe)(settings.prompt, grid=grid, given=given or None, output_type="pt", **call)
    if not drawn.images.isfinite().all():
        raise InputError("picture: the model gave numbers that are not finite; use less guidance or LoRA")
    processor = pipe.image_processor
    return processor.numpy_to_pil(processor.pt_to_numpy(drawn.images))[0]


def unread_words(pipe: Any, settings: SetSettings) -> str:
    """The end of a caption that no text encoder of a pipeline reads; "" for none."""
    length = caption_arguments(settings.model).get("max_sequence_length", 256)
    return unread_end(pipe, settings.prompt, length)
