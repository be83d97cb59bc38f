"""Attention backends and offloading under head guidance."""

from typing import Any

import diffusers
import pytest
import torch
from diffusers.hooks import apply_group_offloading
from diffusers.models.attention_dispatch import attention_backend
from torch.testing import assert_close

from dit_heads import HeadGuidance
from tests import tiny

CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
BACKENDS = ["native", "_native_math", "flex", pytest.param("xformers", marks=needs_gpu)]


@pytest.fixture(autouse=True)
def active_backend_put_back():
    """`set_attention_backend` sets it for every model of the process."""
    with attention_backend("native"):
        yield


@torch.no_grad()
def guided(model: Any, kind: str, **options: Any) -> torch.Tensor:
    with HeadGuidance(model, "L1H0, L3", scale=2.0, softness=0.5, conditional=slice(None), **options):
        return model(**tiny.inputs(2, kind)).sample


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.parametrize("kind", tiny.MODELS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_backends_give_the_same_and_are_kept(kind, backend):
    model = tiny.transformer(kind)
    plain = guided(model, kind)
    model.set_attention_backend(backend)
    before = {name: getattr(p, "_attention_backend", None) for name, p in model.attn_processors.items()}
    assert_close(guided(model, kind), plain)
    after = {name: getattr(p, "_attention_backend", None) for name, p in model.attn_processors.items()}
    assert after == before
    if kind == "flux":
        assert set(after.values()) == {backend}


@pytest.mark.skipif(
    diffusers.__version__ < "0.42" and torch.accelerator.current_accelerator() is None,
    reason="before 0.42 diffusers' group offloading needs an accelerator",
)
@pytest.mark.parametrize("trunk", ["shared", "two_pass"])
@pytest.mark.parametrize("offload_type", ["block_level", "leaf_level"])
@pytest.mark.parametrize("kind", ["sd3", "flux"])
def test_group_offload(kind, offload_type, trunk):
    model = tiny.transformer(kind)
    plain = guided(model, kind)
    options: Any = {"num_blocks_per_group": 2} if offload_type == "block_level" else {}
    apply_group_offloading(model, onload_device=CPU, offload_device=CPU, offload_type=offload_type, **options)
    for _ in range(2):
        assert_close(guided(model, kind, trunk=trunk), plain)
