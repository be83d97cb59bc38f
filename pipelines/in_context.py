"""Sets of images from one joint caption, and the missing panels of a set (In-Context LoRA, arXiv 2410.23775).

`InContextPipeline` drives a pipeline that the user already has. It paints all panels as one composite. To
fill a set, the latents of the given panels are put back after every step, at the noise level that it ends on.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FlowMatchLCMScheduler,
)
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import BaseOutput
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from dit_heads.errors import InputError
from dit_heads.families import class_names, pipeline_names, pipelines_of
from dit_heads.families.latents import encoded
from dit_heads.io.pictures import read_image
from dit_heads.loras.sets.captions import PLACES, JointCaption, check_length, markers
from dit_heads.loras.sets.panels import Box, Grid, PanelFit, fit_panel, split

FLOW_SCHEDULERS = (
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FlowMatchLCMScheduler,
)
OUTPUT_TYPES = ("pil", "np", "pt", "latent")
# Arguments of diffusers that this pipeline answers for -> what to pass instead.
REPLACED: dict[str, str] = dict.fromkeys(("height", "width"), "grid")
REPLACED |= dict.fromkeys(("image", "mask_image", "masked_image_latents"), "given")

Panel = Image.Image | Tensor | str | Path
"""A PIL image, a tensor [3, h, w] in [0, 1], or the path of a PNG, JPEG or WebP."""
Given = Mapping[int, Panel | None] | Sequence[Panel | None]
"""Panels of one set: by number from 0, or one of each panel with None for the missing ones."""
Prompt = str | JointCaption
StepEnd = Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]]


@dataclass
class InContextPipelineOutput(BaseOutput):
    """`images[b]` is composite b, `panels[b][p]` its panel p, row by row.

    PIL images, arrays [H, W, 3] in [0, 1] or tensors [3, H, W] in [0, 1], as `output_type` asks. "latent"
    gives composites as the wrapped pipeline does (FLUX packs them) and panels [C, h, w]."""

    images: Any
    panels: list[list[Any]]


class InContextPipeline:
    """Generates sets of images, or fills their missing panels, with an SD3 or FLUX pipeline.

    >>> sets = InContextPipeline(pipe)   # doctest: +SKIP
    >>> pair, caption = Grid.row(2, height=512, width=512), "One house. [LEFT] by day [RIGHT] at night"
    >>> day, night = sets(caption, grid=pair).panels[0]   # doctest: +SKIP
    >>> _, night = sets(caption, grid=pair, given={0: "day.jpg"}).panels[0]   # doctest: +SKIP

    `pipe` is a `StableDiffusion3Pipeline`, `FluxPipeline` or `FluxFillPipeline` (which only fills). It stays
    as it is: LoRAs, head guidance (`HeadGuidance(sets.pipe, ...)`), offloading, progress bar are its own.
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
        """Composites of the grid's size, and their panels.

        prompt: a joint caption with a marker a panel, or a list of them; with `panel_prompts`, the summary
            (or summaries) of captions that are made from both.
        panel_prompts: what each panel shows; one such list a prompt if that is a list.
        marker_style: markers that stand before `panel_prompts`; see `captions.markers`.
        given: the panels to keep; the others are generated. One set serves all prompts, a list holds one a
            prompt. Images are scaled to their cells by `fit` ("crop" or "pad"), and the result shows exactly
            those pixels (hence float32 tensors), without blending: a seam falls on the border of two panels.
            As latents, given panels are what the autoencoder makes of them, or FLUX Fill itself.
        output_type, return_dict: as in diffusers; without `return_dict`, the tuple (images, panels).
        call: everything else goes to the wrapped pipeline: `negative_prompt`, `generator`,
            `num_images_per_prompt`, `num_inference_steps`, `guidance_scale`, `callback_on_step_end` (called
            once the given panels are back in the latents) ...

        Raises ValueError for a caption that does not fit the grid, no panels given or all, a composite that
        the model cannot place, and arguments that contradict each other. Warns if the text encoders would cut
        a caption."""
        pipe = self.pipe
        _check_call(pipe, grid, given, output_type, call)
        call |= {"height": grid.height, "width": grid.width}
        if prompt is not None or panel_prompts is not None:
            call["prompt"] = joint_captions(prompt, panel_prompts, grid, marker_style)
            _warn_of_cuts(pipe, call)
        prompts = _prompt_count(call)
        kept = None if given is None else given_panels(given, grid, fit, prompts)
        if kept is not None:
            pictures = prompts * (call.get("num_images_per_prompt") or 1)
            call |= _fill_call(pipe, kept, pictures, call)
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


def joint_captions(
    prompt: Prompt | Sequence[Prompt] | None,
    panel_prompts: Sequence[str] | Sequence[Sequence[str]] | None,
    grid: Grid,
    marker_style: str = "places",
) -> str | list[str]:
    """What the wrapped pipeline reads: `prompt` as it is, or joined with `panel_prompts` behind markers.

    Raises ValueError unless each caption has the panels of the grid, behind markers that fit its grid."""
    if panel_prompts is None:
        alone = not isinstance(prompt, list | tuple)
        return _checked(prompt, grid) if alone else [_checked(one, grid) for one in prompt]
    if not isinstance(prompt, list | tuple):
        return _joined(prompt, panel_prompts, grid, marker_style)
    if len(prompt) != len(panel_prompts):
        raise InputError(
            f"panel_prompts: expected {len(prompt)} lists of them, one a prompt, got {len(panel_prompts)}"
        )
    return [_joined(one, said, grid, marker_style) for one, said in zip(prompt, panel_prompts, strict=True)]


def _checked(prompt: object, grid: Grid) -> str:
    if not isinstance(prompt, str | JointCaption):
        raise InputError(f"prompt: expected a joint caption, or a list of them, got {prompt!r}")
    caption = JointCaption.parse(prompt) if isinstance(prompt, str) else prompt
    shape = len(grid.heights), len(grid.widths)
    fitting = [markers(*shape, style) for style in ("scenes", "images")]
    fitting += [PLACES[shape]] if shape in PLACES else []
    if caption.markers not in fitting:
        choices = " or ".join(" ".join(family) for family in fitting)
        raise InputError(
            f"prompt: expected a caption for each of the {len(grid)} panels, behind {choices}; got "
            f"{len(caption.markers)}, behind {' '.join(caption.markers)}"
        )
    return str(prompt)


def _joined(summary: object, panels: object, grid: Grid, style: str) -> str:
    if not isinstance(summary, str):
        raise InputError(f"prompt: expected a summary as text beside panel_prompts, got {summary!r}")
    if not isinstance(panels, list | tuple) or not all(isinstance(panel, str) for panel in panels):
        raise InputError(f"panel_prompts: expected a list of texts, one a panel, got {panels!r}")
    if len(panels) != len(grid):
        raise InputError(f"panel_prompts: expected {len(grid)}, one a panel, got {len(panels)}")
    shape = len(grid.heights), len(grid.widths)
    return str(JointCaption(summary, tuple(panels), markers(*shape, style)))


def _warn_of_cuts(pipe: Any, call: Mapping[str, Any]) -> None:
    """Warn of words that no text encoder reads, unless the caller wrote a prompt for each encoder."""
    if call.keys() & {"prompt_2", "prompt_3"}:
        return
    names = sorted(name for name in pipe.components if name.startswith("tokenizer"))
    usual = inspect.signature(pipe.__call__).parameters["max_sequence_length"].default
    limits = [None] * (len(names) - 1) + [call.get("max_sequence_length", usual)]  # the last is the T5
    captions = [call["prompt"]] if isinstance(call["prompt"], str) else call["prompt"]
    for caption in captions:
        check_length([getattr(pipe, name) for name in names], caption, limits)


def _prompt_count(call: Mapping[str, Any]) -> int:
    prompt, embeds = call.get("prompt"), call.get("prompt_embeds")
    if isinstance(prompt, str):
        return 1
    if prompt:
        return len(prompt)
    if embeds is None:
        raise InputError("prompt: expected a joint caption or a list of them (or prompt_embeds), got none")
    return len(embeds)


# --- given panels ---


@dataclass(frozen=True)
class GivenPanels:
    """Composites of given panels, one a set: pixels in [0, 1], black elsewhere, and where they are given."""

    grid: Grid
    pixels: Float[Tensor, "s 3 H W"]
    mask: Bool[Tensor, "s 1 H W"]

    def restored(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 3 H W"]:
        """Generated composites with the given pixels put in, as float32, which holds 8 bits exactly."""
        pixels, mask = (_one_each(part, len(images)).to(images.device) for part in (self.pixels, self.mask))
        return torch.where(mask, pixels, images.float())


def _one_each(sets: Tensor, pictures: int) -> Tensor:
    """[s, ...] -> [pictures, ...]: the pictures of one prompt follow each other, as in diffusers."""
    return sets.repeat_interleave(pictures // len(sets), 0)


def given_panels(given: Given | Sequence[Given], grid: Grid, fit: PanelFit, prompts: int) -> GivenPanels:
    """The sets of `given`: one, or one for each of the prompts."""
    sets = list(given) if _holds_sets(given) else [given]
    if len(sets) not in (1, prompts):
        raise InputError(f"given: expected one set of panels or {prompts}, one a prompt, got {len(sets)}")
    pixels = torch.zeros(len(sets), 3, grid.height, grid.width)
    mask = torch.zeros(len(sets), 1, grid.height, grid.width, dtype=torch.bool)
    for row, one in enumerate(sets):
        for number, panel in _numbered(one, grid).items():
            box = grid.boxes()[number]
            pixels[row, :, box.rows, box.columns] = _pixels(panel, box, fit)
            mask[row, :, box.rows, box.columns] = True
    return GivenPanels(grid, pixels, mask)


def _holds_sets(given: object) -> bool:
    return isinstance(given, list | tuple) and all(isinstance(one, Mapping | list | tuple) for one in given)


def _numbered(given: object, grid: Grid) -> dict[int, Any]:
    """The given panels of a set by their numbers."""
    count = len(grid)
    if isinstance(given, list | tuple):
        if len(given) != count:
            raise InputError(f"given: expected {count} entries, None for a missing panel, got {len(given)}")
        given = dict(enumerate(given))
    if not isinstance(given, Mapping):
        raise InputError(f"given: expected a mapping of numbers to images or a list with None, got {given!r}")
    if strange := [key for key in given if not isinstance(key, int) or not 0 <= key < count]:
        raise InputError(f"given: expected panel numbers from 0 to {count - 1}, got {strange[0]!r}")
    there = {number: panel for number, panel in given.items() if panel is not None}
    if not there:
        raise InputError("given: expected at least one panel, got none; leave `given` out to generate all")
    if len(there) == count:
        raise InputError(f"given: expected a panel to be missing, got all {count}")
    return there


def _pixels(panel: object, box: Box, fit: PanelFit) -> Float[Tensor, "3 h w"]:
    if isinstance(panel, str | Path):
        panel = read_image(Path(panel))
    if isinstance(panel, Image.Image):
        fitted = fit_panel(panel, box.height, box.width, fit)
        return VaeImageProcessor.numpy_to_pt(VaeImageProcessor.pil_to_numpy(fitted))[0]
    if not isinstance(panel, Tensor):
        raise InputError(f"given: expected PIL images, tensors or paths, got {type(panel).__name__}")
    if panel.ndim != 3 or len(panel) != 3 or not panel.is_floating_point():
        shape = tuple(panel.shape)
        raise InputError(f"given: expected floating tensors [3, h, w], got {panel.dtype} of shape {shape}")
    if not ((panel >= 0) & (panel <= 1)).all():
        raise InputError("given: expected tensors in [0, 1], got values outside of it")
    return fit_panel(panel.float(), box.height, box.width, fit)


# --- filling ---


def _fill_call(pipe: Any, kept: GivenPanels, pictures: int, call: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments by which the wrapped pipeline keeps the given panels."""
    form = pipelines_of(pipe.transformer)
    if form.fills(pipe):
        return {
            "image": _one_each(kept.pixels, pictures),
            "mask_image": _one_each((~kept.mask).float(), pictures),
        }
    _check_scheduler(pipe.scheduler)
    known = _known_latents(pipe, kept)
    step = pipe.vae_scale_factor
    mask = kept.mask[..., ::step, ::step].to(known.device).expand_as(known)
    known, mask = (form.pack(_one_each(part, pictures)) for part in (known, mask))
    noise = call.get("latents")
    noise = _drawn_noise(pipe, kept.grid, pictures, call) if noise is None else noise.to(known.device)
    if noise.shape != known.shape:
        raise InputError(f"latents: expected the shape {tuple(known.shape)}, got {tuple(noise.shape)}")
    user = call.get("callback_on_step_end")
    names = call.get("callback_on_step_end_tensor_inputs", ["latents"])
    names = user.tensor_inputs if isinstance(user, PipelineCallback | MultiPipelineCallbacks) else names
    return {
        "latents": noise,
        "callback_on_step_end": keeping(known, mask, noise, user, names),
        "callback_on_step_end_tensor_inputs": ["latents", *(name for name in names if name != "latents")],
    }


def keeping(
    known: Tensor, mask: Tensor, noise: Tensor, user: StepEnd | None = None, names: Sequence[str] = ()
) -> StepEnd:
    """A `callback_on_step_end` that sets the latents under `mask` to (1 - sigma) known + sigma noise, where
    sigma is the level that the step ended on, and then calls `user` with the tensors `names`.

    All tensors have the shape in which the pipeline keeps its latents."""

    def on_step_end(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        latents, sigma = tensors["latents"], pipe.scheduler.sigmas[pipe.scheduler.step_index]
        noised = (1 - sigma) * known + sigma * noise
        kept = {"latents": torch.where(mask, noised.to(latents), latents)}
        if user is None:
            return kept
        seen = tensors | kept
        return kept | user(pipe, step, timestep, {name: seen[name] for name in names})

    return on_step_end


def _check_scheduler(scheduler: Any) -> None:
    if not isinstance(scheduler, FLOW_SCHEDULERS) and not scheduler.config.get("use_flow_sigmas"):
        raise InputError(
            "pipe: to fill, expected a flow-matching scheduler (FlowMatch... or one with use_flow_sigmas), "
            f"got {type(scheduler).__name__}"
        )


def _known_latents(pipe: Any, kept: GivenPanels) -> Float[Tensor, "s C h w"]:
    """The given panels' latents at their places, zeros elsewhere. Each panel is encoded by itself, so that
    nothing of the missing ones enters; by the mean, so that no random number is used up."""
    vae, step, grid = pipe.vae, pipe.vae_scale_factor, kept.grid
    shape = len(kept.mask), vae.config.latent_channels, grid.height // step, grid.width // step
    pixels = kept.pixels.to(pipe._execution_device, vae.dtype)
    latents = pixels.new_zeros(shape)
    for box in grid.boxes():
        given = kept.mask[:, 0, box.top, box.left].to(pixels.device)
        if given.any():
            panels = pixels[given][..., box.rows, box.columns] * 2 - 1
            latents[given, :, *_shrunk(box, step)] = encoded(vae, panels)
    pipe.maybe_free_model_hooks()  # under model offloading, the autoencoder would stay loaded beside the rest
    return latents


def _shrunk(box: Box, step: int) -> tuple[slice, slice]:
    """Rows and columns of a box in latents that cover `step` pixels each."""
    rows, columns = (slice(part.start // step, part.stop // step) for part in (box.rows, box.columns))
    return rows, columns


def _drawn_noise(pipe: Any, grid: Grid, pictures: int, call: Mapping[str, Any]) -> Tensor:
    """The latents that the wrapped pipeline itself would start from."""
    embeds = call.get("prompt_embeds")
    dtype = pipe.transformer.dtype if embeds is None else embeds.dtype
    size, noise = (grid.height, grid.width), pipelines_of(pipe.transformer).noise
    return noise(pipe, pictures, size, dtype, call.get("generator"))


# --- results ---


def _split(pipe: Any, images: Tensor, grid: Grid, output_type: str) -> list[list[Any]]:
    """Panels of every composite, in the form that was asked for."""
    if output_type == "latent":
        parts = _latent_panels(pipe, images, grid)
    else:
        parts = [_converted(pipe, panel, output_type) for panel in split(images, grid)]
    return [list(row) for row in zip(*parts, strict=True)]


def _latent_panels(pipe: Any, latents: Tensor, grid: Grid) -> list[Tensor]:
    step = pipe.vae_scale_factor
    latents = pipelines_of(pipe.transformer).unpack(latents, grid.height // step, grid.width // step)
    return [latents[..., *_shrunk(box, step)] for box in grid.boxes()]


def _converted(pipe: Any, images: Tensor, output_type: str) -> Any:
    """Pictures [b, 3, H, W] in [0, 1] as the pipeline itself would put them out; latents as they are."""
    return pipe.image_processor.postprocess(images, output_type, do_denormalize=[False] * len(images))
