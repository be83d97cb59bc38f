"""What a training step costs: our trainer against the loop of diffusers' `train_dreambooth_lora_sd3.py`.

    python benchmarks/train.py --rounds 5

The embedded SD3 learns composites of 1 x 3 panels, 128 x 384 pixels, with the same LoRA (rank 16 on
attention), batch and precision, and 128 T5 tokens. The script's loop is written anew here from the same
operations, in three ways:
- as it is by default with a caption for each picture: autoencoder and text encoders run in every step;
- with its option for cached latents, which are then drawn from the stored posteriors;
- with one prompt for all pictures too, which it encodes once: nothing but the transformer is left.

Ours reads latents and prompt embeddings of each caption from disk, averages the weights, writes a log, and on
a CPU in bf16 writes the attention of the embedded models out ("stock attention" is without). Not counted are
what happens once (loading, caching) and checkpoints. The rows take turns; figures are medians over the
rounds, ratios within one round. Peak memory is that of a process that does nothing but the row (on a GPU, of
tensors).
"""

from __future__ import annotations

import io
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers.training_utils import (
    cast_training_params,
    compute_density_for_timestep_sampling,
    compute_loss_weighting_for_sd3,
)
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from dit_heads.embedded.sets import write_sets
from dit_heads.io.quiet import quiet_libraries
from dit_heads.loras import train as trainer
from dit_heads.loras.adapter import add_adapter
from dit_heads.loras.base import Encoders, drop_text_encoders, load_base
from dit_heads.loras.config import AdapterConfig, TrainConfig, config_of
from dit_heads.loras.sets.dataset import SetDataset
from dit_heads.loras.tasks import task_of
from dit_heads.training.loop import FitConfig, fit
from dit_heads.training.precision import training_precision
from dit_heads.training.processes import process_state

TOKENS = 128
ADAPTER = AdapterConfig(rank=16)
Rounds = Callable[[int], float]  # steps -> seconds that they took


@dataclass(frozen=True)
class Case:
    """What all rows share."""

    sets: Path
    batch: int
    precision: str

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def data(self) -> SetDataset:
        return SetDataset(self.sets, rows=1, columns=3, buckets=[(128, 128)])

    def pipe(self) -> Any:
        return load_base("embedded", "auto", self.precision, self.device)


# --- diffusers' script ---


class Script:
    """Its loop. `latents`: they are cached; `text`: there is one prompt, encoded once."""

    def __init__(self, case: Case, *, latents: bool, text: bool) -> None:
        self.case, self.pipe = case, case.pipe()
        half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(case.precision, torch.float32)
        for name in ("text_encoder", "text_encoder_2", "text_encoder_3"):
            getattr(self.pipe, name).to(half)
        self.dtype, transformer = half, self.pipe.transformer
        add_adapter(transformer, ADAPTER, 0)
        cast_training_params([transformer], dtype=torch.float32)
        self.weights = [p for p in transformer.parameters() if p.requires_grad]
        descent = torch.optim.AdamW(self.weights, 1e-4, (0.9, 0.999), weight_decay=1e-4, eps=1e-8)
        rate = torch.optim.lr_scheduler.LambdaLR(descent, lambda _: 1.0)
        vae = self.pipe.vae.config
        self.scale = vae.shift_factor, vae.scaling_factor
        preprocess = self.pipe.image_processor.preprocess
        samples = [(preprocess(sample.composite())[0], sample.caption) for sample in case.data().samples]
        given: Any = samples
        loader = DataLoader(given, case.batch, shuffle=True, collate_fn=_collate, drop_last=True)
        AcceleratorState._reset_state()
        self.accelerator = Accelerator(mixed_precision=case.precision, cpu=case.device.type == "cpu")
        prepared: Any = self.accelerator.prepare(transformer, descent, loader, rate)
        self.transformer, self.descent, self.loader, self.rate = prepared
        self.cached = [self._posterior(pixels) for pixels, _ in self.loader] if latents else None
        self.encoded = self._encode([samples[0][1]] * case.batch) if text else None
        if text:
            drop_text_encoders(self.pipe)
        if latents:
            self.pipe.vae = None
        self.batches = self._batches()

    def _batches(self) -> Iterator[tuple[int, Any]]:
        while True:
            yield from enumerate(self.loader)

    @torch.no_grad()
    def _posterior(self, pixels: Tensor) -> Any:
        return self.pipe.vae.encode(pixels.to(self.case.device, self.pipe.vae.dtype)).latent_dist

    @torch.no_grad()
    def _encode(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        text, _, pooled, _ = self.pipe.encode_prompt(
            captions, captions, captions, do_classifier_free_guidance=False, max_sequence_length=TOKENS
        )
        return text, pooled

    def _step(self, bar: tqdm[Any]) -> None:
        number, (pixels, captions) = next(self.batches)
        text, pooled = self.encoded or self._encode(captions)
        posterior = self._posterior(pixels) if self.cached is None else self.cached[number]
        shift, scale = self.scale
        latents = ((posterior.sample() - shift) * scale).to(self.dtype)
        noise = torch.randn_like(latents)
        u = compute_density_for_timestep_sampling("logit_normal", len(latents), 0.0, 1.0, 1.29)
        schedule: Any = self.pipe.scheduler
        timesteps = schedule.timesteps[(u * schedule.config.num_train_timesteps).long()].to(latents.device)
        sigmas = self._sigmas(timesteps, latents.dtype)
        with self.accelerator.accumulate(self.transformer):
            predicted = self.transformer(
                hidden_states=(1 - sigmas) * latents + sigmas * noise,
                timestep=timesteps,
                encoder_hidden_states=text,
                pooled_projections=pooled,
                return_dict=False,
            )[0]
            weighting = compute_loss_weighting_for_sd3("logit_normal", sigmas=sigmas)
            errors = weighting.float() * (predicted.float() - (noise - latents).float()) ** 2
            loss = errors.flatten(1).mean(1).mean()
            self.accelerator.backward(loss)
            self.accelerator.clip_grad_norm_(self.weights, 1.0)
            self.descent.step()
            self.rate.step()
            self.descent.zero_grad()
        bar.update(1)
        bar.set_postfix(loss=loss.detach().item(), lr=self.rate.get_last_lr()[0])

    def _sigmas(self, timesteps: Tensor, dtype: torch.dtype) -> Tensor:
        """The script looks each timestep up in the scheduler's table."""
        schedule: Any = self.pipe.scheduler
        table = schedule.timesteps.to(timesteps.device)
        places = [(table == t).nonzero().item() for t in timesteps]
        return schedule.sigmas.to(timesteps.device, dtype)[places].view(-1, 1, 1, 1)

    def __call__(self, steps: int) -> float:
        self.transformer.train()
        with tqdm(total=steps + 1) as bar:
            self._step(bar)
            began = _now(self.case.device)
            for _ in range(steps):
                self._step(bar)
            return _now(self.case.device) - began


def _collate(examples: list[tuple[Tensor, str]]) -> tuple[Tensor, list[str]]:
    return torch.stack([pixels for pixels, _ in examples]), [caption for _, caption in examples]


# --- ours ---


class Ours:
    """Our trainer's loss in our loop. `written`: attention as `train` chooses, or else the stock one."""

    def __init__(self, case: Case, *, written: bool) -> None:
        self.case, pipe = case, case.pipe()
        self.config: TrainConfig = config_of(
            {
                "out": str(case.sets.parent / "ours"),
                "data": {"root": str(case.sets), "columns": 3, "sizes": [[128, 128]], "text_tokens": TOKENS},
                "adapter": {"rank": ADAPTER.rank},
                "optimization": {"batch_size": case.batch},
            }
        )
        task = task_of(self.config)
        task.prepare(Encoders.of(pipe, self.config.data, self.config.out, process_state()))
        drop_text_encoders(pipe)
        pipe.vae = None
        self.model = trainer.trained_parts(pipe.transformer, task, self.config)
        self.loss = trainer.flow_loss(pipe, task, self.config)
        if written and case.precision == "bf16" and case.device.type == "cpu":
            trainer.write_attention_out(pipe.transformer)

    def __call__(self, steps: int) -> float:
        times: list[float] = []
        config = FitConfig(
            steps + 1, learning_rate=1e-4, warmup=0, precision=self.case.precision, log_every=10, ema=0.99
        )
        with tempfile.TemporaryDirectory() as folder:
            fit(
                self.model,
                self.loss,
                config,
                Path(folder),
                watch=lambda *_: times.append(_now(self.case.device)),
            )
        return times[-1] - times[0]


# --- side by side ---

ROWS: dict[str, Callable[[Case], Rounds]] = {
    "diffusers' loop, a caption a picture": lambda case: Script(case, latents=False, text=False),
    "the same, latents cached": lambda case: Script(case, latents=True, text=False),
    "the same, one prompt for all pictures": lambda case: Script(case, latents=True, text=True),
    "ours": lambda case: Ours(case, written=True),
    "ours, stock attention": lambda case: Ours(case, written=False),
}


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_megabytes(row: str, case: Case, threads: int) -> float:
    """Of three steps of a row."""
    torch.set_num_threads(threads)
    with quiet_libraries(), redirect_stderr(io.StringIO()):
        ROWS[row](case)(2)
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def compare(case: Case, steps: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of each row in each round."""
    with quiet_libraries(), redirect_stderr(io.StringIO()):  # progress bars
        rows = {name: make(case) for name, make in ROWS.items()}
        for run in rows.values():
            run(1)
        taken: dict[str, list[float]] = {name: [] for name in rows}
        for _ in range(rounds):
            for name, run in rows.items():
                taken[name].append(run(steps))
    return taken


def peak_alone(row: str, case: Case, threads: int) -> float:
    """`peak_megabytes` in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(peak_megabytes, row, case, threads).result()


def main(steps: int = 4, rounds: int = 5, batch: int = 4, precision: str = "auto", threads: int = 1) -> None:
    torch.set_num_threads(threads)
    precision = training_precision(precision)
    with tempfile.TemporaryDirectory() as folder:
        case = Case(Path(folder) / "sets", batch, precision)
        write_sets("sky", "train", 2 * batch, case.sets)
        # First, as a process begins with the peak of the one that starts it.
        memory = {row: peak_alone(row, case, threads) for row in ROWS}
        taken = compare(case, steps, rounds)
    print(f"batch {batch}, precision {precision}, {threads} threads, {rounds} rounds of {steps} steps\n")
    print("| | samples/s | ours is faster by | peak memory, MB |\n|---|---|---|---|")
    for row, seconds in taken.items():
        ratio = statistics.median(own / us for own, us in zip(seconds, taken["ours"], strict=True))
        speed = steps * batch / statistics.median(seconds)
        print(f"| {row} | {speed:.2f} | {ratio:.2f} | {memory[row]:.0f} |")


if __name__ == "__main__":
    tyro.cli(main)
