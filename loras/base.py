"""The frozen model of a LoRA run: loaded in its precision, its encoders cached."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import DiffusionPipeline
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from dit_heads.errors import InputError
from dit_heads.families import (
    FAMILIES,
    class_names,
    pipeline_names,
    pipelines_of,
    training_of,
)
from dit_heads.families.latents import encoded
from dit_heads.io.fingerprints import content_hash, fingerprint
from dit_heads.io.quiet import quiet_libraries
from dit_heads.loras.cache import CachedEncoder, Picture, Policy
from dit_heads.loras.config import DataConfig
from dit_heads.models import EMBEDDED, load_pipeline
from dit_heads.training.optimizers import require_bitsandbytes
from dit_heads.training.processes import wait_for_all

T = TypeVar("T")
MEMORY = 2**28  # bytes of the latest results of each encoder that stay in memory
PIXELS = 2**21  # of the pictures that are encoded in one go: two of 1024 x 1024


def load_base(model: str, base: str, precision: str, device: torch.device) -> Any:
    """The frozen model of a run, its autoencoder in float32.

    Args:
        model: see `TrainConfig.model`.
        base: number format of the transformer's weights; "auto" is that of the computation.
        precision: of the computation: "no", "bf16" or "fp16".
        device: where the model goes.

    Raises:
        InputError: for a base that the precision cannot train, for a pipeline of another kind, and for 8 bits
            where they cannot be had.
    """
    name = base_format(model, base, precision)
    if name == "8bit":
        pipe = _eight_bit(model, device)
    else:
        pipe = load_pipeline(model, name if device.type == "cuda" else "float32", str(device))
    if not set(class_names(type(pipe))) & set(pipeline_names()):
        names = " or ".join(pipeline_names())
        raise InputError(f"model: expected a {names}, '{model}' is a {type(pipe).__name__}")
    if name != "8bit":
        pipe.transformer.to(getattr(torch, name))
    pipe.vae.to(torch.float32)
    pipe.set_progress_bar_config(disable=True)
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.requires_grad_(False)
    return pipe


def base_format(model: str, base: str, precision: str) -> str:
    """The number format of the frozen weights. Arguments as of `load_base`.

    Raises:
        InputError: for one that the precision cannot train, and for 8 bits where they cannot be had.
    """
    name = {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}[precision] if base == "auto" else base
    if precision == "no" and name != "float32":
        raise InputError(f"base: expected float32 for precision 'no', got '{name}'")
    if name == "8bit" and model in EMBEDDED:
        raise InputError(f"base: 8bit is for a folder or a model of the hub, got '{model}'")
    if name == "8bit":
        require_bitsandbytes("base")
    return name


def _eight_bit(model: str, device: torch.device) -> Any:
    from diffusers.quantizers import PipelineQuantizationConfig

    try:
        index: Any = DiffusionPipeline.load_config(model)
        quantization = PipelineQuantizationConfig(
            quant_backend="bitsandbytes_8bit",
            quant_kwargs={"load_in_8bit": True},
            components_to_quantize=_large_parts(index),
        )
        with quiet_libraries():
            pipe = DiffusionPipeline.from_pretrained(
                model, quantization_config=quantization, dtype=torch.bfloat16, use_safetensors=True
            )
    # Whatever a damaged folder makes the libraries below raise, the reason for the user is the same.
    except Exception as error:
        raise InputError(f"model: cannot load '{model}': {error}") from error
    return pipe.to(device)


def _large_parts(index: Any) -> list[str]:
    """The components of a pipeline, by its model_index.json, that are too large in 16 bits."""
    family = FAMILIES.get(index.get("transformer", (None, None))[1])
    return list(family.training.eight_bit) if family and family.training else ["transformer"]


# --- encoders ---


def latent_encoder(pipe: Any, folder: Path, policy: Policy = "all", memory: int = 0) -> CachedEncoder:
    """An encoder of pictures.

    Args:
        pipe: whose autoencoder is used, by its posterior's mean.
        folder, policy, memory: as in `CachedEncoder`.

    Returns:
        Of a picture: {"latents": [C, h, w]}, normalised. Several in one go must be of one size.
    """

    @alone(pipe)
    def encode(pictures: Sequence[Picture]) -> list[dict[str, Tensor]]:
        parts = in_parts([picture.composite() for picture in pictures])
        return [{"latents": each} for part in parts for each in _latents(pipe, part)]

    vae = pipe.vae
    scale = [vae.config.shift_factor, vae.config.scaling_factor]
    settings = {"autoencoder": fingerprint(vae), "scale": scale}
    return CachedEncoder(lambda picture: encode([picture])[0], folder, settings, policy, memory, encode)


def alone(pipe: Any) -> Callable[[Callable[[Any], T]], Callable[[Any], T]]:
    """Let an encoder work as it does before training, also amid a step: without gradients or autocast."""

    def wrapped(encode: Callable[[Any], T]) -> Callable[[Any], T]:
        def alone(given: Any) -> T:
            with torch.no_grad(), torch.autocast(pipe.device.type, enabled=False):
                return encode(given)

        return alone

    return wrapped


def in_parts(images: Sequence[Image.Image]) -> Iterator[list[Image.Image]]:
    """Pictures of one size, as many together as an encoder is given in one go."""
    count = max(1, PIXELS // (images[0].width * images[0].height))
    for at in range(0, len(images), count):
        yield list(images[at : at + count])


@torch.no_grad()
def latents_of(pipe: Any, image: Image.Image) -> Tensor:
    """Encode a picture, without a cache.

    Args:
        pipe: whose autoencoder is used.
        image: of sides that it can shrink.

    Returns:
        Normalised latents.
    """
    return _latents(pipe, [image])[0]


def _latents(pipe: Any, images: list[Image.Image]) -> Float[Tensor, "B C h w"]:
    vae = pipe.vae
    pixels = pipe.image_processor.preprocess(images).to(vae.device, vae.dtype)
    return encoded(vae, pixels)


def text_encoder(
    pipe: Any, folder: Path, tokens: int | None, policy: Policy = "all", memory: int = 0
) -> CachedEncoder:
    """An encoder of captions.

    Args:
        pipe: whose text encoders are used.
        folder, policy, memory: as in `CachedEncoder`.
        tokens: that the T5 reads, None for as many as the pipeline reads.

    Returns:
        Of a caption: {"text": [L, D], "pooled": [P]}.
    """
    encode_prompt = training_of(pipe.transformer).encode_prompt
    length = tokens or pipelines_of(pipe.transformer).text_tokens

    @alone(pipe)
    def encode(caption: str) -> dict[str, Tensor]:
        with quiet_libraries():  # of words that no encoder reads, `warn_of_cuts` has warned
            text, pooled = encode_prompt(pipe, caption, length)
        return {"text": text[0], "pooled": pooled[0]}

    marks = {
        name: _mark(part) for name, part in pipe.components.items() if name.startswith(("text", "token"))
    }
    return CachedEncoder(encode, folder, {**marks, "tokens": length}, policy, memory)


def _mark(part: Any) -> Any:
    """Tells text encoders and tokenizers apart, as JSON holds it."""
    if isinstance(part, nn.Module):
        return [fingerprint(part), str(next(part.parameters()).dtype)]
    if part is None:
        return None
    return content_hash(json.dumps([part.get_vocab(), part.model_max_length], sort_keys=True))


def fill(encoder: CachedEncoder, items: Sequence[Any], what: str, *, show: bool) -> None:
    """Encode everything once, so that training only reads.

    Args:
        encoder: with a cache.
        items: captions or pictures.
        what: they are called on the progress bar.
        show: whether there is a bar.
    """
    for item in tqdm(items, desc=f"encoding {what}", leave=False, disable=not show):
        encoder(item)


@dataclass(frozen=True)
class Encoders:
    """The frozen encoders of a run.

    Args:
        pipe: that they belong to.
        latents, texts: of pictures and of captions.
        tokens: that the last text encoder reads.
        state: the processes of the run.
    """

    pipe: Any
    latents: CachedEncoder
    texts: CachedEncoder
    tokens: int
    state: Any

    @classmethod
    def of(cls, pipe: Any, config: DataConfig, folder: Path, state: Any) -> Encoders:
        """The encoders of a run, cached as its settings say.

        Args:
            pipe: that they belong to.
            config: cache, policy and number of tokens.
            folder: of the run.
            state: the processes of the run.
        """
        cache = config.cache or folder / "cache"
        latents = latent_encoder(pipe, cache, config.encode, MEMORY)
        texts = text_encoder(pipe, cache, config.text_tokens, config.encode, MEMORY)
        tokens = config.text_tokens or pipelines_of(pipe.transformer).text_tokens
        return cls(pipe, latents, texts, tokens, state)

    def fill(self, captions: Sequence[str], pictures: Sequence[Picture]) -> None:
        """Encode everything before training, if that is the policy. Each process encodes its share.

        Args:
            captions: of all samples and drawings.
            pictures: of all samples.
        """
        first, step, show = self.state.process_index, self.state.num_processes, self.state.is_main_process
        if self.texts.policy == "all":
            fill(self.texts, captions[first::step], "captions", show=show)
        if self.latents.policy == "all":
            fill(self.latents, pictures[first::step], "pictures", show=show)
        wait_for_all(self.state)

    def embed(self, captions: Sequence[str]) -> tuple[Float[Tensor, "B L D"], Float[Tensor, "B P"]]:
        """Embeddings of captions, and pooled ones."""
        found = [self.texts(caption) for caption in captions]
        return torch.stack([f["text"] for f in found]), torch.stack([f["pooled"] for f in found])


def drop_text_encoders(pipe: Any) -> None:
    """Make room: from here on prompts are read from the cache."""
    for name in [name for name in pipe.components if name.startswith("text_encoder")]:
        setattr(pipe, name, None)
