"""Pictures by a source picture and an instruction (InstructPix2Pix, arXiv 2211.09800; InstructCV, arXiv
2310.00390).

`InstructPipeline` drives a pipeline that the user already has, through hooks that last as long as a call.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import BaseOutput
from jaxtyping import Float
from torch import Tensor

from dit_heads.errors import InputError, finite_number, whole_number
from dit_heads.families import class_names, pipeline_names, pipelines_of, training_of
from dit_heads.families.conditioning import KINDS, conditioning_of
from dit_heads.families.latents import encoded
from dit_heads.loras.weights.files import load_lora, run_settings
from dit_heads.pipelines.image_guidance import ImageGuidance, Text
from dit_heads.pipelines.sources import Frame, Pixels, pictures_of
from dit_heads.pipelines.vision import VisionTasks
from dit_heads.training.widen import extra_channels, narrow

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
USUAL_SCALE = 1.5  # of image guidance; a distilled model was trained without dropping the picture
REFUSED = {
    "height": "the picture has the size of the result",
    "width": "the picture has the size of the result",
    "ip_adapter_image": "a further picture is not supported",
    "ip_adapter_image_embeds": "a further picture is not supported",
}


@dataclass
class InstructPipelineOutput(BaseOutput):
    """What a call of `InstructPipeline` returns."""

    images: Any
    """Pictures as `output_type` asks, each of the size of its source."""


class InstructPipeline(VisionTasks):
    """Repaints pictures as an instruction says, with an SD3 or FLUX pipeline.

    >>> edit = InstructPipeline(pipe)   # doctest: +SKIP
    >>> image = edit("street.jpg", "make it night").images[0]   # doctest: +SKIP
    >>> cubes = edit.segment("street.jpg", "cube").annotations[0]   # doctest: +SKIP
    >>> cubes = edit.ask("street.jpg", "where are the cubes?").annotations[0]   # doctest: +SKIP

    The pipeline stays as it is: LoRAs, head guidance (`HeadGuidance(edit.pipe, ...)`), offloading, callbacks
    and progress bar are its own. Under head guidance with `rescale`, the standard deviation is that of all
    that the transformer predicts, which for tokens includes the source.

    Args:
        pipe: A `StableDiffusion3Pipeline` or `FluxPipeline`.
        conditioning: How the transformer sees the source: "channels" beside the noisy latents, in an input
            widened for them (`training.widen`, a LoRA of the instruct task, or a FLUX Control checkpoint), or
            "tokens" in its sequence (FLUX.1 Kontext).

    Raises:
        InputError: for another pipeline, another conditioning, and an input that is too narrow or too wide.
    """

    def __init__(self, pipe: Any, conditioning: str = "channels") -> None:
        known = pipeline_names()
        if not set(class_names(type(pipe))) & set(known):
            raise InputError(f"pipe: expected one of {', '.join(known)}, got {type(pipe).__name__}")
        self.pipe: Any = pipe
        self.conditioning = conditioning
        self.text_tokens: int | None = None  # what the last text encoder reads where a call does not say it
        conditioning_of(pipe.transformer, conditioning)
        _check_width(pipe, conditioning)

    @torch.no_grad()
    def __call__(
        self,
        image: Any,
        prompt: str | list[str] | None = None,
        *,
        image_guidance_scale: float | None = None,
        num_images_per_prompt: int = 1,
        processing_resolution: int = 0,
        output_type: str = "pil",
        return_dict: bool = True,
        **call: Any,
    ) -> InstructPipelineOutput | Any:
        """Pictures of the size of their sources.

        Args:
            image: A source or a list of them, of one size: PIL images, arrays [h, w, 3] and tensors [3, h, w]
                in [0, 1], paths. One source serves all prompts.
            prompt: An instruction, or one a source. One serves all sources.
            image_guidance_scale: How closely the result follows the source, s_I; at 1 a third of the work is
                spared. The default is 1.5, and 1 for distilled models such as FLUX.1.
            num_images_per_prompt: Results of each pair of source and instruction.
            processing_resolution: The longest side in pixels that the model works at, 0 for the source's.
            output_type, return_dict: As in diffusers. "latent" gives latents as the pipeline keeps them, of
                the source continued to a multiple of the size of an image token.
            call: Everything else goes to the pipeline: `guidance_scale` (s_T; FLUX's real CFG is
                `true_cfg_scale`), `negative_prompt`, `generator`, `num_inference_steps`, `latents`,
                `callback_on_step_end` ...

        Raises:
            InputError: for pictures that cannot be read or differ in size, a size that the model cannot
                place, and arguments that are not known or contradict each other.
        """
        scale = self._image_scale(image_guidance_scale)
        self._check_names(call)
        check_call(output_type, num_images_per_prompt, processing_resolution)
        sources = pictures_of(image)
        frame = self.frame(sources, processing_resolution)
        sources, call = _paired(sources, prompt, call)
        source = self.latents([frame.framed(each) for each in sources])
        source = source.repeat_interleave(num_images_per_prompt, 0)
        form = "latent" if output_type == "latent" else "pt"
        call |= {"num_images_per_prompt": num_images_per_prompt, "output_type": form}
        images = self._painted([source], frame.padded, scale, call)
        if form == "pt":
            images = torch.stack([frame.restored(each) for each in images])
            images = self.pipe.image_processor.postprocess(images, output_type, [False] * len(images))
        return InstructPipelineOutput(images) if return_dict else (images,)

    def _painted(
        self, seen: Sequence[Tensor], size: tuple[int, int], scale: float, call: dict[str, Any]
    ) -> Any:
        """What the pipeline puts out for pictures of this size, each of which sees its row of `seen`."""
        if self.text_tokens is not None:
            call.setdefault("max_sequence_length", self.text_tokens)
        own, null = _text_guidance(self.pipe, scale, len(seen[0]), call)
        call |= {"height": size[0], "width": size[1], "return_dict": False}
        guidance = ImageGuidance(self.pipe, seen, self.conditioning, scale=scale, text_scale=own, null=null)
        with self._narrow(seen[0].shape[1]), guidance.attached():
            return self.pipe(**call)[0]

    def _narrow(self, channels: int) -> AbstractContextManager[None]:
        """The transformer's config as the pipeline has to read it: without the channels of the source."""
        is_wide = self.conditioning == "channels"
        return narrow(self.pipe.transformer, channels) if is_wide else nullcontext()

    @property
    def token_side(self) -> int:
        """Pixels along the side of an image token."""
        return self.pipe.vae_scale_factor * pipelines_of(self.pipe.transformer).patch

    def frame(self, sources: list[Pixels], longest: int) -> Frame:
        """How sources of one size are read.

        Args:
            sources: Pictures [3, h, w].
            longest: The longest side in pixels that the model works at, 0 for that of the sources.

        Raises:
            InputError: for several sizes, and for a size that the model cannot place.
        """
        sizes = list(dict.fromkeys((s.shape[1], s.shape[2]) for s in sources))
        if len(sizes) > 1:
            found = " and ".join(f"{height} x {width}" for height, width in sizes[:2])
            raise InputError(f"image: expected pictures of one size, got {found}")
        frame = Frame.of(sizes[0], self.token_side, longest)
        most = pipelines_of(self.pipe.transformer).largest_side(self.pipe)
        covered = conditioning_of(self.pipe.transformer, self.conditioning).covered(*frame.padded)
        if most is not None and max(covered) > most:
            raise InputError(
                f"image: expected at most {most} pixels a side for this model, got {sizes[0][0]} x "
                f"{sizes[0][1]}, which it reads as {covered[0]} x {covered[1]}; give processing_resolution"
            )
        return frame

    def latents(self, pictures: list[Pixels]) -> Float[Tensor, "n C h w"]:
        """Encode pictures by the posterior's mean, so that no random number is used up.

        Args:
            pictures: Each [3, h, w] in [0, 1], of a size that the model reads.

        Returns:
            Latents as the transformer reads them.
        """
        pipe = self.pipe
        device, dtype = pipe._execution_device, pipe.vae.dtype
        found = [encoded(pipe.vae, 2 * each[None].to(device, dtype) - 1) for each in pictures]
        pipe.maybe_free_model_hooks()  # under model offloading, the autoencoder would stay beside the rest
        return torch.cat(found)

    def _check_names(self, call: Mapping[str, Any]) -> None:
        _check_arguments(self.pipe, call)

    def _image_scale(self, scale: float | None) -> float:
        if scale is None:
            return 1.0 if pipelines_of(self.pipe.transformer).distilled else USUAL_SCALE
        return finite_number("image_guidance_scale", scale, 0)


def with_instruct_lora(pipe: Any, path: str | Path, name: str = "instruct") -> InstructPipeline:
    """A pipeline with a LoRA of the instruct task, which sees pictures and reads text as it was trained to.

    Args:
        pipe: A `StableDiffusion3Pipeline` or `FluxPipeline`; it gets the LoRA as its only active adapter.
        path: The LoRA's file.
        name: Of the adapter.

    Raises:
        InputError: for a file that was not trained for this task, or that does not fit.
    """
    settings = run_settings(path)
    if settings.get("task") != "instruct":
        raise InputError(f"path: expected a LoRA of the task instruct, got '{path}'")
    load_lora(pipe, path, name)
    edit = InstructPipeline(pipe, settings["instruct"]["conditioning"])
    edit.text_tokens = settings["data"]["text_tokens"]
    return edit


# --- arguments ---


def _check_width(pipe: Any, conditioning: str) -> None:
    """A source on the channel axis needs as many more channels as an autoencoder's latents have."""
    extra = extra_channels(pipe.transformer)
    wanted = pipe.vae.config.latent_channels if conditioning == "channels" else 0
    if extra != wanted:
        raise InputError(
            f"pipe: expected a transformer that reads {wanted} channels of a source for the conditioning "
            f"'{conditioning}', got one that reads {extra}; " + _advice(conditioning, wanted)
        )


def _advice(conditioning: str, channels: int) -> str:
    other = next(kind for kind in KINDS if kind != conditioning)
    if conditioning == "tokens":
        return f"load one that is not widened, or choose '{other}'"
    return f"load a LoRA of the instruct task, widen(pipe.transformer, {channels}), or choose '{other}'"


def _check_arguments(pipe: Any, call: Mapping[str, Any]) -> None:
    """Refuse arguments that are not the pipeline's, or contradict the source."""
    theirs = inspect.signature(pipe.__call__).parameters
    ours = [name for name in inspect.signature(InstructPipeline.__call__).parameters if name != "self"]
    is_open = any(parameter.kind is parameter.VAR_KEYWORD for parameter in theirs.values())
    for name, value in call.items():
        if name in REFUSED and value is not None:
            raise InputError(f"{name}: expected none, since {REFUSED[name]}, got {type(value).__name__}")
        if name not in theirs and not is_open:
            near = difflib.get_close_matches(name, [*ours, *theirs], 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            kind = type(pipe).__name__
            raise InputError(f"{name}: InstructPipeline and its {kind} take no such argument{hint}")
    whole_number("num_inference_steps", call.get("num_inference_steps", 1), 1)


def check_call(output_type: str, count: Any, longest: Any) -> None:
    """Raise InputError for an unknown type of output, no pictures, and a longest side below 0."""
    if output_type not in OUTPUT_TYPES:
        raise InputError(f"output_type: expected {', '.join(OUTPUT_TYPES)}, got {output_type!r}")
    whole_number("num_images_per_prompt", count, 1)
    whole_number("processing_resolution", longest, 0)


def _paired(sources: list[Pixels], prompt: Any, call: dict[str, Any]) -> tuple[list[Pixels], dict[str, Any]]:
    """As many sources as instructions, and the call with the latter."""
    embeds = call.get("prompt_embeds")
    if (prompt is None) == (embeds is None):
        got = "neither" if prompt is None else "both"
        raise InputError(f"prompt: expected an instruction, or prompt_embeds in its place, got {got}")
    if isinstance(prompt, str):
        prompt = [prompt] * len(sources)
    if prompt is not None and not all(isinstance(one, str) for one in prompt):
        raise InputError(f"prompt: expected an instruction or a list of them, got {prompt!r}")
    count = len(embeds if prompt is None else prompt)  # pyright: ignore[reportArgumentType]
    if len(sources) == 1:
        sources = sources * count
    if len(sources) != count:
        raise InputError(f"prompt: expected {len(sources)}, one a picture, got {count}")
    if isinstance(call.get("negative_prompt"), str):  # FLUX's pipeline takes it for one picture's alone
        call = {**call, "negative_prompt": [call["negative_prompt"]] * count}
    return sources, call if prompt is None else {**call, "prompt": list(prompt)}


def _text_guidance(pipe: Any, scale: float, pictures: int, call: dict[str, Any]) -> tuple[float, Text | None]:
    """The scale of real CFG where it becomes ours to add, else 1; and the null text where the pipeline makes
    no negative prediction that image guidance could use. `call` loses what is ours then.

    A family whose CFG is two calls makes the negative one after the one in which we need it, so all of it is
    done here, in as many passes."""
    form = pipelines_of(pipe.transformer)
    parameters = inspect.signature(pipe.__call__).parameters
    strength = call.get(form.cfg_scale, parameters[form.cfg_scale].default)
    if scale == 1 or (form.cfg_calls == 1 and strength > 1):
        return 1.0, None
    asked = any(call.get(name) is not None for name in ("negative_prompt", "negative_prompt_embeds"))
    text = _null_text(pipe, pictures, call)
    if form.cfg_calls == 1 or strength <= 1 or not asked:
        return 1.0, text
    for name in [name for name in call if name.startswith("negative_")] + [form.cfg_scale]:
        call.pop(name, None)
    return float(strength), text


def _null_text(pipe: Any, pictures: int, call: Mapping[str, Any]) -> Text:
    """Embeddings of the negative prompt, or of the empty one, a row for each picture."""
    given = call.get("negative_prompt_embeds"), call.get("negative_pooled_prompt_embeds")
    if given[0] is not None and given[1] is not None:
        found: tuple[Any, Any] = given
    else:
        if getattr(pipe, "text_encoder", None) is None:
            raise InputError(
                "negative_prompt_embeds, negative_pooled_prompt_embeds: expected them for image guidance by "
                "a pipeline without text encoders, got none"
            )
        usual = inspect.signature(pipe.__call__).parameters["max_sequence_length"].default
        prompts = call.get("negative_prompt") or ""
        encode, length = training_of(pipe.transformer).encode_prompt, call.get("max_sequence_length", usual)
        each = [encode(pipe, one, length) for one in ([prompts] if isinstance(prompts, str) else prompts)]
        found = torch.cat([text for text, _ in each]), torch.cat([pooled for _, pooled in each])
        pipe.maybe_free_model_hooks()
    if pictures % len(found[0]):
        raise InputError(f"negative_prompt: expected one, or one a picture, got {len(found[0])}")
    text, pooled = (part.repeat_interleave(pictures // len(part), 0) for part in found)
    return text, pooled
