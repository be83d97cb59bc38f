"""The frozen model of a LoRA run: loaded in its precision, its encoders cached on disk, its adapter added."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from dit_heads.errors import InputError
from dit_heads.families import (
    FAMILIES,
    class_names,
    layout_of,
    pipeline_names,
    pipelines_of,
    training_of,
)
from dit_heads.families.latents import encoded
from dit_heads.hunt.trials import fingerprint
from dit_heads.loras.cache import CachedEncoder
from dit_heads.loras.config import AdapterConfig
from dit_heads.loras.sets.dataset import Sample
from dit_heads.loras.sets.folders import content_hash
from dit_heads.loras.weights.compose import blocks_of
from dit_heads.loras.weights.low_rank import linear_modules, require_peft
from dit_heads.models import EMBEDDED, load_pipeline, quiet_loading
from dit_heads.training.optimizers import require_bitsandbytes


def load_base(model: str, base: str, precision: str, device: torch.device) -> Any:
    """A pipeline whose transformer has the number format `base`; "auto" is that of the computation.

    The autoencoder is in float32. Raises ValueError for a base that the precision cannot train, for another
    kind of pipeline, and for 8 bits where they cannot be had."""
    name = {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}[precision] if base == "auto" else base
    if precision == "no" and name != "float32":
        raise InputError(f"base: expected float32 for precision 'no', got '{name}'")
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


def _eight_bit(model: str, device: torch.device) -> Any:
    if model in EMBEDDED:
        raise InputError(f"base: 8bit is for a folder or a model of the hub, got '{model}'")
    require_bitsandbytes("base")
    from diffusers.quantizers import PipelineQuantizationConfig

    try:
        index: Any = DiffusionPipeline.load_config(model)
        quantization = PipelineQuantizationConfig(
            quant_backend="bitsandbytes_8bit",
            quant_kwargs={"load_in_8bit": True},
            components_to_quantize=_large_parts(index),
        )
        with quiet_loading():
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


def latent_encoder(pipe: Any, folder: Path) -> CachedEncoder:
    """Samples -> {"latents": [C, h, w]}, normalised, by the posterior's mean."""

    @torch.no_grad()
    def encode(sample: Sample) -> dict[str, Tensor]:
        return {"latents": latents_of(pipe, sample.composite())}

    vae = pipe.vae
    scale = [vae.config.shift_factor, vae.config.scaling_factor]
    return CachedEncoder(encode, folder, {"autoencoder": fingerprint(vae), "scale": scale})


@torch.no_grad()
def latents_of(pipe: Any, image: Image.Image) -> Tensor:
    """Normalised latents [C, h, w] of a picture."""
    vae = pipe.vae
    pixels = pipe.image_processor.preprocess(image).to(vae.device, vae.dtype)
    return encoded(vae, pixels)[0]


def text_encoder(pipe: Any, folder: Path, tokens: int | None) -> CachedEncoder:
    """Captions -> {"text": [L, D], "pooled": [P]}, the T5 reading `tokens`."""
    encode_prompt = training_of(pipe.transformer).encode_prompt
    length = tokens or pipelines_of(pipe.transformer).text_tokens

    @torch.no_grad()
    def encode(caption: str) -> dict[str, Tensor]:
        text, pooled = encode_prompt(pipe, caption, length)
        return {"text": text[0], "pooled": pooled[0]}

    marks = {
        name: _mark(part) for name, part in pipe.components.items() if name.startswith(("text", "token"))
    }
    return CachedEncoder(encode, folder, {**marks, "tokens": length})


def _mark(part: Any) -> Any:
    """Tells text encoders and tokenizers apart, as JSON holds it."""
    if isinstance(part, nn.Module):
        return [fingerprint(part), str(next(part.parameters()).dtype)]
    if part is None:
        return None
    return content_hash(json.dumps([part.get_vocab(), part.model_max_length], sort_keys=True))


def fill(encoder: CachedEncoder, items: Sequence[Any], what: str, *, show: bool) -> None:
    """Encode everything once, so that training only reads."""
    for item in tqdm(items, desc=f"encoding {what}", leave=False, disable=not show):
        encoder(item)


def drop_text_encoders(pipe: Any) -> None:
    """Make room: from here on prompts are read from the cache."""
    for name in [name for name in pipe.components if name.startswith("text_encoder")]:
        setattr(pipe, name, None)


# --- the adapter ---


def add_adapter(transformer: Any, config: AdapterConfig, seed: int) -> None:
    """Put a LoRA that changes nothing yet on the modules that the settings name, its weights in float32 and
    by `seed` alone.

    Raises ValueError if there are no such modules."""
    lora = require_peft().LoraConfig(
        r=config.rank,
        lora_alpha=config.rank if config.alpha is None else config.alpha,
        target_modules=targeted(transformer, config),
        use_dora=config.dora,
        init_lora_weights="gaussian",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer.add_adapter(lora)
    for parameter in transformer.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def targeted(transformer: Any, config: AdapterConfig) -> list[str]:
    """Names of the linear modules to train: of the blocks and with the endings that the settings ask for."""
    groups = training_of(transformer).targets
    endings = {target: groups.get(target, (target,)) for target in config.targets}
    layout = layout_of(transformer)
    chosen = layout.blocks
    if config.blocks is not None:
        chosen = tuple(layout.blocks[b] for b in blocks_of(config.blocks, len(layout.blocks), "blocks"))
    there = [name for name in linear_modules(transformer) if layout.block_of(name) in chosen]
    found = {target: list(_ending(there, ends)) for target, ends in endings.items()}
    missing = [target for target, names in found.items() if not names]
    if missing or not found:
        words = sorted({name.removeprefix(f"{layout.block_of(name)}.") for name in there})
        raise InputError(
            f"targets: expected some of {', '.join(groups)}, or of {', '.join(words)}; got "
            f"{', '.join(missing) or 'none'}"
        )
    return sorted({name for names in found.values() for name in names})


def _ending(names: Sequence[str], endings: Sequence[str]) -> Iterator[str]:
    for name in names:
        if name.endswith(tuple(f".{ending}" for ending in endings)):
            yield name
