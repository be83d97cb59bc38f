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

FORKS = {"1/8": 0.125, "1/2": 0.5, "7/8": 0.875}
Row = tuple[str, Callable[[], object]]


@dataclass(frozen=True)
class Case:
    """What all rows share: `blocks` of the transformer, `steps` of a run, pictures of `pixels` a side."""

    blocks: int
    steps: int
    pixels: int
    device: torch.device
    dtype: torch.dtype

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
    blocks = case.blocks
    with case.device:
        transformer = SD3Transformer2DModel(
            sample_size=case.pixels // 8,
            num_layers=blocks,
            attention_head_dim=64,
            num_attention_heads=24,
            caption_projection_dim=1536,
        )
    transformer = case.place(transformer)
    stock = quiet(StableDiffusion3Pipeline(**parts(transformer, 3)))
    # The whole middle block, as diffusers can do no less; where it lies does not change what PAG costs.
    pag = quiet(
        StableDiffusion3PAGPipeline(**parts(transformer, 3), pag_applied_layers=[f"blocks.{blocks // 2}"])
    )
    texts = {"prompt_embeds": case.draw(1, 333, 4096), "pooled_prompt_embeds": case.draw(1, 2048)}
    texts |= {f"negative_{name}": torch.randn_like(t) for name, t in texts.items()}
    latents = case.draw(1, 16, case.pixels // 8, case.pixels // 8)

    def run(pipe: Any, cfg: float, **more: Any) -> Any:
        return pipe(**texts, latents=latents, guidance_scale=cfg, **case.call(), **more)

    def guided(cfg: float, fork: float, trunk: str) -> Callable[[], object]:
        def call() -> None:
            with HeadGuidance(stock, f"L{round(fork * blocks)}H3", trunk=trunk):
                run(stock, cfg)

        return call

    def pag_run(cfg: float) -> Callable[[], object]:
        def call() -> None:
            kept = transformer.attn_processors
            run(pag, cfg, pag_scale=3.0)
            transformer.set_attn_processor(kept)

        return call

    def table(cfg: float, reference: Row) -> list[Row]:
        rows = [
            reference,
            ("no head guidance", lambda: run(stock, cfg)),
            ("two passes", guided(cfg, 0.5, "two_pass")),
        ]
        return rows + [
            (f"shared trunk, fork at {name}", guided(cfg, f, "shared")) for name, f in FORKS.items()
        ]

    with_cfg = table(7.0, ("diffusers' PAG", pag_run(7.0)))
    without = table(1.0, ("two passes", guided(1.0, 0.5, "two_pass")))
    return with_cfg, [row for i, row in enumerate(without) if i != 2]


def flux_rows(case: Case) -> list[Row]:
    """A third of the blocks double-stream, as in FLUX.1."""
    torch.manual_seed(0)
    blocks = case.blocks
    double = max(1, round(blocks / 3))
    with case.device:
        transformer = FluxTransformer2DModel(
            num_layers=double, num_single_layers=blocks - double, guidance_embeds=True
        )
    transformer = case.place(transformer)
    pipe = quiet(FluxPipeline(**parts(transformer, 2)))
    texts = {"prompt_embeds": case.draw(1, 512, 4096), "pooled_prompt_embeds": case.draw(1, 768)}
    latents = case.draw(1, (case.pixels // 16) ** 2, 64)

    def run(heads: str | None, trunk: str = "shared") -> Callable[[], object]:
        def plain() -> None:
            pipe(**texts, latents=latents, **case.call())

        def guided() -> None:
            with HeadGuidance(pipe, heads or "", trunk=trunk):
                plain()

        return plain if heads is None else guided

    rows = [("two passes", run(f"L{blocks // 2}H3", "two_pass")), ("no head guidance", run(None))]
    return rows + [
        (f"shared trunk, fork at {name}", run(f"L{round(f * blocks)}H3")) for name, f in FORKS.items()
    ]


@torch.no_grad()
def ratios(rows: list[Row], rounds: int, device: torch.device) -> list[tuple[str, float, float]]:
    """Name, median seconds, and median ratio to the first row, of each row."""
    taken: list[list[float]] = [[] for _ in rows]
    for turn in range(rounds + 1):
        for seconds, (_, run) in zip(taken, rows, strict=True):
            began = now(device)
            run()
            if turn:  # the first round warms up
                seconds.append(now(device) - began)
    found = []
    for (name, _), seconds in zip(rows, taken, strict=True):
        ratio = statistics.median(own / first for own, first in zip(seconds, taken[0], strict=True))
        found.append((name, statistics.median(seconds), ratio))
    return found


def now(device: torch.device) -> float:
    """Seconds, once everything that the device was given is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def report(title: str, rows: list[Row], rounds: int, case: Case, goal: Callable[[float], float]) -> None:
    """A Markdown table; `goal(f)` is the ratio that a fork at depth f is meant to stay under."""
    print(f"\n{title}\n\n| | seconds a step | ratio to the first row | goal |\n|---|---|---|---|")
    for name, seconds, ratio in ratios(rows, rounds, case.device):
        fork = next((f for label, f in FORKS.items() if name.endswith(label)), None)
        wanted = "" if fork is None else f"{goal(fork):.3f}"
        print(f"| {name} | {seconds / case.steps:.4g} | {ratio:.3f} | {wanted} |", flush=True)


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
