"""Short training runs of tiny pipelines, and what they leave."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from dit_heads.loras.config import TrainConfig, as_mapping, config_of

ROOT = Path(__file__).parents[2]
CAPTIONS = ("a cat", "a dog by day", "an owl", "bees at noon", "a fox")
TOKENS = 12  # that the T5 reads


def settings(model: str | Path, sets: Path, out: Path, /, **changes: Any) -> TrainConfig:
    """A short run; `changes` are sections of the YAML."""
    found: dict[str, Any] = {
        "model": str(model),
        "out": str(out),
        "data": {"root": str(sets), "sizes": [[64, 64]], "text_tokens": TOKENS},
        "adapter": {"rank": 2},
        "loss": {},
        "optimization": {
            "steps": 6,
            "batch_size": 4,
            "warmup": 2,
            "learning_rate": 0.01,
            "ema": 0.9,
            "precision": "no",
        },
        "watch": {},
    }
    for name, change in changes.items():
        found[name] = {**found[name], **change} if isinstance(change, Mapping) else change
    return config_of(found)


def weights(out: Path) -> dict[str, Tensor]:
    return load_file(out / "lora.safetensors")


def logged(out: Path) -> list[dict[str, str]]:
    with (out / "log.csv").open() as file:
        return list(csv.DictReader(file))


def same(a: Path, b: Path) -> bool:
    """Bit for bit: the LoRA, and all of the checkpoint."""
    for name in ("lora.safetensors", "checkpoint.safetensors"):
        first, second = load_file(a / name), load_file(b / name)
        if first.keys() != second.keys() or not all(torch.equal(first[k], second[k]) for k in first):
            return False
    return True


def as_yaml(config: TrainConfig, path: Path) -> Path:
    path.write_text(yaml.safe_dump(as_mapping(config)))
    return path
