"""Fills in the missing panels of a set around the given ones.

After every step, the latents of the given panels are restored at the noise level that the step ended on.
"""

from __future__ import annotations

import warnings
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
from jaxtyping import Bool, Float, Shaped
from PIL import Image
from torch import Tensor

from dit_heads.errors import InputError
from dit_heads.families import pipelines_of
from dit_heads.families.latents import encoded
from dit_heads.io.pictures import read_image, to_rgb
from dit_heads.loras.sets.grid import Box, Grid
from dit_heads.loras.sets.panels import PanelFit, fit_panel, scaling_loss

FLOW_SCHEDULERS = (
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FlowMatchLCMScheduler,
)
Panel = Image.Image | Tensor | str | Path
"""A PIL image, a tensor [3, h, w] in [0, 1], or the path of a PNG, JPEG or WebP."""
Given = Mapping[int, Panel | None] | Sequence[Panel | None]
"""Panels of one set: a mapping of numbers from 0 to panels, or a list with None for missing panels."""
StepEnd = Callable[[Any, int, Any, dict[str, Any]], dict[str, Any] | None]


# --- given panels ---


@dataclass(frozen=True)
class GivenPanels:
    """Composites of given panels, one per set.

    Attributes:
        grid: the grid of panels.
        pixels: the given panels in [0, 1]; black elsewhere.
        mask: true where a panel is given.
    """

    grid: Grid
    pixels: Float[Tensor, "s 3 H W"]
    mask: Bool[Tensor, "s 1 H W"]

    def restored(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 3 H W"]:
        """Generated composites with the given pixels restored, in float32, which holds 8 bits exactly."""
        pixels, mask = (_one_each(part, len(images)).to(images.device) for part in (self.pixels, self.mask))
        return torch.where(mask, pixels, images.float())


def _one_each(sets: Shaped[Tensor, "s ..."], pictures: int) -> Shaped[Tensor, "b ..."]:
    """[s, ...] -> [pictures, ...], with the pictures of one prompt side by side, as in diffusers."""
    return sets.repeat_interleave(pictures // len(sets), 0)


def given_panels(given: Given | Sequence[Given], grid: Grid, fit: PanelFit, prompts: int) -> GivenPanels:
    """Composites of the panels that a user gives: of one set for all prompts, or of one set per prompt."""
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
        fitted = _fitted_image(panel, box, fit)
        return VaeImageProcessor.numpy_to_pt(VaeImageProcessor.pil_to_numpy(fitted))[0]
    if not isinstance(panel, Tensor):
        raise InputError(f"given: expected PIL images, tensors or paths, got {type(panel).__name__}")
    if panel.ndim != 3 or len(panel) != 3 or not panel.is_floating_point():
        shape = tuple(panel.shape)
        raise InputError(f"given: expected floating tensors [3, h, w], got {panel.dtype} of shape {shape}")
    if not ((panel >= 0) & (panel <= 1)).all():
        raise InputError("given: expected tensors in [0, 1], got values outside of it")
    _warn_of_loss(panel.shape[-2], panel.shape[-1], box, fit)
    return fit_panel(panel.float(), box.height, box.width, fit)


def _fitted_image(panel: Image.Image, box: Box, fit: PanelFit) -> Image.Image:
    try:
        upright = to_rgb(panel)
    except (OSError, SyntaxError) as error:  # a damaged file, opened but not yet decoded
        raise InputError(f"given: expected a picture that can be read: {error}") from error
    _warn_of_loss(upright.height, upright.width, box, fit)
    return fit_panel(upright, box.height, box.width, fit)


def _warn_of_loss(height: int, width: int, box: Box, fit: PanelFit) -> None:
    if lost := scaling_loss(height, width, box.height, box.width, fit):
        warnings.warn(f"given: {lost}", stacklevel=6)


# --- filling ---


def fill_call(pipe: Any, kept: GivenPanels, pictures: int, call: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that make the wrapped pipeline keep the given panels."""
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
    known: Float[Tensor, "*shape"],
    mask: Bool[Tensor, "*shape"],
    noise: Float[Tensor, "*shape"],
    user: StepEnd | None = None,
    names: Sequence[str] = (),
) -> StepEnd:
    """A `callback_on_step_end` that restores known latents under a mask.

    It sets them to (1 - sigma) known + sigma noise, where sigma is the noise level that the step ended on.

    Args:
        known: clean latents, in the shape in which the pipeline keeps its latents.
        mask: where they are known.
        noise: the latents that the run started from.
        user: the user's callback, which is called afterwards.
        names: names of the tensors that the user's callback asks for.
    """

    def on_step_end(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        latents, sigma = tensors["latents"], pipe.scheduler.sigmas[pipe.scheduler.step_index]
        noised = (1 - sigma) * known + sigma * noise
        kept = {"latents": torch.where(mask, noised.to(latents), latents)}
        if user is None:
            return kept
        seen = tensors | kept
        return kept | changed_by(user, pipe, step, timestep, {name: seen[name] for name in names})

    return on_step_end


def changed_by(user: StepEnd, pipe: Any, step: int, time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    """The tensors that a user's callback changes. Callbacks that only show progress may return None."""
    changed = user(pipe, step, time, tensors)
    if changed is not None and not isinstance(changed, dict):
        raise InputError(
            f"callback_on_step_end: expected it to return a dict of tensors or None, got {changed!r}"
        )
    return changed or {}


def _check_scheduler(scheduler: Any) -> None:
    if not isinstance(scheduler, FLOW_SCHEDULERS) and not scheduler.config.get("use_flow_sigmas"):
        raise InputError(
            "pipe: to fill, expected a flow-matching scheduler (FlowMatch... or one with use_flow_sigmas), "
            f"got {type(scheduler).__name__}"
        )


def _known_latents(pipe: Any, kept: GivenPanels) -> Float[Tensor, "s C h w"]:
    """Latents of the given panels at their places, zeros elsewhere.

    Each panel is encoded alone, so that missing panels have no influence, and by the posterior's mean, so
    that no random numbers are used up.
    """
    vae, step, grid = pipe.vae, pipe.vae_scale_factor, kept.grid
    shape = len(kept.mask), vae.config.latent_channels, grid.height // step, grid.width // step
    pixels = kept.pixels.to(pipe._execution_device, vae.dtype)
    latents = pixels.new_zeros(shape)
    for box in grid.boxes():
        given = kept.mask[:, 0, box.top, box.left].to(pixels.device)
        if given.any():
            panels = pixels[given][..., box.rows, box.columns] * 2 - 1
            latents[given, :, *latent_slices(box, step)] = encoded(vae, panels)
    pipe.maybe_free_model_hooks()  # with model offloading, the autoencoder would stay loaded
    return latents


def latent_slices(box: Box, step: int) -> tuple[slice, slice]:
    """Rows and columns of a box in latents that cover `step` pixels each."""
    rows, columns = (slice(part.start // step, part.stop // step) for part in (box.rows, box.columns))
    return rows, columns


def _drawn_noise(pipe: Any, grid: Grid, pictures: int, call: Mapping[str, Any]) -> Tensor:
    """The latents that the wrapped pipeline itself would start from."""
    embeds = call.get("prompt_embeds")
    dtype = pipe.transformer.dtype if embeds is None else embeds.dtype
    size, noise = (grid.height, grid.width), pipelines_of(pipe.transformer).noise
    return noise(pipe, pictures, size, dtype, call.get("generator"))
