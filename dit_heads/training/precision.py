"""In which precision this machine trains."""

from __future__ import annotations

import time
from functools import cache

import torch

from dit_heads.errors import InputError


def training_precision(wanted: str) -> str:
    """A precision of `FitConfig`, "auto" settled for this machine. Raises ValueError for one that cannot be
    had here."""
    if wanted not in ("auto", "no", "bf16", "fp16"):
        raise InputError(f"precision: expected auto, no, bf16 or fp16, got {wanted!r}")
    if wanted == "fp16" and not torch.cuda.is_available():
        raise InputError("precision: fp16 needs a CUDA GPU, this machine has none; use bf16 or no")
    return wanted if wanted != "auto" else ("bf16" if bf16_is_faster() else "no")


@cache
def bf16_is_faster() -> bool:
    """Whether a matrix product in bf16 beats fp32 on this machine: CPUs differ by a factor of 400 here."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()

    def seconds(dtype: torch.dtype) -> float:
        a = torch.randn(768, 768, dtype=dtype)
        _ = a @ a
        began = time.perf_counter()
        for _ in range(3):
            _ = a @ a
        return time.perf_counter() - began

    return seconds(torch.bfloat16) < 0.8 * seconds(torch.float32)
