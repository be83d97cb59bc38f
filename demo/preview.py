"""What a picture is going to be, seen while it is drawn."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from dit_heads.demo.jobs import Job
from dit_heads.families import pipelines_of
from dit_heads.families.latents import denormalised

SHARE = 0.2  # of the time, at most, that previews take


class Previews:
    """Counts the steps of a pipeline's call for a job, and shows it the clean picture as estimated so far.

    Pass it as `callback_on_step_end`. The estimate is exact for a flow-matching Euler step from noise level s
    to t: x_0 = x_t - t (x_s - x_t) / (s - t).

    Args:
        job: the job that is told.
        steps: all steps of the job, of several calls maybe.
        done: steps of the calls before this one.
        size: height and width of the picture in pixels; None for no previews.
        show: what becomes of an estimate.
    """

    def __init__(
        self,
        job: Job,
        steps: int,
        done: int = 0,
        size: tuple[int, int] | None = None,
        show: Callable[[Image.Image], Any] = lambda image: image,
    ) -> None:
        self.job, self.steps, self.done, self.size, self.show = job, steps, done, size, show
        self._last: Tensor | None = None
        self._began = time.perf_counter()
        self._spent = 0.0

    def __call__(self, pipe: Any, step: int, timestep: Any, state: dict[str, Any]) -> dict[str, Any]:
        latents, last = state["latents"], self._last
        self._last = latents.clone()
        shown = {}
        if last is not None and self._affordable():
            began = time.perf_counter()
            shown["preview"] = self.show(self._picture(pipe, step, last, latents))
            self._spent += time.perf_counter() - began
        self.job.update(step=self.done + step + 1, steps=self.steps, **shown)
        return {}

    def _affordable(self) -> bool:
        """Whether another preview stays within the share of time; the first one always does."""
        return self.size is not None and self._spent <= SHARE * (time.perf_counter() - self._began)

    def _picture(self, pipe: Any, step: int, last: Tensor, latents: Tensor) -> Image.Image:
        assert self.size is not None
        s, t = (float(sigma) for sigma in pipe.scheduler.sigmas[step : step + 2])
        clean = latents.float() - t * (last.float() - latents.float()) / (s - t)
        return decoded(pipe, clean[:1].to(latents.dtype), self.size)


@torch.no_grad()
def decoded(pipe: Any, latents: Float[Tensor, "1 ..."], size: tuple[int, int]) -> Image.Image:
    """The picture of latents as the pipeline keeps them, of this height and width in pixels."""
    h, w = (side // pipe.vae_scale_factor for side in size)
    unpacked = pipelines_of(pipe.transformer).unpack(latents, h, w)
    pixels = pipe.vae.decode(denormalised(pipe.vae, unpacked), return_dict=False)[0]
    return pipe.image_processor.postprocess(pixels, output_type="pil")[0]
