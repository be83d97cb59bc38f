"""From settings to pictures: what `dit-heads generate` checks, draws and writes into its files."""

import math
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields, replace
from types import NoneType
from typing import Annotated, Any, get_args, get_type_hints

import tyro
from PIL import Image

from dit_heads import HeadSet, __version__
from dit_heads.errors import InputError

# The embedded model has read captions of this length in most of its training, and the 256 tokens that SD3
# pads to by default cost more than the picture itself.
EMBEDDED_TEXT_TOKENS = 64
DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Settings:
    """All that a picture depends on; written into its file."""

    prompt: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="PROMPT")]] = ""
    """what the picture shows"""
    negative_prompt: str = ""
    """what CFG leads away from; not for FLUX"""
    model: str = "embedded"
    """embedded, embedded/flux, a folder in diffusers' format, or a model id of the hub"""
    heads: Annotated[str | None, tyro.conf.arg(metavar="HEADS")] = None
    """heads to guide by, such as "L1H10, L7, L12H0-5", or a JSON file of them; without, no head guidance"""
    scale: float = 3.0
    """head guidance scale w; 0 is off"""
    softness: float = 1.0
    """how far the heads are perturbed, u, from 0 to 1"""
    start: float = 0.0
    """guide by heads from this fraction of the steps on"""
    stop: float = 1.0
    """and before this one"""
    guidance_scale: float = 4.0
    """classifier-free guidance (CFG), 1 is off; of FLUX, the guidance that is distilled into it"""
    steps: int = 28
    """denoising steps"""
    seed: int = 0
    """of the first picture; the next ones count up from it"""
    num_images: int = 1
    """how many pictures, one seed each"""
    width: Annotated[int | None, tyro.conf.arg(metavar="PIXELS")] = None
    """pixels; without, the model's own"""
    height: Annotated[int | None, tyro.conf.arg(metavar="PIXELS")] = None
    """pixels; without, the model's own"""
    dtype: str = "auto"
    """auto, float32, bfloat16 or float16"""


_RANGES: dict[str, tuple[float, float]] = {
    "scale": (0, math.inf),
    "softness": (0, 1),
    "start": (0, 1),
    "stop": (0, 1),
    "guidance_scale": (0, math.inf),
    "steps": (1, 1000),
    "seed": (0, 2**63 - 1),
    "num_images": (1, 64),
    "width": (16, 8192),
    "height": (16, 8192),
}


def checked(settings: Settings) -> HeadSet | None:
    """The heads of the settings, once everything that needs no model is known to be right.

    Raises ValueError naming the setting, what was expected and what came.
    """
    if not settings.prompt.strip():
        raise InputError("prompt: expected a description of the picture, got nothing")
    for name, (low, high) in _RANGES.items():
        value = getattr(settings, name)
        if value is not None and not (low <= value <= high and math.isfinite(value)):
            limits = f"from {low:g} to {high:g}" if math.isfinite(high) else f"of at least {low:g}"
            raise InputError(f"{name}: expected a number {limits}, got {value}")
    if settings.start >= settings.stop:
        raise InputError(f"start: expected less than stop = {settings.stop}, got {settings.start}")
    if settings.dtype not in DTYPES:
        raise InputError(f"dtype: expected {', '.join(DTYPES)}, got '{settings.dtype}'")
    return None if settings.heads is None else _head_set(settings.heads)


def from_file_settings(stored: Mapping[str, Any]) -> Settings:
    """Settings as `read_settings` found them. Raises ValueError on a value of another type."""
    hints = get_type_hints(Settings)
    known = {field.name: stored[field.name] for field in fields(Settings) if field.name in stored}
    for name, value in known.items():
        kinds = get_args(hints[name]) or (hints[name],)
        # JSON has one kind of number, so 3 may stand for 3.0; a bool is an int to isinstance alone.
        if isinstance(value, bool) or not isinstance(value, (*kinds, int) if float in kinds else kinds):
            expected = " or ".join("null" if kind is NoneType else kind.__name__ for kind in kinds)
            raise InputError(f"from: expected `{name}` to be {expected}, the file has {value!r}")
    return Settings(**known)


def stored_settings(settings: Settings) -> dict[str, Any]:
    """What goes into a picture's file, and comes back out through `from_file_settings`."""
    return {**asdict(settings), "version": __version__}


def one_by_one(settings: Settings) -> list[Settings]:
    """The settings of each single picture; any of them alone gives that picture again."""
    return [replace(settings, seed=settings.seed + i, num_images=1) for i in range(settings.num_images)]


def draw(pipe: Any, settings: Settings, heads: HeadSet | None) -> Iterator[tuple[Settings, Image.Image, Any]]:
    """Each picture as it is done, with its own settings and the guidance's report (None without heads)."""
    # One at a time: a picture must not depend on how many others were asked for with it.
    for number, single in enumerate(one_by_one(settings), start=1):
        pipe.set_progress_bar_config(desc=f"picture {number} of {settings.num_images}")
        with guidance(pipe, heads, single) as guide:
            image = pipe(**call_arguments(single)).images[0]
        yield single, image, guide.report if guide else None


def guidance(pipe: Any, heads: HeadSet | None, settings: Settings) -> Any:
    """The context manager that guides by heads, or one that does nothing."""
    if heads is None:
        return nullcontext()
    from dit_heads.guidance import HeadGuidance

    return HeadGuidance(
        pipe,
        heads,
        scale=settings.scale,
        softness=settings.softness,
        start=settings.start,
        stop=settings.stop,
    )


def call_arguments(settings: Settings) -> dict[str, Any]:
    """The pipeline call that the settings ask for."""
    import torch

    from dit_heads.models import EMBEDDED

    arguments: dict[str, Any] = {
        "prompt": settings.prompt,
        "num_inference_steps": settings.steps,
        "guidance_scale": settings.guidance_scale,
        # On the CPU, so that a seed means the same picture on every device.
        "generator": torch.Generator("cpu").manual_seed(settings.seed),
        "width": settings.width,
        "height": settings.height,
    }
    if settings.negative_prompt:
        arguments["negative_prompt"] = settings.negative_prompt
    if settings.model in EMBEDDED:
        arguments["max_sequence_length"] = EMBEDDED_TEXT_TOKENS
    return arguments


def _head_set(heads: str) -> HeadSet:
    return HeadSet.load(heads) if heads.endswith(".json") else HeadSet.parse(heads)
