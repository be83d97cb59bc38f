"""Sets of images from one joint caption (In-Context LoRA, arXiv 2410.23775), whole or with some panels given.

`InContextPipeline` drives a pipeline that the user already has, and generates all panels as one composite.
`filling` keeps the given panels.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils import BaseOutput
from torch import Tensor

from dit_heads.errors import InputError, whole_number
from dit_heads.families import class_names, pipeline_names, pipelines_of
from dit_heads.loras.sets.captions import JointCaption, check_caption, warn_of_cuts
from dit_heads.loras.sets.grid import Grid
from dit_heads.loras.sets.panels import PanelFit, split
from dit_heads.pipelines.filling import Given, changed_by, fill_call, given_panels, latent_slices
from dit_heads.tasks.markers import families, markers

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
# Arguments of diffusers that this pipeline sets itself -> the argument to pass instead.
REPLACED: dict[str, str] = dict.fromkeys(("height", "width"), "grid")
REPLACED |= dict.fromkeys(("image", "mask_image", "masked_image_latents"), "given")

Prompt = str | JointCaption


@dataclass
class InContextPipelineOutput(BaseOutput):
    """Generated composites and their panels.

    Depending on `output_type`, these are PIL images, arrays [H, W, 3] in [0, 1], tensors [3, H, W] in [0, 1],
    or latents: composites as the wrapped pipeline returns them (FLUX packs them) and panels [C, h, w].

    Attributes:
        images: the composites.
        panels: `panels[b][p]` is panel p of composite b, counted row by row.
    """

    images: Any
    panels: list[list[Any]]


class InContextPipeline:
    """Generates sets of images, or fills in their missing panels, with an SD3 or FLUX pipeline.

    >>> sets = InContextPipeline(pipe)   # doctest: +SKIP
    >>> pair, caption = Grid.row(2, height=512, width=512), "One house. [LEFT] by day [RIGHT] at night"
    >>> day, night = sets(caption, grid=pair).panels[0]   # doctest: +SKIP
    >>> _, night = sets(caption, grid=pair, given={0: "day.jpg"}).panels[0]   # doctest: +SKIP

    The pipeline is not changed. Its LoRAs, head guidance (`HeadGuidance(sets.pipe, ...)`), offloading and
    progress bar work as usual.

    Args:
        pipe: a `StableDiffusion3Pipeline`, `FluxPipeline` or `FluxFillPipeline`, which only fills.

    Raises:
        InputError: for any other object.
    """

    def __init__(self, pipe: Any) -> None:
        known = pipeline_names(fill=True)
        if not set(class_names(type(pipe))) & set(known):
            raise InputError(f"pipe: expected one of {', '.join(known)}, got {type(pipe).__name__}")
        self.pipe: Any = pipe

    @torch.no_grad()
    def __call__(
        self,
        prompt: Prompt | Sequence[Prompt] | None = None,
        *,
        grid: Grid,
        panel_prompts: Sequence[str] | Sequence[Sequence[str]] | None = None,
        marker_style: str = "places",
        given: Given | Sequence[Given] | None = None,
        fit: PanelFit = "crop",
        output_type: str = "pil",
        return_dict: bool = True,
        **call: Any,
    ) -> InContextPipelineOutput | Any:
        """Generate composites and split them into panels.

        Args:
            prompt: a joint caption with one marker per panel, or a list of captions. With `panel_prompts`, a
                summary or a list of summaries, from which the captions are made.
            grid: sizes of the panels, in pixels.
            panel_prompts: a description of each panel, or one such list per prompt.
            marker_style: markers before `panel_prompts` (see `dit_heads.tasks.markers`). "none" allows a
                prompt without markers, for LoRAs that were trained on such captions.
            given: panels to keep; the others are generated. One set serves all prompts; a list holds one set
                per prompt. The result shows the given pixels exactly (tensors are therefore float32) and
                without blending. As latents, given panels are reconstructions by the autoencoder, or by FLUX
                Fill itself.
            fit: "crop" or "pad": how given images are fitted to their panels.
            output_type: "pil", "np", "pt" or "latent", as in diffusers.
            return_dict: if false, the result is the tuple (images, panels).
            call: arguments of the wrapped pipeline, such as `negative_prompt`, `generator`, `guidance_scale`.
                `callback_on_step_end` sees latents with given panels restored, and may return None.

        Returns:
            The composites, which have the grid's size, and their panels.

        Raises:
            InputError: for a caption that does not fit the grid, for a set with all or no panels given, for a
                composite that is too large for the model, and for unknown or contradictory arguments.

        Warns:
            UserWarning: if a text encoder would truncate a caption, or a given panel loses much detail.
        """
        pipe = self.pipe
        _check_call(pipe, grid, given, output_type, call)
        call |= {"height": grid.height, "width": grid.width}
        if prompt is not None or panel_prompts is not None:
            call["prompt"] = joint_captions(prompt, panel_prompts, grid, marker_style)
            _warn_of_cuts(pipe, call)
        prompts = _prompt_count(call)
        pictures = prompts * _count(call, "num_images_per_prompt")
        _check_generators(call.get("generator"), pictures)
        kept = None if given is None else given_panels(given, grid, fit, prompts)
        call |= _forgiving(call) if kept is None else fill_call(pipe, kept, pictures, call)
        form = "latent" if output_type == "latent" else "pt"
        images = pipe(**call, output_type=form, return_dict=False)[0]
        if kept is not None and form == "pt":
            images = kept.restored(images)
        panels = _split(pipe, images, grid, output_type)
        images = _converted(pipe, images, output_type)
        return InContextPipelineOutput(images, panels) if return_dict else (images, panels)


# --- arguments ---


def _check_call(pipe: Any, grid: Grid, given: object, output_type: str, call: Mapping[str, Any]) -> None:
    if not isinstance(grid, Grid):
        raise InputError(f"grid: expected one such as Grid.row(3, height=512, width=512), got {grid!r}")
    _check_names(pipe, call)
    for name in ("num_inference_steps", "num_images_per_prompt"):
        _count(call, name)
    for name in REPLACED.keys() & call.keys():
        raise InputError(f"{name}: expected `{REPLACED[name]}` to say it, got {call[name]!r}")
    if output_type not in OUTPUT_TYPES:
        raise InputError(f"output_type: expected {', '.join(OUTPUT_TYPES)}, got {output_type!r}")
    form = pipelines_of(pipe.transformer)
    if given is None and form.fills(pipe):
        raise InputError(f"given: {type(pipe).__name__} only fills, expected panels to keep, got None")
    limit = form.largest_side(pipe)
    if limit is not None and max(grid.height, grid.width) > limit:
        raise InputError(
            f"grid: expected at most {limit} x {limit} pixels, which the position table of this model "
            f"covers, got height {grid.height} and width {grid.width}"
        )


def _check_names(pipe: Any, call: Mapping[str, Any]) -> None:
    """Refuse arguments that the wrapped pipeline does not know, and suggest similar ones."""
    theirs = inspect.signature(pipe.__call__).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in theirs.values()):
        return
    ours = [name for name in inspect.signature(InContextPipeline.__call__).parameters if name != "self"]
    for name in call.keys() - theirs.keys() - REPLACED.keys():
        near = difflib.get_close_matches(name, [*ours, *theirs], 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(
            f"{name}: InContextPipeline and its {type(pipe).__name__} take no such argument{hint}"
        )


def _count(call: Mapping[str, Any], name: str) -> int:
    """A number of steps or pictures; 1 by default."""
    count = call.get(name)
    return 1 if count is None else whole_number(name, count, 1)


def _check_generators(generator: object, pictures: int) -> None:
    if isinstance(generator, list | tuple) and len(generator) != pictures:
        raise InputError(
            f"generator: expected one, or {pictures}, one a picture, got a list of {len(generator)}"
        )


def _forgiving(call: Mapping[str, Any]) -> dict[str, Any]:
    """The user's callback, changed so that it may return None."""
    user = call.get("callback_on_step_end")
    if user is None or isinstance(user, PipelineCallback | MultiPipelineCallbacks):
        return {}
    return {"callback_on_step_end": lambda *arguments: changed_by(user, *arguments)}


def joint_captions(
    prompt: Prompt | Sequence[Prompt] | None,
    panel_prompts: Sequence[str] | Sequence[Sequence[str]] | None,
    grid: Grid,
    marker_style: str = "places",
) -> str | list[str]:
    """The captions that the wrapped pipeline reads: the prompts, joined with any panel prompts by markers.

    Raises:
        InputError: unless each caption describes the panels of the grid, with markers that fit it.
    """
    if panel_prompts is None:
        alone = not isinstance(prompt, list | tuple)
        each = [prompt] if alone else prompt
        checked = [_checked(one, grid, marker_style) for one in each]
        return checked[0] if alone else checked
    if not isinstance(prompt, list | tuple):
        return _joined(prompt, panel_prompts, grid, marker_style)
    if len(prompt) != len(panel_prompts):
        raise InputError(
            f"panel_prompts: expected {len(prompt)} lists of them, one a prompt, got {len(panel_prompts)}"
        )
    pairs = zip(prompt, panel_prompts, strict=True)
    return [_joined(summary, panels, grid, marker_style) for summary, panels in pairs]


def _checked(prompt: object, grid: Grid, style: str) -> str:
    if not isinstance(prompt, str | JointCaption):
        raise InputError(f"prompt: expected a joint caption, or a list of them, got {prompt!r}")
    try:
        caption = check_caption(prompt, *grid.shape)
    except InputError as error:
        raise InputError(
            f"prompt: expected a caption for each of the {len(grid)} panels, but {error}"
        ) from error
    if caption is None and style != "none":
        raise InputError(
            f"prompt: markers: expected each once and in order, such as "
            f"{' '.join(families(*grid.shape)[-1])}, got none; marker_style='none' allows that"
        )
    return str(prompt)


def _joined(summary: object, panels: object, grid: Grid, style: str) -> str:
    if not isinstance(summary, str):
        raise InputError(f"prompt: expected a summary as text beside panel_prompts, got {summary!r}")
    if not isinstance(panels, list | tuple) or not all(isinstance(panel, str) for panel in panels):
        raise InputError(f"panel_prompts: expected a list of texts, one a panel, got {panels!r}")
    if len(panels) != len(grid):
        raise InputError(f"panel_prompts: expected {len(grid)}, one a panel, got {len(panels)}")
    return str(JointCaption(summary, tuple(panels), markers(*grid.shape, style)))


def _warn_of_cuts(pipe: Any, call: Mapping[str, Any]) -> None:
    """Warn of words that no text encoder reads, unless the caller has given each encoder its own prompt."""
    if call.keys() & {"prompt_2", "prompt_3"}:
        return
    usual = inspect.signature(pipe.__call__).parameters["max_sequence_length"].default
    captions = [call["prompt"]] if isinstance(call["prompt"], str) else call["prompt"]
    warn_of_cuts(pipe, dict.fromkeys(captions, "prompt"), call.get("max_sequence_length", usual))


def _prompt_count(call: Mapping[str, Any]) -> int:
    prompt, embeds = call.get("prompt"), call.get("prompt_embeds")
    if isinstance(prompt, str):
        return 1
    if prompt:
        return len(prompt)
    if embeds is None:
        raise InputError("prompt: expected a joint caption or a list of them (or prompt_embeds), got none")
    return len(embeds)


# --- results ---


def _split(pipe: Any, images: Tensor, grid: Grid, output_type: str) -> list[list[Any]]:
    """Panels of every composite, as `output_type` asks."""
    if output_type == "latent":
        parts = _latent_panels(pipe, images, grid)
    else:
        parts = [_converted(pipe, panel, output_type) for panel in split(images, grid)]
    return [list(row) for row in zip(*parts, strict=True)]


def _latent_panels(pipe: Any, latents: Tensor, grid: Grid) -> list[Tensor]:
    step = pipe.vae_scale_factor
    latents = pipelines_of(pipe.transformer).unpack(latents, grid.height // step, grid.width // step)
    return [latents[..., *latent_slices(box, step)] for box in grid.boxes()]


def _converted(pipe: Any, images: Tensor, output_type: str) -> Any:
    """Pictures [b, 3, H, W] in [0, 1] in the pipeline's own output format; latents unchanged."""
    return pipe.image_processor.postprocess(images, output_type, do_denormalize=[False] * len(images))
