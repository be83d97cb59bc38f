"""The precisions that this machine can train in, and the fastest of them."""

from __future__ import annotations

import time
from functools import cache

import torch

from dit_heads.errors import InputError

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}  # number formats of mixed precision


def training_precision(wanted: str) -> str:
    """A precision of `FitConfig`, with "auto" settled for this machine.

    Raises:
        InputError: for an unknown precision, and for one that this machine lacks.
    """
    if wanted not in ("auto", "no", "bf16", "fp16"):
        raise InputError(f"precision: expected auto, no, bf16 or fp16, got {wanted!r}")
    if wanted == "fp16" and not torch.cuda.is_available():
        raise InputError("precision: fp16 needs a CUDA GPU, this machine has none; use bf16 or no")
    return fastest_precision() if wanted == "auto" else wanted


def fastest_precision() -> str:
    """What "auto" is on this machine."""
    return "bf16" if bf16_is_faster() else "no"


@cache
def bf16_is_faster() -> bool:
    """Whether this machine multiplies matrices faster in bf16 than in fp32. On CPUs the ratio of the two
    varies by a factor of 400."""
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
