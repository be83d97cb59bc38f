"""Train soft tokens on the blocks world, on a CPU or a GPU:

    python -m dit_heads.embedded.soft_tokens.train tokenizer --name depth --kind depth
    python -m dit_heads.embedded.soft_tokens.train tokenizer --name mask --kind mask
    python -m dit_heads.embedded.soft_tokens.train solver --name parallel --depth depth --mask mask
    python -m dit_heads.embedded.soft_tokens.train export parallel --out runs/soft-tokens

Runs are kept in the cache folder. A run that was stopped goes on with the same command.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import nn

from dit_heads.embedded import TEXT_TOKENS
from dit_heads.embedded.soft_tokens.losses import SolverLoss, TokenizerLoss, labels_of
from dit_heads.embedded.soft_tokens.runs import (
    WEIGHTS,
    Run,
    SolverRun,
    TokenizerRun,
    device_of,
    folder_of,
    keep_settings,
    run_of,
    trained_tokenizer,
    weights_of,
)
from dit_heads.embedded.soft_tokens.truth import load_features, load_world, random_heads, world_vocabulary
from dit_heads.errors import InputError
from dit_heads.io.atomic import atomic_file
from dit_heads.io.fingerprints import content_hash
from dit_heads.settings import as_mapping
from dit_heads.tasks.soft_tokens.features import FeatureConfig, Normaliser
from dit_heads.tasks.soft_tokens.files import save_module
from dit_heads.tasks.soft_tokens.solver import Solver, SolverConfig
from dit_heads.tasks.soft_tokens.tokenizer import Tokenizer, TokenizerConfig
from dit_heads.training.loop import FitConfig, Loss, fit

SETTLED = 0.7  # share of a run after which dead codes stay, so that averaged weights settle
FITTED = 500  # scenes from which means and deviations of features are taken
SIZES = {"depth": 128, "mask": 64}  # pixels along each side of a map, and of a mask's crop
RANDOM = "random"


def tokenizer(run: Annotated[TokenizerRun, tyro.conf.arg(name="")]) -> None:
    """Train the tokenizer of depth maps, or of masks in their boxes."""
    torch.manual_seed(run.seed)
    config = TokenizerConfig(run.kind, SIZES[run.kind], 2, run.channels, run.codes, run.dimension)
    model = Tokenizer(config)
    device = device_of()
    truth = load_world("train", run.scenes, device, missing=run.missing, workers=run.workers)
    loss = TokenizerLoss(model, truth, run.batch, run.augment, round(SETTLED * run.steps))
    _fitted(run, model, config, loss, ema=0.995)


def solver(run: Annotated[SolverRun, tyro.conf.arg(name="")]) -> None:
    """Train a solver on the features of an embedded model."""
    device = device_of()
    depth = trained_tokenizer(run.depth, "depth").to(device)
    mask = trained_tokenizer(run.mask, "mask").to(device)
    truth = load_world("train", run.scenes, device, missing=run.missing, workers=run.workers)
    vocabulary = world_vocabulary(
        depth_tokens=depth.config.tokens,
        mask_tokens=mask.config.tokens,
        depth_codes=depth.config.codes,
        mask_codes=mask.config.codes,
    )
    chosen = FeatureConfig(_heads(run), run.features, run.levels)
    features = load_features(run.model, "train", truth.images, chosen, device)
    normaliser = Normaliser.fitted(features[:FITTED])
    config = SolverConfig(
        vocabulary=vocabulary,
        features=chosen,
        model={"sd3": "embedded", "flux": "embedded/flux"}[run.model],
        size=depth.config.size,
        text_tokens=TEXT_TOKENS,
        channels=features.shape[-1],
        kept=len(normaliser.kept),
        order=run.order,
        width=run.width,
        encoder_layers=run.encoder_layers,
        decoder_layers=run.decoder_layers,
        dropout=run.dropout,
    )
    torch.manual_seed(run.seed)
    model = Solver(config, normaliser)
    labels = labels_of(truth, depth, mask, vocabulary)
    loss = SolverLoss(model, features, truth, labels, depth, mask, run.batch, run.auxiliary)
    tokens = content_hash(*(str(t.sum().item()) for t in (labels.depth, labels.objects)))
    _fitted(run, model, config, loss, ema=0.998, made_of={"tokens": tokens})


def _heads(run: SolverRun) -> str:
    """The heads of a run, where "random SHARE" names some by the run's seed."""
    if not run.heads.startswith(RANDOM):
        return run.heads
    try:
        share = float(run.heads.removeprefix(RANDOM))
    except ValueError as error:
        raise InputError(f"heads: expected 'random' and a share such as 0.1, got {run.heads!r}") from error
    if not 0 < share <= 1:
        raise InputError(f"heads: expected a share above 0 and up to 1, got {share:g}")
    return random_heads(run.model, share, run.seed)


def _fitted(
    run: Run, model: nn.Module, config: Any, loss: Loss, ema: float, made_of: dict[str, Any] | None = None
) -> None:
    """Train in the folder of the run and, once all steps are done, write the averaged weights."""
    how = FitConfig(
        run.steps,
        run.rate,
        "adamw",
        warmup=min(200, run.steps // 5 + 1),
        ema=ema,
        precision=run.precision,
        seed=run.seed,
    )
    free = ("steps", "workers", "minutes", "name", "rate", "precision", "seed")
    kept = {name: value for name, value in as_mapping(run).items() if name not in free}
    until = None if run.minutes is None else time.time() + 60 * run.minutes
    began = time.perf_counter()
    fit(model, loss, how, folder_of(run.name), until=until, settings={**kept, **(made_of or {})})
    keep_settings(run)
    save_module(model, config, folder_of(run.name) / WEIGHTS)
    weights = sum(p.numel() for p in model.parameters())
    print(f"{run.name}: {weights / 1e6:.2f} M weights, {time.perf_counter() - began:.0f} s of training")


def export(name: tyro.conf.Positional[str], out: Path) -> None:
    """Write a solver and its tokenizers as a folder that `with_soft_tokens` reads.

    Args:
        name: the run of the solver.
        out: the folder.
    """
    run = run_of(name, SolverRun)
    for part, source in (("solver", name), ("depth", run.depth), ("mask", run.mask)):
        weights = weights_of(source).read_bytes()
        with atomic_file(out / f"{part}.safetensors") as file:
            file.write(weights)


COMMANDS = {"tokenizer": tokenizer, "solver": solver, "export": export}

if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict(COMMANDS)
