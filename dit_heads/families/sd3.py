"""SD3 and SD3.5: joint attention over image and text tokens, image first. SD3.5-medium has image-only
attention too. CFG is one call with the negative prompts in the first half."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dit_heads.compat import FusedJointAttnProcessor2_0, JointAttnProcessor2_0
from dit_heads.errors import InputError
from dit_heads.families._family import (
    JOINT_PROJECTIONS,
    Family,
    HeadLayout,
    InputProjection,
    Pipelines,
    Residuals,
    Training,
    head_counts,
    second_half,
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
    blocks = transformer.transformer_blocks
    return HeadLayout(
        model=type(transformer).__name__,
        family=SD3,
        blocks=tuple(f"transformer_blocks.{b}" for b in range(len(blocks))),
        heads=head_counts(blocks),
        image_only_heads=tuple(block.attn2.heads if block.attn2 is not None else 0 for block in blocks),
        final="norm_out",
        residuals=(
            Residuals(
                "block_controlnet_hidden_states",
                range(len(blocks)),
                lambda b, n, _: int(b / (len(blocks) / n)),
            ),
        ),
    )


# --- attention ---


class JointHeadProcessor(HeadProcessor):
    """SD3's joint attention, image tokens first, and SD3.5's image-only attention."""

    replaceable = (JointAttnProcessor2_0, FusedJointAttnProcessor2_0)

    @classmethod
    def check_replaceable(cls, processor: object, attn: Any, where: str) -> None:
        super().check_replaceable(processor, attn, where)
        if isinstance(processor, FusedJointAttnProcessor2_0) and attn.norm_q is not None:
            raise InputError(
                f"{where}: diffusers' fused processor leaves out this model's qk-norm; unfuse it first"
            )

    def __call__(
        self,
        attn: Any,
        hidden_states: Float[Tensor, "b n c"],
        encoder_hidden_states: Float[Tensor, "b t c"] | None = None,
        attention_mask: Tensor | None = None,
        head_weights: HeadWeights | None = None,
        **kwargs: Any,
    ) -> Tensor | tuple[Tensor, Tensor]:
        u = self._weights(head_weights)
        if u is None:
            return self.replaced(attn, hidden_states, encoder_hidden_states, attention_mask, **kwargs)
        qkv = projections(attn, hidden_states, encoder_hidden_states)
        image_tokens = hidden_states.shape[1]
        out = self._perturbed(qkv, u, slice(0, image_tokens))  # the stock processor ignores its mask as well
        return outputs(attn, out, image_tokens, joint=encoder_hidden_states is not None)


class ExplicitJointAttention:
    """SD3's joint attention, computed through its attention map.

    In bf16 on a CPU it trains 3.6 times faster than `scaled_dot_product_attention`: the backward pass of its
    flash kernel is slow, and so is the softmax of its plain kernel.
    """

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any
    ) -> Tensor | tuple[Tensor, Tensor]:
        out = explicit_attention(*projections(attn, hidden_states, encoder_hidden_states))
        return outputs(attn, out, hidden_states.shape[1], joint=encoder_hidden_states is not None)


def projections(attn: Any, image: Float[Tensor, "b n c"], text: Float[Tensor, "b t c"] | None) -> QKV:
    """Queries, keys and values [B, H, N + T, D], image tokens first."""
    return joined([image_heads(attn, image)] + ([] if text is None else [text_heads(attn, text)]))


def outputs(
    attn: Any, out: Float[Tensor, "b s c"], image_tokens: int, joint: bool
) -> Float[Tensor, "b n e"] | tuple[Float[Tensor, "b n e"], Float[Tensor, "b t f"]]:
    """Output projections of attention [B, N + T, C], for the image and, if it is joint, for the text."""
    project, dropout = attn.to_out
    if not joint:
        return dropout(project(out))
    image, text = out[:, :image_tokens], out[:, image_tokens:]
    return dropout(project(image)), text if attn.context_pre_only else attn.to_add_out(text)


# --- calls ---


def _text_length(call: Call) -> int:
    return call["encoder_hidden_states"].shape[1]


def _noise_level(call: Call) -> float:
    return call["timestep"].flatten()[0].double().item() / 1000


def _velocity(
    transformer: Any, x: Tensor, sigmas: Tensor, text: Tensor, pooled: Tensor, guidance: float | Tensor
) -> Tensor:
    """SD3 has no guidance embedding, so `guidance` is ignored."""
    return transformer(
        hidden_states=x,
        timestep=1000 * sigmas,
        encoder_hidden_states=text,
        pooled_projections=pooled,
        return_dict=False,
    )[0]


# --- pipelines ---


def _encode_prompt(pipe: Any, caption: str | list[str], tokens: int) -> tuple[Tensor, Tensor]:
    prompts = dict.fromkeys(("prompt", "prompt_2", "prompt_3"), caption)
    text, _, pooled, _ = pipe.encode_prompt(
        **prompts, max_sequence_length=tokens, do_classifier_free_guidance=False
    )
    return text, pooled


def _noise(pipe: Any, pictures: int, size: tuple[int, int], dtype: Any, generator: Any) -> Tensor:
    channels = pipe.transformer.config.in_channels
    return pipe.prepare_latents(pictures, channels, *size, dtype, pipe._execution_device, generator)


def _largest_side(pipe: Any) -> int:
    """The side of the area that the position table covers, in pixels."""
    config = pipe.transformer.config
    return config.pos_embed_max_size * config.patch_size * pipe.vae_scale_factor


def _text_of(call: Call) -> tuple[Tensor, Tensor]:
    return call["encoder_hidden_states"], call["pooled_projections"]


def _with_text(call: Call, text: Tensor, pooled: Tensor) -> dict[str, Any]:
    return {**call, "encoder_hidden_states": text, "pooled_projections": pooled}


# --- a source picture as a panel beside the noisy one: SD3 has one plane of positions alone ---


def _beside(call: Call, source: Float[Tensor, "b c h w"]) -> dict[str, Any]:
    """The source on the right of the noisy latents, or below wide ones."""
    noisy = call["hidden_states"]
    side = -1 if noisy.shape[-2] >= noisy.shape[-1] else -2
    return {**call, "hidden_states": torch.cat([noisy, source], side)}


def _alone(prediction: Float[Tensor, "b c _ _"], call: Call) -> Float[Tensor, "b c h w"]:
    height, width = call["hidden_states"].shape[-2:]
    return prediction[..., :height, :width]


def _covered(height: int, width: int) -> tuple[int, int]:
    return (height, 2 * width) if height >= width else (2 * height, width)


SD3 = Family(
    name="sd3",
    layout=_layout,
    arguments=Arguments(
        latents="hidden_states",
        batched=(
            "hidden_states",
            "encoder_hidden_states",
            "pooled_projections",
            "timestep",
            "block_controlnet_hidden_states",
        ),
        block=("hidden_states", "encoder_hidden_states", "temb", "joint_attention_kwargs"),
        grown=("hidden_states", "encoder_hidden_states", "temb"),
    ),
    carrier=Keywords("joint_attention_kwargs"),
    processor=JointHeadProcessor,
    text_length=_text_length,
    conditional_rows=second_half,
    noise_level=_noise_level,
    pipelines=Pipelines(
        text_to_image="StableDiffusion3Pipeline",
        fill=None,
        distilled=False,
        reads_guidance=lambda transformer: True,
        text_tokens=256,
        pack=lambda latents: latents,
        unpack=lambda latents, height, width: latents,
        latent_size=lambda call: tuple(call["hidden_states"].shape[-2:]),
        noise=_noise,
        largest_side=_largest_side,
        text_of=_text_of,
        with_text=_with_text,
        tokens=Conditioning(_beside, _alone, _covered),
        cfg_scale="guidance_scale",
        cfg_calls=1,
    ),
    training=Training(
        velocity=_velocity,
        encode_prompt=_encode_prompt,
        targets={
            "attention": JOINT_PROJECTIONS,
            "mlp": ("net.0.proj", "net.2"),
            "modulation": ("norm1.linear", "norm1_context.linear"),
        },
        eight_bit=("transformer", "text_encoder_3"),
        explicit_attention=ExplicitJointAttention,
        input=InputProjection("pos_embed.proj", 1),
    ),
)
