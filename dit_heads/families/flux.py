"""FLUX.1: double-stream blocks, then single-stream blocks, text tokens first, 2 x 2 latents packed per token.

The distilled guidance scale is an input of the model. True CFG is a second call.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from dit_heads.compat import FluxAttnProcessor, apply_rotary_emb
from dit_heads.errors import InputError
from dit_heads.families._family import (
    JOINT_PROJECTIONS,
    Family,
    HeadLayout,
    InputProjection,
    LoraDialect,
    Pipelines,
    Residuals,
    Training,
    every_row,
    head_counts,
)
from dit_heads.families.calls import Arguments, Call, Conditioning, Keywords
from dit_heads.families.processors import (
    QKV,
    HeadProcessor,
    HeadWeights,
    explicit_attention,
    image_heads,
    joined,
    text_heads,
)


def _layout(transformer: Any) -> HeadLayout:
    """Double-stream blocks, then single-stream blocks, numbered consecutively: 0-18 and 19-56 in FLUX.1."""
    double, single = len(transformer.transformer_blocks), len(transformer.single_transformer_blocks)
    blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
    return HeadLayout(
        model=type(transformer).__name__,
        family=FLUX,
        blocks=(
            *(f"transformer_blocks.{b}" for b in range(double)),
            *(f"single_transformer_blocks.{b}" for b in range(single)),
        ),
        heads=head_counts(blocks),
        image_only_heads=(0,) * len(blocks),
        final="norm_out",
        residuals=_residuals(double, single),
    )


def _residuals(double: int, single: int) -> tuple[Residuals, Residuals]:
    return (
        Residuals(
            "controlnet_block_samples",
            range(double),
            lambda b, n, call: b % n if call.get("controlnet_blocks_repeat") else b // math.ceil(double / n),
        ),
        Residuals(
            "controlnet_single_block_samples",
            range(double, double + single),
            lambda b, n, _: b // math.ceil(single / n),
        ),
    )


# --- attention ---


class FluxHeadProcessor(HeadProcessor):
    """FLUX's attention, text tokens first, in double-stream and single-stream blocks."""

    replaceable = (FluxAttnProcessor,)

    def __call__(
        self,
        attn: Any,
        hidden_states: Float[Tensor, "b n c"],
        encoder_hidden_states: Float[Tensor, "b t c"] | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
        head_weights: HeadWeights | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        u = self._weights(head_weights)
        if u is None or head_weights is None:
            return self.replaced(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)
        if attention_mask is not None and self.perturbation.name != "identity":
            raise InputError(
                f"attention_mask: only identity is defined under one, got {self.perturbation.name!r}"
            )
        qkv = projections(attn, hidden_states, encoder_hidden_states, image_rotary_emb)
        out = self._perturbed(qkv, u, slice(head_weights.text_tokens, None), attention_mask)
        return outputs(attn, out, encoder_hidden_states)


class ExplicitFluxAttention:
    """FLUX's attention, computed through its attention map; see `sd3.ExplicitJointAttention`."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        qkv = projections(attn, hidden_states, encoder_hidden_states, image_rotary_emb)
        return outputs(attn, explicit_attention(*qkv), encoder_hidden_states)


def projections(
    attn: Any, image: Float[Tensor, "b n c"], text: Float[Tensor, "b t c"] | None, rotary: Any
) -> QKV:
    """Queries, keys and values [B, H, T + N, D], text tokens first. In a single-stream block, `image` holds
    both."""
    q, k, v = joined([*([] if text is None else [text_heads(attn, text)]), image_heads(attn, image)])
    if rotary is None:
        return q, k, v
    turned: Any = [apply_rotary_emb(t, rotary, sequence_dim=2) for t in (q, k)]
    return *turned, v


def outputs(
    attn: Any, out: Float[Tensor, "b s c"], text: Float[Tensor, "b t c"] | None
) -> Float[Tensor, "b s c"] | tuple[Float[Tensor, "b n e"], Float[Tensor, "b t f"]]:
    """Output projections of attention [B, T + N, C], for image and text. Single-stream blocks have none."""
    if text is None:
        return out
    project, dropout = attn.to_out
    return dropout(project(out[:, text.shape[1] :])), attn.to_add_out(out[:, : text.shape[1]])


# --- packing ---


def positions(rows: int, columns: int) -> Float[Tensor, "n 3"]:
    """Position ids of image tokens: 0, row, column."""
    place = torch.zeros(rows, columns, 3)
    place[..., 1] += torch.arange(rows)[:, None]
    place[..., 2] += torch.arange(columns)[None]
    return place.flatten(0, 1)


def pack(latents: Shaped[Tensor, "B C H W"]) -> Shaped[Tensor, "B N 4*C"]:
    """Latents as tokens, one for each 2 x 2 latents."""
    b, c, h, w = latents.shape
    return latents.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, 4 * c)


def unpack(tokens: Float[Tensor, "B N D"], height: int, width: int) -> Float[Tensor, "B C H W"]:
    """The inverse of `pack`, for latents of a given height and width."""
    b, _, c = tokens.shape
    grid = tokens.view(b, height // 2, width // 2, c // 4, 2, 2)
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(b, c // 4, height, width)


def _latent_size(call: Call) -> tuple[int, int]:
    rows, columns = (int(n) + 1 for n in call["img_ids"][:, 1:].amax(0))
    tokens = call["hidden_states"].shape[1]
    if tokens != rows * columns:
        raise InputError(f"pipe: expected {rows * columns} image tokens, of one picture alone, got {tokens}")
    return 2 * rows, 2 * columns


# --- calls ---


def _text_length(call: Call) -> int:
    return call["encoder_hidden_states"].shape[1]


def _noise_level(call: Call) -> float:
    return call["timestep"].flatten()[0].double().item()


def _velocity(
    transformer: Any, x: Tensor, sigmas: Tensor, text: Tensor, pooled: Tensor, guidance: float | Tensor
) -> Tensor:
    height, width = x.shape[2:]
    strength = torch.as_tensor(guidance, dtype=x.dtype, device=x.device).expand(len(x))
    tokens = transformer(
        hidden_states=pack(x),
        timestep=sigmas,
        guidance=strength if transformer.config.guidance_embeds else None,
        encoder_hidden_states=text,
        pooled_projections=pooled,
        img_ids=positions(height // 2, width // 2).to(x),
        txt_ids=x.new_zeros(text.shape[1], 3),
        return_dict=False,
    )[0]
    return unpack(tokens, height, width)


# --- pipelines and LoRAs ---


def _encode_prompt(pipe: Any, caption: str | list[str], tokens: int) -> tuple[Tensor, Tensor]:
    text, pooled, _ = pipe.encode_prompt(prompt=caption, prompt_2=caption, max_sequence_length=tokens)
    return text, pooled


def _noise(pipe: Any, pictures: int, size: tuple[int, int], dtype: Any, generator: Any) -> Tensor:
    channels = pipe.transformer.config.in_channels // 4
    return pipe.prepare_latents(pictures, channels, *size, dtype, pipe._execution_device, generator)[0]


def _text_of(call: Call) -> tuple[Tensor, Tensor]:
    return call["encoder_hidden_states"], call["pooled_projections"]


def _with_text(call: Call, text: Tensor, pooled: Tensor) -> dict[str, Any]:
    ids = call["txt_ids"].new_zeros(text.shape[1], 3)
    return {**call, "encoder_hidden_states": text, "pooled_projections": pooled, "txt_ids": ids}


def _beside(call: Call, source: Float[Tensor, "b c h w"]) -> dict[str, Any]:
    """Tokens of the source after those that are there, in the next frame at the same places (FLUX.1
    Kontext)."""
    seen, places = call["hidden_states"], call["img_ids"]
    frame = positions(source.shape[2] // 2, source.shape[3] // 2).to(places)
    frame[:, 0] = places[:, 0].max() + 1
    return {
        **call,
        "hidden_states": torch.cat([seen, pack(source)], 1),
        "img_ids": torch.cat([places, frame]),
    }


def _alone(prediction: Float[Tensor, "b _ c"], call: Call) -> Float[Tensor, "b n c"]:
    return prediction[:, : call["hidden_states"].shape[1]]


def _released_names(tensors: dict[str, Tensor]) -> Mapping[str, Tensor]:
    """From the names of FLUX's first release (kohya's sd-scripts, ComfyUI) to diffusers'."""
    from diffusers import FluxPipeline

    return FluxPipeline.lora_state_dict(tensors)  # pyright: ignore[reportReturnType]


FLUX = Family(
    name="flux",
    layout=_layout,
    arguments=Arguments(
        latents="hidden_states",
        batched=(
            "hidden_states",
            "encoder_hidden_states",
            "pooled_projections",
            "timestep",
            "guidance",
            "controlnet_block_samples",
            "controlnet_single_block_samples",
        ),
        block=(
            "hidden_states",
            "encoder_hidden_states",
            "temb",
            "image_rotary_emb",
            "joint_attention_kwargs",
        ),
        grown=("hidden_states", "encoder_hidden_states", "temb"),
    ),
    carrier=Keywords("joint_attention_kwargs"),
    processor=FluxHeadProcessor,
    text_length=_text_length,
    conditional_rows=every_row,
    noise_level=_noise_level,
    pipelines=Pipelines(
        text_to_image="FluxPipeline",
        fill="FluxFillPipeline",
        distilled=True,
        reads_guidance=lambda transformer: transformer.config.guidance_embeds,
        text_tokens=512,
        pack=pack,
        unpack=unpack,
        latent_size=_latent_size,
        noise=_noise,
        largest_side=lambda pipe: None,
        text_of=_text_of,
        with_text=_with_text,
        tokens=Conditioning(_beside, _alone, several=True),
        cfg_scale="true_cfg_scale",
        cfg_calls=2,
    ),
    training=Training(
        velocity=_velocity,
        encode_prompt=_encode_prompt,
        targets={
            "attention": JOINT_PROJECTIONS,
            "mlp": ("net.0.proj", "net.2", "proj_mlp", "proj_out"),
            "modulation": ("norm1.linear", "norm1_context.linear", "norm.linear"),
        },
        eight_bit=("transformer", "text_encoder_2"),
        explicit_attention=ExplicitFluxAttention,
        input=InputProjection("x_embedder", 4),
    ),
    lora_dialects=(
        LoraDialect(
            ("lora_unet_", "diffusion_model."),
            _released_names,
            roots=("double_blocks.", "single_blocks.", "final_layer."),
            root_prefix="diffusion_model.",
        ),
    ),
)
