"""A model's fingerprint: one bit more or less is another model, the place of its weights is not."""

from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from torch import Tensor, nn

from dit_heads.errors import InputError
from dit_heads.io.fingerprints import fingerprint
from tests import tiny

CPU = torch.device("cpu")


def model() -> nn.Module:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(300, 40), nn.BatchNorm1d(40), nn.Linear(40, 3))
    made[1].register_buffer("table", torch.arange(5.0), persistent=False)
    return made


def test_equal_models_have_equal_fingerprints():
    assert fingerprint(model()) == fingerprint(model())


@pytest.mark.parametrize("index", [0, 1, 4999, 11998, 11999])
def test_every_value_of_a_weight_counts(index):
    changed: Any = model()
    with torch.no_grad():
        flat = changed[0].weight.view(-1)
        flat[index] = torch.nextafter(flat[index], torch.tensor(9.0))
    assert fingerprint(changed) != fingerprint(model())


@pytest.mark.parametrize("buffer", ["running_mean", "num_batches_tracked", "table"])
def test_buffers_count_also_those_that_are_not_saved(buffer):
    changed: Any = model()
    getattr(changed[1], buffer).add_(1)
    assert fingerprint(changed) != fingerprint(model())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_precision_counts(dtype):
    half = model().half()
    assert fingerprint(half.to(dtype)) != fingerprint(model())
    assert (fingerprint(model().half().float()) == fingerprint(model())) is False


def test_names_count():
    found = [fingerprint(nn.ModuleDict({name: nn.Linear(2, 2)}).requires_grad_(False)) for name in "ab"]
    assert found[0] != found[1]


@pytest.mark.parametrize("kind", ["sd3", "flux"])
def test_weights_that_accelerate_offloads_count_as_if_they_were_here(kind):
    here, there = (tiny.transformer(kind) for _ in range(2))
    cpu_offload(there, CPU)
    assert next(there.parameters()).is_meta
    assert fingerprint(there) == fingerprint(here)
    assert next(there.parameters()).is_meta
    with torch.no_grad():
        hook: Any = there.proj_out._hf_hook
        hook.weights_map["weight"].add_(1e-3)
    assert fingerprint(there) != fingerprint(here)


@pytest.mark.parametrize("level", ["leaf_level", "block_level"])
def test_weights_under_group_offloading_count_as_if_they_were_here(level):
    here, there = (tiny.transformer("sd3") for _ in range(2))
    there.enable_group_offload(CPU, CPU, offload_type=level, num_blocks_per_group=1)
    assert fingerprint(there) == fingerprint(here)


def test_weights_that_are_not_in_memory_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"0\.weight: expected a weight in memory"):
        fingerprint(model().to("meta"))
    there = tiny.transformer("sd3")
    there.enable_group_offload(CPU, CPU, "leaf_level", offload_to_disk_path=str(tmp_path))
    with pytest.raises(InputError, match="expected weights in memory, got some that are offloaded to disk"):
        fingerprint(there)


class Quantised(Tensor):
    """As torchao's: int8 values and scales behind one tensor, which refuses almost every operation."""

    values: Tensor
    scales: Tensor

    @staticmethod
    def __new__(cls, values: Tensor, scales: Tensor) -> Any:
        return Tensor._make_wrapper_subclass(cls, values.shape, dtype=scales.dtype)  # pyright: ignore

    def __init__(self, values: Tensor, scales: Tensor) -> None:
        self.values, self.scales = values, scales  # pyright: ignore[reportIncompatibleMethodOverride]

    def __tensor_flatten__(self) -> Any:
        return ["values", "scales"], {"block": (1, 4)}

    @staticmethod
    def __tensor_unflatten__(parts: Any, context: Any, size: Any, stride: Any) -> Any:
        return Quantised(parts["values"], parts["scales"])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return args[0]
        raise NotImplementedError(func)


@pytest.mark.parametrize("part", ["values", "scales"])
def test_quantised_weights_count_by_what_they_store(part):
    def quantised() -> nn.Linear:
        linear = nn.Linear(4, 2)
        nn.init.zeros_(linear.bias)
        weight = Quantised(torch.arange(8, dtype=torch.int8).view(2, 4), torch.ones(2, 1))
        linear.weight = nn.Parameter(weight, requires_grad=False)
        return linear

    changed = quantised()
    getattr(changed.weight, part)[0, 0] += 1
    assert fingerprint(quantised()) == fingerprint(quantised()) != fingerprint(changed)


def test_what_quantisation_keeps_beside_a_weight_counts():
    """As bitsandbytes does: `_save_to_state_dict` gives scales that are no buffers."""

    class Kept(nn.Linear):
        scale = torch.ones(1)

        def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
            super()._save_to_state_dict(destination, prefix, keep_vars)
            destination[f"{prefix}weight.absmax"] = self.scale

    kept = nn.Sequential(Kept(2, 2))
    before = fingerprint(kept)
    kept[0].scale = torch.full((1,), 2.0)
    assert fingerprint(kept) != before
