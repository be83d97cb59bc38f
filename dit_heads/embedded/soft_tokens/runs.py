"""The runs of soft tokens in the cache folder: their names, their settings, and what they made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import torch

from dit_heads.embedded.world.data import cache_folder
from dit_heads.errors import InputError
from dit_heads.io.atomic import write_text
from dit_heads.settings import Field, as_mapping, from_json, settings
from dit_heads.tasks.soft_tokens.files import load_solver, load_tokenizer
from dit_heads.tasks.soft_tokens.reading import SoftReader
from dit_heads.tasks.soft_tokens.solver import Solver
from dit_heads.tasks.soft_tokens.tokenizer import Kind, Tokenizer

WEIGHTS, SETTINGS = "weights.safetensors", "run.json"
R = TypeVar("R", bound="Run")
Whole = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, lt=1)]


@settings
class Run:
    """What all runs have."""

    name: str
    """Name of the run, a folder in the cache folder."""
    steps: Whole = 3000
    """Number of steps in all."""
    batch: Whole = 128
    """Maps, masks or scenes of a step."""
    scenes: Whole = 12000
    """Scenes of the training split."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of weights, noise and order."""
    rate: Annotated[float, Field(gt=0)] = 1e-3
    """Peak learning rate."""
    missing: Share = 0.0
    """Share of each depth map that training does not know."""
    workers: Whole | None = None
    """Processes that render. Default: one per core."""
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """Number format of the training."""
    minutes: Annotated[float, Field(gt=0)] | None = None
    """Minutes after which the run stops early, with a checkpoint."""


@settings
class TokenizerRun(Run):
    """Training of a tokenizer."""

    kind: Kind = "depth"
    """What is tokenized: depth or mask."""
    augment: bool = True
    """Hide patches of depth maps from the encoder."""
    channels: tuple[Whole, ...] = (16, 32, 48, 64)
    """Channels of each resolution."""
    codes: Whole = 128
    """Number of codes."""
    dimension: Whole = 64
    """Numbers in a code."""


@settings
class SolverRun(Run):
    """Training of a solver."""

    depth: str = "depth"
    """Run of the depth tokenizer."""
    mask: str = "mask"
    """Run of the mask tokenizer."""
    model: Literal["sd3", "flux"] = "sd3"
    """The embedded model whose features it reads."""
    heads: str = "all"
    """Heads such as "L3-5" or "L3H2, L7H0", "all", or "random 0.1" for a random tenth of them."""
    features: Literal["outputs", "inputs"] = "outputs"
    """Outputs of these heads, or inputs of their attentions after modulation."""
    levels: tuple[float, ...] = (0.1,)
    """Noise levels."""
    order: Literal["autoregressive", "parallel"] = "parallel"
    """Tokens one after the other, or all at once."""
    auxiliary: bool = True
    """Compare the decoded soft tokens with the truth too."""
    width: Whole = 144
    """Width of the solver."""
    encoder_layers: Annotated[int, Field(ge=0)] = 2
    """Layers that read the features."""
    decoder_layers: Whole = 4
    """Layers that write the tokens."""
    dropout: Share = 0.1
    """Dropout."""


def folder_of(name: str) -> Path:
    """The folder of a run."""
    return cache_folder() / "soft-tokens" / name


def keep_settings(run: Run) -> None:
    """Write the settings of a run into its folder."""
    write_text(folder_of(run.name) / SETTINGS, json.dumps(as_mapping(run), indent=1) + "\n")


def run_of(name: str, kind: type[R]) -> R:
    """The settings of a run. Raises InputError if there is no such run, or it is of another kind."""
    return from_json(kind, folder_of(name) / SETTINGS, "run")


def device_of() -> torch.device:
    """Where runs train: a CUDA GPU, if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def trained_tokenizer(name: str, kind: Kind) -> Tokenizer:
    """The tokenizer that a run made.

    Raises:
        InputError: there is no such run, or it made one of another kind.
    """
    tokenizer = load_tokenizer(weights_of(name))
    if tokenizer.config.kind != kind:
        raise InputError(
            f"{kind}: expected the run of a {kind} tokenizer, got '{name}' of {tokenizer.config.kind}"
        )
    return tokenizer


def trained_solver(name: str) -> Solver:
    """The solver that a run made. Raises InputError if there is no such run."""
    return load_solver(weights_of(name))


def trained_reader(name: str) -> SoftReader:
    """The solver that a run made, with the tokenizers that it was trained on. Raises InputError if a run is
    missing, or has not ended."""
    run = run_of(name, SolverRun)
    depth, mask = trained_tokenizer(run.depth, "depth"), trained_tokenizer(run.mask, "mask")
    return SoftReader(trained_solver(name), depth, mask)


def weights_of(name: str) -> Path:
    """The file of weights of a run. Raises InputError if there is no such run, or it has not ended."""
    path = folder_of(name) / WEIGHTS
    if not path.is_file():
        raise InputError(f"run: expected one that has ended, with {WEIGHTS}, got '{path.parent}'")
    return path
