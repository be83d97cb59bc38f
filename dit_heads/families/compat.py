"""What we take from diffusers, torch and accelerate that they keep private or do not document."""

from collections.abc import Collection
from typing import Any

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
    "forward_is_replaced",
    "hook_names",
    "is_compiled",
    "kept_processors",
    "retrieve_latents",
]


def hook_names(module: Any) -> Collection[str]:
    """The hooks that diffusers has put on a module: offloading, casting, caches."""
    return getattr(getattr(module, "_diffusers_hook", None), "hooks", {}).keys()


def is_compiled(module: Any) -> bool:
    """Whether a module, or its `forward`, is compiled by torch."""
    own = vars(module).get("forward")
    return (
        module._compiled_call_impl is not None
        or type(module).__name__ == "OptimizedModule"
        or hasattr(own, "_torchdynamo_orig_callable")
    )


def forward_is_replaced(module: Any) -> bool:
    """Whether somebody has put another `forward` on this instance. accelerate and diffusers do so for their
    hooks, and leave a bound method of the class behind when these are taken off."""
    own = vars(module).get("forward")
    if own is None or hasattr(module, "_hf_hook") or hook_names(module):
        return False
    return getattr(own, "__func__", None) is not type(module).forward


def kept_processors(transformer: Any) -> dict[str, Any]:
    """The attention processors that `fuse_qkv_projections` has put aside, by name."""
    return getattr(transformer, "original_attn_processors", None) or {}
