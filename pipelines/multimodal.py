"""Pictures by instructions with pictures in them: subjects in new scenes, edits, and both at once (MIGE,
arXiv 2502.21291)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dit_heads.errors import InputError, whole_number
from dit_heads.families.latents import encoded
from dit_heads.families.velocity import Velocity, velocity_of
from dit_heads.fusion.encoder import ReferenceEncoder, reference_embeddings
from dit_heads.fusion.splice import spliced
from dit_heads.loras.config import config_of
from dit_heads.loras.sets.captions import warn_of_cuts
from dit_heads.loras.tasks.multimodal import EMPTY, REFERENCES, fusion_config
from dit_heads.loras.weights.files import load_lora, run_settings
from dit_heads.models import load_image_tower
from dit_heads.objectives.image_tower import ImageTower, letterbox
from dit_heads.pipelines.canvas import BlankCanvas, Canvas
from dit_heads.pipelines.instruct import InstructPipeline, InstructPipelineOutput, check_call
from dit_heads.pipelines.masking import EditMask, check_fractions, difference, mask_of, on_grid
from dit_heads.pipelines.reference_tokens import check_room, check_way, reference_latents, reference_pixels
from dit_heads.tasks.multimodal import MultimodalInstruction, References

FEATHER = 8  # pixels


class MultimodalInstructPipeline(InstructPipeline):
    """Paints and repaints pictures as an instruction says, in which pictures may stand for words.

    >>> paint = MultimodalInstructPipeline(pipe, encoder, tower)   # doctest: +SKIP
    >>> paint("<dog> on a beach", {"dog": "dog.png"}).images[0]   # doctest: +SKIP
    >>> paint("make the <hat> red", {"hat": "hat.png"}, "portrait.png").images[0]   # doctest: +SKIP

    A call without a source paints on a blank canvas, whose latents are zero.

    Args:
        pipe: A `StableDiffusion3Pipeline` or `FluxPipeline`, its transformer widened by the channels of a
            source. For tokens, a `FluxPipeline` as it is.
        encoder: Turns references into text embeddings.
        tower: The vision tower that the encoder was trained with.
        features: What the encoder reads of a reference: "semantic", the tower's tokens, "latents", or both.
        references: How references are read: by the "encoder", or as "tokens" after those of the source in
            the sequence (FLUX.1 Kontext), which needs neither encoder nor tower.

    Raises:
        InputError: as of `InstructPipeline`, and for parts that do not fit the way references are read.
    """

    def __init__(
        self,
        pipe: Any,
        encoder: ReferenceEncoder | None = None,
        tower: ImageTower | None = None,
        features: Sequence[str] = ("semantic", "latents"),
        references: str = "encoder",
    ) -> None:
        check_way(references, encoder, tower)
        super().__init__(pipe, "channels" if references == "encoder" else "tokens")
        if references == "tokens":
            check_room(pipe.transformer)
        self.encoder = None if encoder is None else encoder.eval()
        self.tower, self.features, self.references = tower, tuple(features), references

    @torch.no_grad()
    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        prompt: str | list[str],
        references: References | list[References] = (),
        image: Any = None,
        *,
        mask: Any = None,
        mask_feather: int = FEATHER,
        height: int | None = None,
        width: int | None = None,
        image_guidance_scale: float = 1.0,
        num_images_per_prompt: int = 1,
        processing_resolution: int = 0,
        output_type: str = "pil",
        return_dict: bool = True,
        **call: Any,
    ) -> InstructPipelineOutput | Any:
        """Pictures of the size of their sources, or of `height` x `width` without sources.

        Args:
            prompt: An instruction or a list of them, with a placeholder for each reference.
            references: The pictures of an instruction: a list, one for each `<imagehere>`, or a mapping of
                the names in angle brackets. For a list of instructions, a list with the references of each.
            image: The source to edit, or one an instruction, all of one size. None paints on a blank canvas.
            mask: White where the source may change. Everything else stays as it is, bit for bit.
            mask_feather: Pixels over which the edit fades into the source, outside of the mask.
            height, width: Of pictures without a source; by default the model's usual size.
            image_guidance_scale: How closely the result follows the source, and references as tokens, s_I.
            num_images_per_prompt: Results of each instruction.
            processing_resolution, output_type, return_dict, call: As in `InstructPipeline`.

        Raises:
            InputError: for references that do not fit their instruction, pictures that cannot be read or
                differ in size, a mask that does not fit, and arguments that contradict each other.
        """
        self._check_names(call)
        check_call(output_type, num_images_per_prompt, processing_resolution)
        given = instructions(prompt, references)
        shown = [
            one.repeat_interleave(num_images_per_prompt, 0)
            for one in _shown(self, given, processing_resolution)
        ]
        asked = [one for one in given for _ in range(num_images_per_prompt)]
        call |= _embedded(self, asked, call)
        if image is None:
            canvas = BlankCanvas.of(self, len(asked), height, width, mask)
        else:
            canvas = Canvas.of(self, image, len(asked), processing_resolution, height, width)
        scale = self._image_scale(image_guidance_scale) if shown or image is not None else 1.0
        edit = None
        if isinstance(canvas, Canvas) and mask is not None:
            edit = EditMask.of(mask, canvas.frame.size, mask_feather)
            call |= canvas.keeping(self, edit, call)
        form = "latent" if output_type == "latent" else "pt"
        seen = [canvas.latents, *shown]
        images = self._painted(seen, canvas.size, scale, {**call, "output_type": form})
        if form == "pt":
            images = canvas.finished(images, edit)
            images = self.pipe.image_processor.postprocess(images, output_type, [False] * len(images))
        return InstructPipelineOutput(images) if return_dict else (images,)

    @torch.no_grad()
    def embedding(self, picture: Any) -> Float[Tensor, "t d"]:
        """A reference as text embeddings: the whole picture, on black where it is no square.

        Args:
            picture: An image, an array or tensor, or a path.

        Raises:
            InputError: for what is no picture, or several, and where references ride as tokens.
        """
        if self.encoder is None or self.tower is None:
            raise InputError("references: expected a pipeline with an encoder of them, got one for 'tokens'")
        pipe, side = self.pipe, self.pipe.default_sample_size * self.pipe.vae_scale_factor
        square = letterbox(reference_pixels(picture)[None].to(pipe._execution_device), side).clamp(0, 1)
        vision = self.tower.tokens(square) if "semantic" in self.features else None
        latents = encoded(pipe.vae, (2 * square - 1).to(pipe.vae.dtype))
        seen = latents if "latents" in self.features else None
        return reference_embeddings(self.encoder.to(square.device), pipe.transformer, vision, seen)[0]

    def find_mask(
        self,
        prompt: str | list[str],
        references: References | list[References] = (),
        image: Any = None,
        *,
        threshold: float = 0.5,
        **options: Any,
    ) -> list[Image.Image]:
        """Where an instruction would change each source: masks to look at, adjust and give to a call.

        Args:
            prompt, references, image: As of a call.
            threshold: Share of the largest change in a picture from which on a place counts.
            options: As of `movement`.

        Returns:
            A mask of each source, of its size: white where it would change.

        Raises:
            InputError: as of a call, without a source, and for numbers out of range.
        """
        check_fractions(threshold=threshold)
        return [mask_of(one, threshold) for one in movement(self, prompt, references, image, **options)]


@torch.no_grad()
def movement(
    paint: MultimodalInstructPipeline,
    prompt: str | list[str],
    references: References | list[References] = (),
    image: Any = None,
    *,
    noise_level: float = 0.6,
    samples: int = 8,
    processing_resolution: int = 0,
    generator: torch.Generator | None = None,
    **call: Any,
) -> list[Float[Tensor, "h w"]]:
    """How far an instruction would change each place of a source, as a share of the largest change in it:
    what `find_mask` holds a threshold to.

    Args:
        paint: The pipeline.
        prompt, references, image, processing_resolution: As of a call.
        noise_level: At which predictions with and without the instruction are compared.
        samples: Number of noises over which they are averaged.
        generator: Of the noises.
        call: `max_sequence_length`, as of a call.

    Returns:
        A map of each source, of its size.

    Raises:
        InputError: as of `find_mask`.
    """
    check_fractions(noise_level=noise_level)
    whole_number("samples", samples, 1)
    whole_number("processing_resolution", processing_resolution, 0)
    paint._check_names(call)
    asked = instructions(prompt, references)
    canvas = Canvas.of(paint, image, len(asked), processing_resolution)
    predictions = [
        _velocity(paint, _embedded(paint, each, call), canvas.latents, shown)
        for each, shown in (
            (asked, _shown(paint, asked, processing_resolution)),
            ([EMPTY] * len(asked), ()),
        )
    ]
    options: Any = {"level": noise_level, "samples": samples, "generator": generator}
    moved = difference(canvas.latents, *predictions, **options)
    return [on_grid(one, canvas.frame) for one in moved]


def _embedded(
    paint: MultimodalInstructPipeline, asked: Sequence[MultimodalInstruction], call: Mapping[str, Any]
) -> dict[str, Tensor]:
    """The embeddings of instructions, as the pipeline takes them."""
    tokens = paint.tokens_read(call)
    if paint.references == "tokens":
        asked = [one.in_words for one in asked]
    pictures = [[paint.embedding(picture) for picture in one.pictures] for one in asked]
    for one, there in zip(asked, pictures, strict=True):
        room = tokens - sum(map(len, there))
        warn_of_cuts(paint.pipe, {one.text: "the instruction"}, max(room, 1))
    text, pooled = spliced(paint.pipe, asked, pictures, tokens)
    paint.pipe.maybe_free_model_hooks()
    return {"prompt_embeds": text, "pooled_prompt_embeds": pooled}


def _shown(
    paint: MultimodalInstructPipeline, asked: Sequence[MultimodalInstruction], longest: int
) -> list[Tensor]:
    """The latents of references that ride as tokens."""
    return reference_latents(paint, asked, longest) if paint.references == "tokens" else []


def _velocity(
    paint: MultimodalInstructPipeline,
    text: Mapping[str, Tensor],
    source: Float[Tensor, "n C h w"],
    shown: Sequence[Tensor],
) -> Velocity:
    """The prediction of a transformer that sees a source, and references after it."""
    words = text["prompt_embeds"], text["pooled_prompt_embeds"]
    seen: Any = {"source": source} if paint.references == "encoder" else {"reference": [source, *shown]}
    return velocity_of(paint.pipe.transformer, *words, **seen)


def instructions(prompt: Any, references: Any) -> list[MultimodalInstruction]:
    """One instruction or several, each with its references.

    Raises:
        InputError: for other types, another number of lists of references than of instructions, and for
            references that do not fit their instruction.
    """
    if isinstance(prompt, str):
        return [MultimodalInstruction.of(prompt, references)]
    if not isinstance(prompt, list | tuple) or not prompt:
        raise InputError(f"prompt: expected an instruction or a list of them, got {prompt!r}")
    each = list(references) or [()] * len(prompt)
    if len(each) != len(prompt) or not all(isinstance(one, Mapping | list | tuple) for one in each):
        raise InputError(
            f"references: expected {len(prompt)} lists or mappings of pictures, one an instruction, got "
            f"{len(each)} {type(each[0]).__name__}"
        )
    return [MultimodalInstruction.of(*pair) for pair in zip(prompt, each, strict=True)]


def with_multimodal_lora(pipe: Any, path: str | Path, name: str = "multimodal") -> MultimodalInstructPipeline:
    """A pipeline with a LoRA of the task multimodal and the encoder of references that lies beside it.

    Args:
        pipe: A `StableDiffusion3Pipeline` or `FluxPipeline`; it gets the LoRA as its only active adapter.
        path: The LoRA's file.
        name: Of the adapter.

    Raises:
        InputError: for a file that was not trained for this task, that does not fit, or that lacks its
            encoder.
    """
    settings = run_settings(path)
    if settings.get("task") != "multimodal":
        raise InputError(f"path: expected a LoRA of the task multimodal, got '{path}'")
    file = Path(path).with_name(f"{REFERENCES}.safetensors")
    if not file.is_file():
        raise InputError(f"path: expected the encoder of references as '{file}', got none")
    chosen = config_of({"multimodal": settings["multimodal"]}).multimodal
    tower = load_image_tower(chosen.tower)
    encoder = ReferenceEncoder(fusion_config(pipe, tower, chosen))
    try:
        encoder.load_state_dict(load_file(file))
    except (RuntimeError, SafetensorError, OSError) as error:
        raise InputError(f"path: cannot read the encoder of references '{file}': {error}") from error
    load_lora(pipe, path, name)
    paint = MultimodalInstructPipeline(pipe, encoder, tower, chosen.features)
    paint.text_tokens = settings["data"]["text_tokens"]
    return paint
