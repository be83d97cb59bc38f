"""Whole SD3 and FLUX pipelines of few random weights, prompt to picture."""

import string
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

BLOCKS, HEADS = 3, 4


def tiny_pipeline() -> StableDiffusion3Pipeline:
    """Pictures of 32 x 32; three blocks of four heads."""
    torch.manual_seed(0)
    return StableDiffusion3Pipeline(
        transformer=_transformer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=tiny_vae(8, 16),
        text_encoder=_text_encoder(),
        tokenizer=_tokenizer(),
        text_encoder_2=_text_encoder(),
        tokenizer_2=_tokenizer(),
        text_encoder_3=_t5(),
        tokenizer_3=_t5_tokenizer(),
    )


def tiny_flux_pipeline() -> FluxPipeline:
    """The same with two double-stream blocks and a single-stream one."""
    torch.manual_seed(0)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    pipe = FluxPipeline(
        transformer=_flux(),
        scheduler=scheduler,
        vae=tiny_vae(8, 16),
        text_encoder=CLIPTextModel(_clip_config()).eval(),
        tokenizer=_tokenizer(),
        text_encoder_2=_t5(),
        tokenizer_2=_t5_tokenizer(),
    )
    pipe.default_sample_size = 16  # instead of the 128 of the class; it is not stored
    return pipe


def red(images: torch.Tensor, prompts: Any) -> torch.Tensor:
    """An objective: the mean of the red channel."""
    return images[:, 0].mean((1, 2))


def _transformer() -> SD3Transformer2DModel:
    return SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=BLOCKS,
        num_attention_heads=HEADS,
        attention_head_dim=8,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=32,
        pos_embed_max_size=16,
    ).eval()


def _flux() -> FluxTransformer2DModel:
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=2,
        num_single_layers=1,
        num_attention_heads=HEADS,
        attention_head_dim=8,
        joint_attention_dim=32,
        pooled_projection_dim=16,
        guidance_embeds=True,
        axes_dims_rope=(2, 2, 4),
    ).eval()


def tiny_vae(*channels: int) -> AutoencoderKL:
    """Of so many blocks, each but the first of which halves the sides."""
    config: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * len(channels),
        "up_block_types": ("UpDecoderBlock2D",) * len(channels),
        "block_out_channels": channels,
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 4,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "shift_factor": 0.06,
        "scaling_factor": 1.5,
    }
    return AutoencoderKL(**config).eval()


def _text_encoder() -> CLIPTextModelWithProjection:
    return CLIPTextModelWithProjection(_clip_config()).eval()


def _clip_config() -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        projection_dim=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )


def _tokenizer() -> CLIPTokenizer:
    """Letters, so that different prompts are different tokens."""
    letters = [*string.ascii_lowercase, *(f"{letter}</w>" for letter in string.ascii_lowercase)]
    vocabulary = {token: i for i, token in enumerate(["<|startoftext|>", "<|endoftext|>", *letters])}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=32)


def _t5() -> T5EncoderModel:
    config = T5Config(
        vocab_size=64, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2, is_encoder_decoder=False
    )
    return T5EncoderModel(config).eval()


def _t5_tokenizer() -> T5Tokenizer:
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    letters = [(letter, -1.0) for letter in ["▁", *string.ascii_lowercase]]
    return T5Tokenizer(vocab=special + letters, extra_ids=0, model_max_length=64)


PIPELINES: dict[str, Any] = {"sd3": tiny_pipeline, "flux": tiny_flux_pipeline}
