"""From settings to pictures: checks against the model, the pipeline's call, and its result."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from inspect import signature
from typing import Any

import torch
from PIL import Image

from dit_heads import HeadGuidance, HeadSet
from dit_heads.cli.generate import GUIDANCE, Settings, without_heads
from dit_heads.cli.warn import warn
from dit_heads.errors import InputError
from dit_heads.families import Family, layout_of
from dit_heads.models import EMBEDDED, check_size, empty_transformer, text_arguments


def check_model(settings: Settings, heads: HeadSet | None) -> Settings:
    """The settings that a model can follow, judged by its configs alone.

    Args:
        settings: the settings.
        heads: the heads to guide by, or None.

    Returns:
        The settings, with those reset that have no effect.

    Raises:
        InputError: for heads that the model lacks, sizes that it cannot generate, and a negative prompt that
            nothing would read.
    """
    transformer: Any = empty_transformer(settings.model)
    layout = layout_of(transformer)
    if heads is not None:
        layout.resolve(heads)
    check_size(settings.model, transformer, width=settings.width, height=settings.height)
    if settings.negative_prompt:
        _check_negative_prompt(settings, layout.family)
    drawn = layout.family.pipelines
    asked = settings.guidance_scale != Settings().guidance_scale
    if asked and drawn is not None and not drawn.reads_guidance(transformer):
        warn("guidance_scale: no guidance is distilled into this model, so it has no effect")
    if settings.model in EMBEDDED:
        warn_of_unknown_words(f"{settings.prompt} {settings.negative_prompt}")
    return settings if heads is not None else without_heads(settings)


def draw(pipe: Any, settings: Settings, heads: HeadSet | None) -> Iterator[tuple[Settings, Image.Image]]:
    """Generate the pictures one by one, each with settings that reproduce it alone."""
    # One at a time, so that a picture does not depend on the number of others.
    for index in range(settings.num_images):
        single = replace(settings, seed=settings.seed + index, num_images=1)
        pipe.set_progress_bar_config(desc=f"picture {index + 1} of {settings.num_images}")
        with guidance(pipe, heads, single):
            image = finite_pictures(pipe, **call_arguments(single))[0]
        yield single, image


def guidance(pipe: Any, heads: HeadSet | None, settings: Settings) -> AbstractContextManager[Any]:
    """A context manager that guides by heads; without heads, one that does nothing."""
    if heads is None:
        return nullcontext()
    return HeadGuidance(pipe, heads, **{name: getattr(settings, name) for name in GUIDANCE})


def call_arguments(settings: Settings) -> dict[str, Any]:
    """Arguments of the pipeline's call."""
    arguments: dict[str, Any] = {
        "prompt": settings.prompt,
        "num_inference_steps": settings.steps,
        "guidance_scale": settings.guidance_scale,
        # On the CPU, so that a seed gives the same noise on every device.
        "generator": torch.Generator("cpu").manual_seed(settings.seed),
        "width": settings.width,
        "height": settings.height,
        **text_arguments(settings.model),
    }
    if settings.negative_prompt:
        arguments["negative_prompt"] = settings.negative_prompt
    return arguments


def finite_pictures(pipe: Any, **arguments: Any) -> list[Image.Image]:
    """Generate pictures with one call of a pipeline.

    Args:
        pipe: the pipeline.
        arguments: arguments of the call.

    Raises:
        InputError: for pixels that are not finite, which would be black in a file.
    """
    pixels = pipe(**arguments, output_type="pt").images  # [B, 3, H, W]
    if not pixels.isfinite().all():
        raise InputError(
            f"picture: the model gave numbers that are not finite in {pipe.transformer.dtype}; expected a "
            "dtype with a wider range (bfloat16, float32), or less guidance"
        )
    return pipe.image_processor.numpy_to_pil(pipe.image_processor.pt_to_numpy(pixels))


def lost_words(pipe: Any, prompt: str, max_sequence_length: int) -> dict[str, str]:
    """The ends of a prompt that text encoders truncate, by name of the encoder.

    Args:
        pipe: a pipeline whose text encoders all read the prompt.
        prompt: the text.
        max_sequence_length: number of tokens that encoders other than CLIPs read. CLIPs have their own limit.
    """
    lost = {}
    for name in sorted(
        name for name, part in pipe.components.items() if name.startswith("text_encoder") and part
    ):
        tokenizer = getattr(pipe, name.replace("text_encoder", "tokenizer"))
        is_clip = getattr(pipe, name).config.model_type.startswith("clip")
        limit = tokenizer.model_max_length if is_clip else max_sequence_length
        tokens = tokenizer(prompt, verbose=False).input_ids
        if len(tokens) > limit:
            # The last token marks the end of the text and is always kept.
            lost[name] = tokenizer.decode(tokens[limit - 1 : -1]).strip()
    return lost


def unread_end(pipe: Any, prompt: str, max_sequence_length: int) -> str:
    """The end of a prompt that no text encoder of a pipeline reads; "" for none. Arguments as of
    `lost_words`."""
    lost = lost_words(pipe, prompt, max_sequence_length)
    encoders = [name for name, part in pipe.components.items() if name.startswith("text_encoder") and part]
    return min(lost.values(), key=len) if len(lost) == len(encoders) else ""


def warn_of_lost_words(pipe: Any, settings: Settings) -> None:
    """Warn of words in the prompts that a text encoder truncates."""
    length = signature(pipe.__call__).parameters["max_sequence_length"].default
    length = text_arguments(settings.model).get("max_sequence_length", length)
    for name in ("prompt", "negative_prompt"):
        for encoder, words in lost_words(pipe, getattr(settings, name), length).items():
            warn(f"{name}: too long for {encoder}, which does not read '{words}'")


def _check_negative_prompt(settings: Settings, family: Family) -> None:
    if family.pipelines is not None and family.pipelines.distilled:
        raise InputError(
            f"negative_prompt: expected none for {family.name.upper()}, whose guidance is distilled into it: "
            f"it makes no call that would read '{settings.negative_prompt}'"
        )
    if settings.guidance_scale <= 1:
        raise InputError(
            "negative_prompt: expected none where guidance_scale is 1 or less: without classifier-free "
            f"guidance nothing reads '{settings.negative_prompt}'"
        )


def warn_of_unknown_words(text: str) -> None:
    """Warn of words in a text for an embedded model that it has never read."""
    from dit_heads.embedded.world.text import unknown_words

    if words := unknown_words(text):
        warn(f"words that the embedded model has never read: {', '.join(words)}")
