from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.objectives.made import saved_clip, tiny_clip


@pytest.fixture(scope="session")
def model() -> Any:
    return tiny_clip()


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> str:
    return saved_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="session")
def head(tmp_path_factory) -> str:
    g = torch.Generator().manual_seed(3)
    weights = {"layers.0.weight": torch.randn(5, 12, generator=g), "layers.0.bias": torch.ones(5)}
    weights |= {"layers.2.weight": torch.randn(1, 5, generator=g), "layers.2.bias": torch.ones(1)}
    path = tmp_path_factory.mktemp("head") / "head.safetensors"
    save_file(weights, path)
    return str(path)


@pytest.fixture(scope="session")
def images() -> Tensor:
    return torch.rand(3, 3, 40, 32, generator=torch.Generator().manual_seed(1))
