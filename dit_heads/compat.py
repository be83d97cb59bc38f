"""Private and undocumented parts of diffusers, torch and accelerate that we rely on.

A new version of these libraries then breaks one file of ours at most.
"""

import functools
import inspect
from collections.abc import Collection
from contextlib import AbstractContextManager
from typing import Any

import torch
from accelerate.utils import align_module_device
from accelerate.utils.modeling import has_offloaded_params
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.attention_processor import FusedJointAttnProcessor2_0, JointAttnProcessor2_0
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

__all__ = [
    "FluxAttnProcessor",
    "FusedJointAttnProcessor2_0",
    "JointAttnProcessor2_0",
    "align_module_device",
    "apply_rotary_emb",
    "copy_all",
    "dispatch_attention_fn",
    "forward_is_replaced",
    "has_offloaded_params",
    "hook_names",
    "is_compiled",
    "is_offloaded_to_disk",
    "is_traceable_wrapper_subclass",
    "kept_processors",
    "lerp_all",
    "muon_group",
    "plain_tensors",
    "retrieve_latents",
    "surface",
]


def retrieve_latents(encoded: Any, **options: Any) -> Any:
    """diffusers' own function. It is imported late: its module prints a warning if torchvision is missing."""
    from diffusers.pipelines.stable_diffusion_3 import pipeline_stable_diffusion_3_inpaint as inpaint

    return inpaint.retrieve_latents(encoded, **options)


def hook_names(module: Any) -> Collection[str]:
    """Names of diffusers' hooks on a module: offloading, casting, caches."""
    return getattr(vars(module).get("_diffusers_hook"), "hooks", {}).keys()


def is_offloaded_to_disk(module: Any) -> bool:
    """Whether diffusers' group offloading keeps a module's weights on disk and uninitialised memory in their
    place."""
    hooks: Any = getattr(vars(module).get("_diffusers_hook"), "hooks", {})
    group = getattr(hooks.get("group_offloading"), "group", None)
    return getattr(group, "offload_to_disk_path", None) is not None


def muon_group(optimizer: torch.optim.Muon, group: dict[str, Any]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Weight, gradient and momentum of each matrix in a parameter group that has a gradient."""
    parts: tuple[list[Tensor], list[Tensor], list[Tensor]] = [], [], []
    optimizer._init_group(group, *parts)
    return list(zip(*parts, strict=True))


def lerp_all(tensors: list[Tensor], others: list[Tensor], share: float) -> None:
    """Move tensors in place towards others by a share, in few kernels."""
    torch._foreach_lerp_(tensors, others, share)


def copy_all(tensors: list[Tensor], values: Tensor) -> None:
    """Copy the rows of a tensor into tensors, in few kernels."""
    torch._foreach_copy_(tensors, list(values))


def plain_tensors() -> AbstractContextManager[Any]:
    """A context in which methods of tensor subclasses, such as GGUF's parameters, return plain tensors."""
    return torch._C.DisableTorchFunctionSubclass()


def is_compiled(module: Any) -> bool:
    """Whether torch has compiled a module or its `forward`."""
    own = vars(module).get("forward")
    return (
        module._compiled_call_impl is not None
        or type(module).__name__ == "OptimizedModule"
        or hasattr(own, "_torchdynamo_orig_callable")
    )


def forward_is_replaced(module: Any) -> bool:
    """Whether the `forward` of a module or of its class has been replaced.

    Wrappers of accelerate and diffusers, which call the original, do not count. When they are removed, they
    leave a bound method of the class on the module, which does not count either.
    """
    own = vars(module).get("forward")
    while isinstance(own, functools.partial) and own.func.__module__ in _HOOKS:
        own = own.__wrapped__  # pyright: ignore[reportAttributeAccessIssue]
    replaced = own is not None and getattr(own, "__func__", None) is not type(module).forward
    return replaced or _is_patched(type(module))


_HOOKS = ("accelerate.hooks", "diffusers.hooks.hooks")


def _is_patched(kind: type) -> bool:
    """Whether the `forward` of a class has been replaced."""
    home = next(parent for parent in kind.__mro__ if "forward" in vars(parent))
    forward = inspect.unwrap(vars(home)["forward"])
    defined = (home.__module__, f"{home.__qualname__}.forward")
    return (forward.__module__, forward.__qualname__) != defined


def surface(module: Any) -> tuple[Any, ...]:
    """Everything but the weights that a call of a module depends on: parts, `forward`, hooks, compilation.

    Two surfaces differ if the module has been changed. One is taken before every call of a transformer, which
    takes 1 ms for the 1300 modules of FLUX.
    """
    own = vars(module)
    registry = own.get("_diffusers_hook")
    hooks = None if registry is None else tuple(registry.hooks)
    children = tuple(map(id, own["_modules"].values()))
    return children, own.get("forward"), type(module).forward, own.get("_compiled_call_impl"), hooks


def kept_processors(transformer: Any) -> dict[str, Any]:
    """The attention processors that `fuse_qkv_projections` has replaced, by name."""
    return getattr(transformer, "original_attn_processors", None) or {}
