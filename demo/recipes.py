"""The command line and the Python that draw a picture again."""

from __future__ import annotations

import shlex
from dataclasses import fields
from typing import Any

from dit_heads.cli.generate import GUIDANCE, Settings
from dit_heads.models import text_arguments

_PYTHON = """\
import torch
{imports}from dit_heads.models import load_pipeline

pipe = load_pipeline({model!r}{dtype})
{image}
image.save("picture.png")
"""


def command_line(settings: Settings) -> str:
    """`dit-heads generate` with every setting that is not the usual one."""
    usual = Settings()
    words = ["dit-heads", "generate", settings.prompt]
    for each in fields(Settings):
        value = getattr(settings, each.name)
        if each.name in ("prompt", "num_images") or value == getattr(usual, each.name):
            continue
        # Joined, so that a value may begin with a dash.
        words.append(f"--{each.name.replace('_', '-')}={value}")
    return shlex.join([*words, "--out", "picture.png"])


def python_code(settings: Settings) -> str:
    """A script that draws the picture."""
    call = [f"    {line},\n" for line in _call(settings)]
    if settings.heads is None:
        image = f"image = pipe(\n{''.join(call)}).images[0]"
    else:
        call = [f"    {line}" for line in call]
        image = f"{_guidance(settings)}\n    image = pipe(\n{''.join(call)}    ).images[0]"
    return _PYTHON.format(
        imports="" if settings.heads is None else "from dit_heads import HeadGuidance\n",
        model=settings.model,
        dtype="" if settings.dtype == "auto" else f", {settings.dtype!r}",
        image=image,
    )


def _guidance(settings: Settings) -> str:
    usual = Settings()
    changed = {name: getattr(settings, name) for name in GUIDANCE}
    listed = [f"{name}={v!r}" for name, v in changed.items() if v != getattr(usual, name) or name == "scale"]
    return f"with HeadGuidance(pipe, {settings.heads!r}, {', '.join(listed)}):"


def _call(settings: Settings) -> list[str]:
    sides: dict[str, Any] = {"width": settings.width, "height": settings.height}
    options = {
        "num_inference_steps": settings.steps,
        "guidance_scale": settings.guidance_scale,
        **({"negative_prompt": settings.negative_prompt} if settings.negative_prompt else {}),
        **{name: side for name, side in sides.items() if side is not None},
        **text_arguments(settings.model),
    }
    lines = [repr(settings.prompt), *(f"{name}={value!r}" for name, value in options.items())]
    return [*lines, f'generator=torch.Generator("cpu").manual_seed({settings.seed})']
