"""Random LoRAs of tiny transformers, and what they change."""

from typing import Any

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    SD3Transformer2DModel,
)
from peft import LoraConfig
from peft.tuners.lora import Linear
from torch import Tensor
from torch.testing import assert_close

from dit_heads.loras.weights.low_rank import Lora, LowRank
from tests import tiny

TARGETS = ["to_q", "to_out.0", "add_k_proj", "ff.net.2", "norm1.linear", "proj_out"]
GOOD = "transformer.transformer_blocks.0.attn.to_q"
CONFIGS: dict[str, dict[str, Any]] = {
    "alpha is the rank": {"r": 3, "lora_alpha": 3},
    "alpha is not the rank": {"r": 3, "lora_alpha": 7},
    "rank-stabilised": {"r": 4, "lora_alpha": 6, "use_rslora": True},
    "ranks and alphas of their own": {
        "r": 3,
        "lora_alpha": 5,
        "rank_pattern": {"to_q": 2, "^proj_out": 1},
        "alpha_pattern": {"to_q": 8, "transformer_blocks.1.attn.to_out.0": 1},
    },
    "DoRA": {"r": 3, "lora_alpha": 7, "use_dora": True},
}


def tuned(kind: str = "sd3", **config: Any) -> Any:
    """A model of `tiny.MODELS` with a random adapter."""
    model = tiny.transformer(kind)
    model.add_adapter(LoraConfig(**{"target_modules": TARGETS, "init_lora_weights": False, **config}))
    g = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = 0.5 * torch.randn(parameter.shape, generator=g, dtype=torch.float64)
    return model


def pipeline(model: Any) -> Any:
    """A stock pipeline around a model."""
    if isinstance(model, SD3Transformer2DModel):
        return tiny.pipeline(model)
    nothing: Any = dict.fromkeys(["vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"])
    return FluxPipeline(transformer=model, scheduler=FlowMatchEulerDiscreteScheduler(), **nothing)


def output(model: Any, kind: str = "sd3") -> Tensor:
    with torch.no_grad():
        return model(**tiny.inputs(2, kind), return_dict=False)[0]


def delta(change: LowRank) -> Tensor:
    return change.b @ change.a


def deltas_of(model: Any) -> dict[str, Tensor]:
    """What each module's weight is changed by, as peft computes it."""
    return {
        name: module.get_delta_weight("default").detach()
        for name, module in model.named_modules()
        if isinstance(module, Linear)
    }


def assert_same(lora: Lora, deltas: dict[str, Tensor]) -> None:
    assert {name: delta(change) for name, change in lora.modules.items()}.keys() == deltas.keys()
    for name, change in lora.modules.items():
        assert_close(delta(change), deltas[name])


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pair(name: str, outputs: int, inputs: int, rank: int = 2, seed: int = 0) -> dict[str, Tensor]:
    """kohya's two tensors of a module."""
    return {
        f"{name}.lora_down.weight": drawn(rank, inputs, seed=seed),
        f"{name}.lora_up.weight": drawn(outputs, rank, seed=seed + 1),
    }
