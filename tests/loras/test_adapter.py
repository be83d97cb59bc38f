"""The LoRA that a run starts from: another run's weights, at whatever scale; or an error."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from dit_heads.errors import InputError
from dit_heads.loras.adapter import add_adapter
from dit_heads.loras.config import AdapterConfig
from dit_heads.loras.weights.files import lora_of, save_lora
from tests import tiny


def with_adapter(options: dict[str, Any], seed: int = 0) -> Any:
    transformer = tiny.transformer("sd3")
    add_adapter(transformer, AdapterConfig(**options), seed)
    return transformer


def test_a_run_can_start_from_a_lora(tmp_path: Path):
    first = with_adapter({"rank": 2, "alpha": 6.0})
    for name, weight in first.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    save_lora(first, tmp_path / "first.safetensors")
    second = with_adapter({"rank": 2, "alpha": 3.0, "start": tmp_path / "first.safetensors"}, seed=1)
    before, now = lora_of(first), lora_of(second)
    assert before.modules.keys() == now.modules.keys()
    for name, change in before.modules.items():
        assert_close(now.modules[name].b @ now.modules[name].a, change.b @ change.a)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 4}, "start: expected a LoRA of rank 4 without DoRA, got rank 2 in"),
        ({"rank": 2, "dora": True}, "start: expected a LoRA of rank 2 without DoRA"),
        (
            {"rank": 2, "targets": ("mlp",)},
            "start: expected the layers that are trained, got (a|no) change of",
        ),
    ],
)
def test_a_lora_of_another_kind_is_no_start(options: dict[str, Any], message: str, tmp_path: Path):
    save_lora(with_adapter({"rank": 2}), tmp_path / "first.safetensors")
    with pytest.raises(InputError, match=message):
        with_adapter({**options, "start": tmp_path / "first.safetensors"})
