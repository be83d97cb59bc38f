"""A pipeline with a LoRA that widens its input, for one job."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

from dit_heads.demo.isolation import MAKING
from dit_heads.loras.weights.formats import read_lora
from dit_heads.loras.weights.low_rank import missing_channels
from dit_heads.training.widen import widened

P = TypeVar("P")


@contextmanager
def adapted(pipe: Any, path: Path, load: Callable[[Any, Path], P]) -> Iterator[P]:
    """A pipeline with a LoRA. Afterwards its transformer has the input that it had.

    Args:
        pipe: the pipeline.
        path: of the LoRA.
        load: gives the pipeline its LoRA, and returns what works with it.
    """
    transformer = pipe.transformer
    with MAKING:
        extra = missing_channels(read_lora(path, transformer), transformer)
    with widened(transformer, extra) if extra else nullcontext():
        try:
            with MAKING:
                made = load(pipe, path)
            yield made
        finally:
            if getattr(transformer, "peft_config", None):
                transformer.unload_lora()
