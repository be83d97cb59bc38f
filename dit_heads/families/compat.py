"""What families take from diffusers' private modules and from modules that it does not document."""

from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.attention_processor import FusedJointAttnProcessor2_0, JointAttnProcessor2_0
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3_inpaint import retrieve_latents

__all__ = [
    "FluxAttnProcessor",
    "FusedJointAttnProcessor2_0",
    "JointAttnProcessor2_0",
    "apply_rotary_emb",
    "dispatch_attention_fn",
    "retrieve_latents",
]
