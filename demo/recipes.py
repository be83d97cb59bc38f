"""The command line and the Python that draw a picture or a set of pictures, answer a question, or edit
a picture again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from dit_heads.cli.draw_set import caption_arguments
from dit_heads.cli.edit import EditSettings
from dit_heads.cli.generate import GUIDANCE, Settings
from dit_heads.cli.in_context import MISSING, SetSettings
from dit_heads.cli.loras import SUFFIX, parsed_lora
from dit_heads.cli.see import SeeSettings
from dit_heads.demo.editing import MASK, RESULT, Asked
from dit_heads.demo.seeing import ANSWER, PICTURE
from dit_heads.loras.sets.grid import Grid
from dit_heads.models import text_arguments

_PYTHON = """\
import torch
{imports}from dit_heads.models import load_pipeline

pipe = load_pipeline({model!r}{dtype})
{image}
image.save("picture.png")
"""
_SET = """\
import torch
{imports}from dit_heads.models import load_pipeline
from dit_heads.pipelines import InContextPipeline

pipe = load_pipeline({model!r}{dtype})
{loras}drawn = InContextPipeline(pipe)(
{call})
drawn.images[0].save("set.png")
"""
_SEE = """\
import torch
{imports}from dit_heads.models import load_pipeline
from dit_heads.pipelines import with_instruct_lora

see = with_instruct_lora(load_pipeline({model!r}), {lora})
answer = see.ask(
{call})
print(answer.annotations[0])
answer.visualize({picture!r}, scale={scale})[0].save({file!r})
"""
_SEE_BY_TOKENS = """\
{imports}from dit_heads.models import load_pipeline
from dit_heads.pipelines import with_soft_tokens

see = with_soft_tokens(load_pipeline({model!r}), {tokens})
answer = see.ask({picture!r}, {question!r})
print(answer.annotations[0])
answer.visualize({picture!r}, scale={scale})[0].save({file!r})
"""
_EDIT = """\
import torch
{imports}from dit_heads.models import load_pipeline
from dit_heads.pipelines import with_multimodal_lora

paint = with_multimodal_lora(load_pipeline({model!r}), {lora})
painted = paint(
{call})
painted.images[0].save({file!r})
"""
_LORAS = """\
loras = [{files}]
parts = [(read_lora(path, pipe.transformer), scale) for path, scale in loras]
add_lora(pipe, compose(pipe.transformer, parts), "loras")
"""


def command_line(settings: Settings) -> str:
    """`dit-heads generate` with every setting that is not the usual one."""
    words = ["dit-heads", "generate", settings.prompt, *_flags(settings, "prompt", "num_images")]
    return shlex.join([*words, "--out", "picture.png"])


def _flags(settings: Settings | SetSettings | SeeSettings | EditSettings, *without: str) -> list[str]:
    """The settings that are not the usual ones."""
    usual = type(settings)()
    changed = {each.name: getattr(settings, each.name) for each in fields(settings)}
    # Joined, so that a value may begin with a dash.
    return [
        f"--{name.replace('_', '-')}={value}"
        for name, value in changed.items()
        if name not in without and value != getattr(usual, name)
    ]


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


# --- sets ---


def set_command_line(settings: SetSettings, given: Sequence[int]) -> str:
    """`dit-heads in-context` with every setting that is not the usual one; the given panels as files."""
    words = ["dit-heads", "in-context", settings.prompt, *_flags(settings, "prompt", "loras")]
    if settings.loras:
        words += ["--loras", *settings.loras]
    if given:
        panels = range(settings.rows * settings.columns)
        words += ["--given", *(given_file(n) if n in given else MISSING for n in panels)]
    return shlex.join([*words, "--out", "set.png"])


def given_file(number: int) -> str:
    """The name of the file of a given panel."""
    return f"panel-{number + 1}.png"


def set_python_code(settings: SetSettings, grid: Grid, given: Sequence[int]) -> str:
    """A script that draws the set."""
    loras = [parsed_lora(each) for each in settings.loras]
    shipped = any(not name.endswith(SUFFIX) for name, _ in loras)
    files = ", ".join(f"({_file(name)}, {scale!r})" for name, scale in loras)
    names = "Grid, add_lora, compose, read_lora" if loras else "Grid"
    embedded = "from dit_heads.embedded import embedded_lora\n" if shipped else ""
    return _SET.format(
        imports=f"{embedded}from dit_heads.loras import {names}\n",
        model=settings.model,
        dtype="" if settings.dtype == "auto" else f", {settings.dtype!r}",
        loras=_LORAS.format(files=files) if loras else "",
        call="".join(f"    {line},\n" for line in _set_call(settings, grid, given)),
    )


def _file(name: str) -> str:
    return repr(name) if name.endswith(SUFFIX) else f"embedded_lora({name!r})"


def _set_call(settings: SetSettings, grid: Grid, given: Sequence[int]) -> list[str]:
    (rows, columns), height, width = grid.shape, grid.heights[0], grid.widths[0]
    files = ", ".join(f"{number}: {given_file(number)!r}" for number in given)
    options = {
        "num_inference_steps": settings.steps,
        "guidance_scale": settings.guidance_scale,
        **({"negative_prompt": settings.negative_prompt} if settings.negative_prompt else {}),
        **caption_arguments(settings.model),
    }
    return [
        repr(settings.prompt),
        f"grid=Grid.equal({rows}, {columns}, height={height}, width={width})",
        *([f"given={{{files}}}"] if given else []),
        *(f"{name}={value!r}" for name, value in options.items()),
        f'generator=torch.Generator("cpu").manual_seed({settings.seed})',
    ]


# --- answers ---


def see_command_line(question: str, settings: SeeSettings) -> str:
    """`dit-heads see` with every setting that is not the usual one."""
    return shlex.join(["dit-heads", "see", PICTURE, _no_flag(question), *_flags(settings), "--out", ANSWER])


def _no_flag(text: str) -> str:
    """A text that is not taken for a flag."""
    return f" {text}" if text.startswith("-") else text


def see_python_code(question: str, settings: SeeSettings, shipped: str, scale: int) -> str:
    """A script that answers the question, and shows the answer as the page does.

    Args:
        question: about `picture.png`.
        settings: of the answer.
        shipped: name of the LoRA that ships, or of the model of the soft tokens, which answers where the
            settings name none.
        scale: how many times as large as the picture it is shown.
    """
    names = {"model": settings.model, "picture": PICTURE, "scale": scale, "file": ANSWER}
    if settings.method == "soft-tokens":
        own = settings.tokens is not None
        return _SEE_BY_TOKENS.format(
            imports="" if own else "from dit_heads.embedded import embedded_soft_tokens\n",
            tokens=repr(settings.tokens) if own else f"embedded_soft_tokens({shipped!r})",
            question=question,
            **names,
        )
    lora = f"embedded_lora({shipped!r})" if settings.lora is None else repr(settings.lora)
    call = {
        "num_inference_steps": settings.steps,
        "guidance_scale": settings.guidance_scale,
        "image_guidance_scale": settings.image_guidance_scale,
    }
    lines = [repr(PICTURE), repr(question), *(f"{name}={value!r}" for name, value in call.items())]
    lines.append(f'generator=torch.Generator("cpu").manual_seed({settings.seed})')
    return _SEE.format(
        imports="from dit_heads.embedded import embedded_lora\n" if settings.lora is None else "",
        lora=lora,
        call="".join(f"    {line},\n" for line in lines),
        **names,
    )


# --- edits ---


def edit_command_line(asked: Asked, settings: EditSettings) -> str:
    """`dit-heads edit` with every setting that is not the usual one.

    Args:
        asked: what was asked for.
        settings: its settings, as visitors see them.
    """
    words = ["dit-heads", "edit", *([PICTURE] if asked.picture else []), _no_flag(asked.text)]
    named = isinstance(asked.references, Mapping)
    for name, file in asked.files.items():
        words += ["--ref", f"{name}={file}" if named else file]
    words += ["--mask", MASK] if asked.mask else []
    return shlex.join([*words, *_flags(settings), "--out", RESULT])


def edit_python_code(asked: Asked, settings: EditSettings, shipped: str) -> str:
    """A script that paints the result.

    Args:
        asked: what was asked for.
        settings: its settings, as visitors see them.
        shipped: name of the LoRA that ships, which paints where the settings name none.
    """
    files = asked.files if isinstance(asked.references, Mapping) else list(asked.files.values())
    numbers = ("mask_feather",) if asked.mask else ()
    call = {
        "num_inference_steps": settings.steps,
        **{name: getattr(settings, name) for name in ("guidance_scale", "image_guidance_scale", *numbers)},
        **({"processing_resolution": size} if (size := settings.processing_resolution) else {}),
    }
    lines = [
        repr(asked.text),
        *([f"references={files!r}"] if files else []),
        *([f"image={PICTURE!r}"] if asked.picture else []),
        *([f"mask={MASK!r}"] if asked.mask else []),
        *(f"{name}={value!r}" for name, value in call.items()),
        f'generator=torch.Generator("cpu").manual_seed({settings.seed})',
    ]
    return _EDIT.format(
        imports="from dit_heads.embedded import embedded_lora\n" if settings.lora is None else "",
        model=settings.model,
        lora=f"embedded_lora({shipped!r})" if settings.lora is None else repr(settings.lora),
        call="".join(f"    {line},\n" for line in lines),
        file=RESULT,
    )
