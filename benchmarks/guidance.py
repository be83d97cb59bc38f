"""What head guidance costs, side by side in one run: time of a step as ratios, and peak memory of one
processor.

    python benchmarks/guidance.py --blocks 8 --rounds 3
    python benchmarks/guidance.py --blocks 24 --rounds 5 --steps 10 --device cuda --dtype bfloat16

SD3-medium's or FLUX.1's width, as many blocks as `--blocks` says, 1024 image tokens (or as many as `--pixels`
a side make) and 333 (SD3) or 512 (FLUX) text tokens, random weights: a step's cost does not depend on their
values. The rows of a table take turns, and each figure is the median over the rounds of its ratio within one
round, since the machines this runs on are noisy.
"""

from __future__ import annotations

import statistics
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import tyro
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3PAGPipeline,
    StableDiffusion3Pipeline,
)
from diffusers.models.attention_processor import JointAttnProcessor2_0
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dit_heads import HeadGuidance
from dit_heads.families.processors import HeadWeights
from dit_heads.families.sd3 import JointHeadProcessor
from dit_heads.guidance.perturb import Perturbation

DEPTHS = (1 / 8, 1 / 2, 7 / 8)


@dataclass(frozen=True)
class Row:
    """A row of a table: what is run, and how deep the trunk forks, as a share of the blocks."""

    name: str
    run: Callable[[], object]
    fork: float | None = None


@dataclass(frozen=True)
class Case:
    """What all rows share: `blocks` of the transformer and attention `heads` of each, `steps` of a run,
    pictures of `pixels` a side."""

    blocks: int
    steps: int
    pixels: int
    device: torch.device
    dtype: torch.dtype
    heads: int = 24

    @property
    def middle(self) -> int:
        return self.blocks // 2

    def forked(self, run: Callable[[int], Callable[[], object]]) -> list[Row]:
        """Rows of a shared trunk that forks at each of `DEPTHS`; `run(block)` forks at this block."""
        blocks = sorted({int(depth * self.blocks) for depth in DEPTHS})
        return [
            Row(f"shared trunk, fork at block {block} of {self.blocks}", run(block), block / self.blocks)
            for block in blocks
        ]

    def call(self) -> dict[str, Any]:
        size = {"height": self.pixels, "width": self.pixels}
        return {"num_inference_steps": self.steps, "output_type": "latent", **size}

    def draw(self, *shape: int) -> Tensor:
        return torch.randn(shape).to(self.device, self.dtype)

    def place(self, model: nn.Module) -> Any:
        return model.eval().to(self.device, self.dtype)


def parts(transformer: nn.Module, names: int) -> Any:
    texts = [f"{part}{i}" for part in ("text_encoder", "tokenizer") for i in ("", "_2", "_3")[:names]]
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    return dict.fromkeys(["vae", *texts]) | {"transformer": transformer, "scheduler": scheduler}


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sd3_rows(case: Case) -> tuple[list[Row], list[Row]]:
    """What runs with CFG and without: two tables, the reference of each in its first row."""
    torch.manual_seed(0)
    with case.device:
        transformer = SD3Transformer2DModel(
            sample_size=case.pixels // 8,
            num_layers=case.blocks,
            attention_head_dim=64,
            num_attention_heads=case.heads,
            caption_projection_dim=case.heads * 64,
        )
    transformer = case.place(transformer)
    stock = quiet(StableDiffusion3Pipeline(**parts(transformer, 3)))
    # The whole middle block, as diffusers can do no less; where it lies does not change what PAG costs.
    pag = quiet(
        StableDiffusion3PAGPipeline(**parts(transformer, 3), pag_applied_layers=[f"blocks.{case.middle}"])
    )
    texts = {"prompt_embeds": case.draw(1, 333, 4096), "pooled_prompt_embeds": case.draw(1, 2048)}
    texts |= {f"negative_{name}": torch.randn_like(t) for name, t in texts.items()}
    latents = case.draw(1, 16, case.pixels // 8, case.pixels // 8)

    def run(pipe: Any, cfg: float, **more: Any) -> Any:
        return pipe(**texts, latents=latents, guidance_scale=cfg, **case.call(), **more)

    def guided(cfg: float, block: int, trunk: str = "shared") -> Callable[[], object]:
        def call() -> None:
            with HeadGuidance(stock, f"L{block}H3", trunk=trunk):
                run(stock, cfg)

        return call

    def pag_run(cfg: float) -> Callable[[], object]:
        def call() -> None:
            processors = transformer.attn_processors
            run(pag, cfg, pag_scale=3.0)
            transformer.set_attn_processor(processors)

        return call

    def two_passes(cfg: float) -> Row:
        return Row("two passes", guided(cfg, case.middle, "two_pass"))

    def unguided(cfg: float) -> Row:
        return Row("no head guidance", lambda: run(stock, cfg))

    def forked(cfg: float) -> list[Row]:
        return case.forked(lambda block: guided(cfg, block))

    with_cfg = [Row("diffusers' PAG", pag_run(7.0)), unguided(7.0), two_passes(7.0), *forked(7.0)]
    return with_cfg, [two_passes(1.0), unguided(1.0), *forked(1.0)]


def flux_rows(case: Case) -> list[Row]:
    """A third of the blocks double-stream, as in FLUX.1."""
    torch.manual_seed(0)
    double = max(1, round(case.blocks / 3))
    with case.device:
        transformer = FluxTransformer2DModel(
            num_layers=double,
            num_single_layers=case.blocks - double,
            num_attention_heads=case.heads,
            guidance_embeds=True,
        )
    transformer = case.place(transformer)
    pipe = quiet(FluxPipeline(**parts(transformer, 2)))
    texts = {"prompt_embeds": case.draw(1, 512, 4096), "pooled_prompt_embeds": case.draw(1, 768)}
    latents = case.draw(1, (case.pixels // 16) ** 2, 64)

    def plain() -> None:
        pipe(**texts, latents=latents, **case.call())

    def guided(block: int, trunk: str = "shared") -> Callable[[], object]:
        def call() -> None:
            with HeadGuidance(pipe, f"L{block}H3", trunk=trunk):
                plain()

        return call

    two_passes = Row("two passes", guided(case.middle, "two_pass"))
    return [two_passes, Row("no head guidance", plain), *case.forked(guided)]


@torch.no_grad()
def ratios(rows: list[Row], rounds: int, device: torch.device) -> list[tuple[float, float]]:
    """Median seconds, and median ratio to the first row, of each row."""
    taken: list[list[float]] = [[] for _ in rows]
    for turn in range(rounds + 1):
        for seconds, row in zip(taken, rows, strict=True):
            began = now(device)
            row.run()
            if turn:  # the first round warms up
                seconds.append(now(device) - began)
    found = []
    for seconds in taken:
        ratio = statistics.median(own / first for own, first in zip(seconds, taken[0], strict=True))
        found.append((statistics.median(seconds), ratio))
    return found


def now(device: torch.device) -> float:
    """Seconds, once everything that the device was given is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def report(title: str, rows: list[Row], rounds: int, case: Case, goal: Callable[[float], float]) -> None:
    """A Markdown table; `goal(f)` is the ratio that a fork at depth f is meant to stay under."""
    print(f"\n{title}\n\n| | seconds a step | ratio to the first row | goal |\n|---|---|---|---|")
    for row, (seconds, ratio) in zip(rows, ratios(rows, rounds, case.device), strict=True):
        target = "" if row.fork is None else f"{goal(row.fork):.3f}"
        print(f"| {row.name} | {seconds / case.steps:.4g} | {ratio:.3f} | {target} |", flush=True)


class PeakBytes(TorchDispatchMode):
    """The most bytes that tensors made inside held at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return out

    def _add(self, storage: Any) -> None:
        key, size = storage.data_ptr(), storage.nbytes()
        if size and key not in self._known:
            self._known.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


@torch.no_grad()
def memory(image: int = 4096, text: int = 333) -> None:
    """Peak memory of one attention processor on one row, in activations [image + text, 1536]."""
    model = SD3Transformer2DModel(num_layers=2, num_attention_heads=24, caption_projection_dim=1536)
    attn: Any = model.transformer_blocks[0].attn
    given: Any = {
        "hidden_states": torch.randn(1, image, 1536),
        "encoder_hidden_states": torch.randn(1, text, 1536),
    }
    one = (image + text) * 1536 * 4
    stock: Any = JointAttnProcessor2_0()
    weights = HeadWeights({"attn": torch.ones(1, 24)}, text)
    print("\nPeak memory of a processor on one row\n")
    print("| | MB | activations beyond the stock processor |\n|---|---|---|")
    base = 0
    for name in ("stock", "identity", "uniform", "mean_query", "explicit map"):
        with PeakBytes() as peak:
            if name == "explicit map":
                q, k = (
                    to(given["hidden_states"]).unflatten(-1, (24, 64)).transpose(1, 2)
                    for to in (attn.to_q, attn.to_k)
                )
                (q @ k.transpose(-1, -2)).softmax(-1)
            elif name == "stock":
                stock(attn, **given)
            else:
                JointHeadProcessor(stock, "attn", Perturbation(name))(attn, **given, head_weights=weights)
        base = base or peak.peak
        print(f"| {name} | {peak.peak / 1e6:.0f} | {(peak.peak - base) / one:.2f} |", flush=True)


def main(
    blocks: int = 8,
    rounds: int = 3,
    steps: int = 1,
    pixels: int = 512,
    sd3: bool = True,
    flux: bool = True,
    device: str = "cpu",
    dtype: str = "float32",
) -> None:
    """Tables of both models, each with `blocks` blocks, over `rounds` rounds after one that warms up; a run
    takes `steps`."""
    for name, value in {"blocks": blocks, "rounds": rounds, "steps": steps}.items():
        if value < 1:
            raise SystemExit(f"{name}: expected at least 1, got {value}")
    case = Case(blocks, steps, pixels, torch.device(device), getattr(torch, dtype))
    if sd3:
        with_cfg, without = sd3_rows(case)
        report("SD3-medium's width, with CFG", with_cfg, rounds, case, lambda f: 1.05 * (3 - f) / 3)
        report("SD3-medium's width, without CFG", without, rounds, case, lambda f: 1.05 * (2 - f) / 2)
    if flux:
        report("FLUX.1's width", flux_rows(case), rounds, case, lambda f: 1.05 * (2 - f) / 2)
    memory()


if __name__ == "__main__":
    tyro.cli(main)
