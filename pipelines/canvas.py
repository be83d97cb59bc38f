"""What a multimodal instruction is painted on: a source, or nothing yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dit_heads.errors import InputError, whole_number
from dit_heads.families import pipelines_of
from dit_heads.pipelines.filling import keeping
from dit_heads.pipelines.instruct import InstructPipeline
from dit_heads.pipelines.masking import EditMask
from dit_heads.pipelines.sources import Frame, Pixels, pictures_of


@dataclass(frozen=True)
class BlankCanvas:
    """A canvas whose latents are zero (MIGE, arXiv 2502.21291, section 3.3).

    Attributes:
        latents: of each picture. Those that would ride as tokens are of no height and width: there are none.
        size: height and width of pictures.
    """

    latents: Float[Tensor, "n C h w"]
    size: tuple[int, int]

    @classmethod
    def of(
        cls, paint: InstructPipeline, count: int, height: int | None, width: int | None, mask: Any
    ) -> BlankCanvas:
        """A canvas for `count` pictures, by default of the model's usual size.

        Raises:
            InputError: for a size that the model cannot place, and for a mask.
        """
        if mask is not None:
            raise InputError("mask: expected none without a picture to edit, got one")
        pipe, step = paint.pipe, paint.token_side
        usual = pipe.default_sample_size * pipe.vae_scale_factor
        size = height or usual, width or usual
        for name, side in zip(("height", "width"), size, strict=True):
            if whole_number(name, side, step) % step:
                raise InputError(f"{name}: expected a multiple of {step}, got {side}")
        paint.frame([torch.empty(3, *size)], 0)  # raises for a size that the model cannot place
        held = size if paint.conditioning == "channels" else (0, 0)
        shape = count, pipe.vae.config.latent_channels, *(side // pipe.vae_scale_factor for side in held)
        return cls(torch.zeros(shape, device=pipe._execution_device, dtype=pipe.vae.dtype), size)

    def finished(self, images: Float[Tensor, "n 3 h w"], edit: EditMask | None) -> Float[Tensor, "n 3 h w"]:
        """The pictures as they are."""
        return images


@dataclass(frozen=True)
class Canvas:
    """Sources to edit.

    Attributes:
        latents: of the source of each picture.
        size: height and width in pixels that the model works at.
        sources: pixels of the source of each picture.
        frame: how sources lie in what the model reads.
    """

    latents: Float[Tensor, "n C h w"]
    size: tuple[int, int]
    sources: list[Pixels]
    frame: Frame

    @classmethod
    def of(
        cls,
        paint: InstructPipeline,
        image: Any,
        count: int,
        resolution: int,
        height: int | None = None,
        width: int | None = None,
    ) -> Canvas:
        """The sources of `count` pictures.

        Args:
            paint: The pipeline.
            image: One source for all, or as many as there are instructions, for each of which several
                pictures may be made.
            count: Number of pictures.
            resolution: The longest side that the model works at, 0 for that of the sources.
            height, width: Refused, since sources decide.

        Raises:
            InputError: for no source, sources of several sizes, and another number of them.
        """
        if image is None:
            raise InputError("image: expected a picture to edit, got none")
        if (height, width) != (None, None):
            raise InputError("height, width: expected none, since the picture has the size of the result")
        sources = pictures_of(image)
        if count % len(sources):
            raise InputError(f"image: expected one, or one an instruction, got {len(sources)}")
        sources = [source for source in sources for _ in range(count // len(sources))]
        frame = paint.frame(sources, resolution)
        latents = paint.latents([frame.framed(each) for each in sources])
        return cls(latents, frame.padded, sources, frame)

    def keeping(self, paint: InstructPipeline, edit: EditMask, call: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of the pipeline that put the latents outside of a mask back after each step."""
        pipe, form = paint.pipe, pipelines_of(paint.pipe.transformer)
        noise = call.get("latents")
        if noise is None:
            dtype = call["prompt_embeds"].dtype
            with paint._narrow(pipe.vae.config.latent_channels):
                noise = form.noise(pipe, len(self.latents), self.size, dtype, call.get("generator"))
        kept = edit.kept(self.frame, pipe.vae_scale_factor).to(self.latents.device).expand_as(self.latents)
        names = call.get("callback_on_step_end_tensor_inputs", ["latents"])
        user = call.get("callback_on_step_end")
        return {
            "latents": noise,
            "callback_on_step_end": keeping(form.pack(self.latents), form.pack(kept), noise, user, names),
            "callback_on_step_end_tensor_inputs": ["latents", *(n for n in names if n != "latents")],
        }

    def finished(self, images: Any, edit: EditMask | None) -> Float[Tensor, "n 3 h w"]:
        """Results on the grid of their sources, and pasted into them where a mask is given."""
        restored = [self.frame.restored(each).float().cpu() for each in images]
        if edit is not None:
            restored = [edit.pasted(source, one) for source, one in zip(self.sources, restored, strict=True)]
        return torch.stack(restored)
