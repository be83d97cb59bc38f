"""The settings of a LoRA training run: the same dataclasses for YAML, the command line and Python."""

from __future__ import annotations

from dataclasses import field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from dit_heads.errors import InputError
from dit_heads.loras.fields import (
    Count,
    CountOrNone,
    Folder,
    Inline,
    NotNegative,
    Positive,
    Precision,
    Share,
    Side,
)
from dit_heads.loras.task_config import InstructConfig, MultimodalConfig
from dit_heads.settings import Field, as_mapping, from_mapping, from_yaml, settings

__all__ = [
    "AdapterConfig",
    "DataConfig",
    "InstructConfig",
    "LossConfig",
    "MultimodalConfig",
    "OptimizerConfig",
    "TrainConfig",
    "WatchConfig",
    "as_mapping",
    "check",
    "config_of",
    "model_name",
    "read_config",
    "shared",
]


@settings
class DataConfig:
    """The sets to learn from, and the composites that they become."""

    root: Folder = Path("sets")
    """Folder of sets, of ready composites with captions, or in the form of a Hugging Face image folder."""
    rows: Count = 1
    """Number of rows of panels in a composite."""
    columns: Count = 2
    """Number of columns of panels in a composite."""
    sizes: Annotated[tuple[tuple[Side, Side], ...], Field(min_length=1)] = ((512, 512),)
    """Height and width of a panel in pixels, multiples of 16. Of several, each set gets the nearest shape."""
    fit: Literal["crop", "pad"] = "crop"
    """How a picture is fitted to its panel: crop what sticks out, or pad with white."""
    flip: bool = False
    """Mirror the panels of half of the samples, chosen at random, each panel in its place. Not for captions
    that say left or right."""
    on_error: Literal["stop", "skip"] = "stop"
    """What to do about sets that cannot be used: stop with a list of them, or skip them with a warning."""
    cache: Folder | None = None
    """Folder for encoded pictures and captions. The default is `cache` in the run's folder."""
    encode: Literal["all", "lazy", "off"] = "all"
    """When pictures and captions are encoded: all before training, lazy when each is needed first, or off for
    every time, which keeps no files. With lazy and off, text encoders stay in memory."""
    text_tokens: Annotated[int, Field(ge=1, le=512)] | None = None
    """Number of tokens that the T5 encoder reads, up to 512. The default is the pipeline's own."""


@settings
class AdapterConfig:
    """The LoRA that is trained."""

    rank: Count = 16
    """Rank of the low-rank change of each layer."""
    alpha: Positive | None = None
    """Changes are scaled by alpha / rank. The default is the rank, which scales by 1."""
    targets: tuple[str, ...] = ("attention",)
    """Layers to change: attention, mlp, modulation, or endings of names of linear layers such as to_q."""
    blocks: str | None = None
    """Transformer blocks to change, such as "L0-11, L20". The default is every block."""
    start: Path | None = None
    """LoRA file whose weights the run starts from, such as another run's. It must have the same rank and
    layers. By default a run starts from no change."""
    dora: bool = False
    """Train the magnitudes of weights apart from their directions (DoRA, arXiv 2402.09353). ComfyUI ignores
    the magnitudes."""


@settings
class LossConfig:
    """The loss that a step minimises."""

    timesteps: Literal["logit_normal", "uniform", "mode"] = "logit_normal"
    """Distribution that noise levels are drawn from (arXiv 2403.03206, section 3.1)."""
    timestep_mean: float = 0.0
    """Mean of the normal distribution behind logit_normal noise levels."""
    timestep_std: Positive = 1.0
    """Standard deviation of the normal distribution behind logit_normal noise levels."""
    mode_scale: Annotated[float, Field(ge=-1, le=1.75)] = 1.29
    """Scale s of the mode distribution of noise levels, from -1 to 1.75."""
    shift: Positive | None = None
    """Shift of noise levels; above 1 means noisier. The default is the scheduler's: fixed for SD3, by
    resolution for FLUX."""
    panel_weights: tuple[NotNegative, ...] = ()
    """Weight of each panel in the loss, row by row. By default all count the same."""
    caption_dropout: Share = 0.05
    """Share of samples that are trained without their caption."""
    pixel_weight: NotNegative = 0.0
    """Weight of the error of decoded pixels, of the clean picture that each prediction implies, beside the
    error of latents. It costs a pass through the decoder and back."""
    prior: Folder | None = None
    """Folder of captioned pictures that the model should go on generating as before (prior preservation)."""
    prior_weight: NotNegative = 1.0
    """Weight of the prior pictures' loss, relative to that of the sets."""
    prior_prompt: str | None = None
    """Prompt from which the untrained model first generates the pictures that the folder `prior` lacks."""
    prior_count: Count = 100
    """Number of pictures generated from prior_prompt."""


@settings
class OptimizerConfig:
    """How the loss is minimised."""

    steps: Count = 1000
    """Number of optimiser steps of the whole run, those before a resume included."""
    batch_size: Count = 4
    """Number of sets in a step, over all processes."""
    accumulate: Count = 1
    """Gradient accumulation steps: parts in which a process takes its share of a batch, to save memory."""
    learning_rate: Positive = 1e-4
    """Peak learning rate."""
    warmup: CountOrNone = 50
    """Number of steps in which the learning rate rises to its peak."""
    decline: Share = 0.0
    """Share of the run, at its end, in which the learning rate falls to 3 % of its peak."""
    optimizer: Literal["adamw", "adamw8bit", "muon"] = "adamw"
    """Optimiser. adamw8bit needs a GPU and the package bitsandbytes."""
    weight_decay: NotNegative = 0.01
    """Weight decay of the optimiser."""
    clip: Positive = 1.0
    """Largest norm of the gradient; a larger one is scaled down to it."""
    ema: Share = 0.99
    """Decay of the moving average of the weights, which is what is saved. 0 saves the last weights."""
    precision: Precision = "auto"
    """Number format of the computation; `no` is float32."""
    base: Literal["auto", "float32", "bfloat16", "float16", "8bit"] = "auto"
    """Number format of the frozen weights. 8bit needs a GPU and the package bitsandbytes."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass. It saves memory and takes about a third more time."""


@settings
class WatchConfig:
    """What a run generates, measures and keeps on the way."""

    prompts: tuple[str, ...] = ()
    """Joint captions from which samples are generated during the run."""
    sample_every: CountOrNone = 250
    """Steps between samples and validation losses. 0 switches both off."""
    sample_steps: Annotated[int, Field(ge=1, le=1000)] = 20
    """Denoising steps of a sample."""
    guidance_scale: NotNegative | None = None
    """Guidance scale of samples. The default is the pipeline's own."""
    validation: Folder | None = None
    """Folder of sets whose loss is measured during the run, always with the same noise."""
    checkpoint_minutes: NotNegative = 10.0
    """Minutes between checkpoints."""
    keep_every: CountOrNone = 0
    """Steps between LoRA files that are kept during the run. 0 keeps only the last one."""
    track: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Experiment trackers that get the figures of log.csv as well."""
    hub_id: str | None = None
    """Model on the hub, as owner/name, to which the finished LoRA is pushed."""


@settings
class TrainConfig:
    """A LoRA training run."""

    task: str = "in_context"
    """What the LoRA learns: in_context, to generate sets of pictures; instruct, to answer questions about
    pictures with pictures; multimodal, to follow instructions with pictures in them."""
    model: str = "embedded"
    """Model to train on: embedded, embedded/flux, a folder in diffusers' format, or a model id of the hub."""
    out: Folder = Path("runs/lora")
    """The run's folder: checkpoint, log, LoRA and card. The same run started again continues there."""
    seed: Annotated[int, Field(ge=0, le=2**40)] = 0
    """Seed of the order of the data, of the noise and of the LoRA's first weights."""
    resume: Literal["latest", "never"] = "latest"
    """What happens if the folder holds a run already: continue it, or refuse."""
    trigger: str = ""
    """Word that the captions begin with. It is named in the LoRA's card."""
    data: Annotated[DataConfig, Inline] = field(default_factory=DataConfig)
    adapter: Annotated[AdapterConfig, Inline] = field(default_factory=AdapterConfig)
    loss: Annotated[LossConfig, Inline] = field(default_factory=LossConfig)
    optimization: Annotated[OptimizerConfig, Inline] = field(default_factory=OptimizerConfig)
    watch: Annotated[WatchConfig, Inline] = field(default_factory=WatchConfig)
    instruct: Annotated[InstructConfig, Inline] = field(default_factory=InstructConfig)
    multimodal: MultimodalConfig = field(default_factory=MultimodalConfig)


def read_config(path: Path) -> TrainConfig:
    """Read settings from a YAML file with a section for each part of `TrainConfig`. Settings that it leaves
    out have their defaults. Raises `InputError` with a line for each that is unknown or does not fit."""
    return from_yaml(TrainConfig, path, "config")


def config_of(found: object) -> TrainConfig:
    """Settings of nested mappings. Raises `InputError` as `read_config` does."""
    return from_mapping(TrainConfig, found, "config")


def check(config: TrainConfig) -> None:
    """Raise `InputError` for settings that do not go together, whatever file or flag each came from."""
    weights, panels = config.loss.panel_weights, config.data.rows * config.data.columns
    problems = []
    if weights and len(weights) != panels:
        problems += [f"panel_weights: expected {panels}, one a panel, got {len(weights)}"]
    if weights and not any(weights):
        problems += [f"panel_weights: expected numbers not all of which are 0, got {list(weights)}"]
    if config.loss.prior_prompt is not None and config.loss.prior is None:
        problems += ["prior: expected a folder for the pictures of prior_prompt, got none"]
    if problems:
        raise InputError("\n".join(problems))


def shared(config: TrainConfig) -> dict[str, Any]:
    """The settings for the eyes of others: as `as_mapping`, but of each path its last name alone."""
    return {**_last_names(config), "model": model_name(config.model)}


def model_name(model: str) -> str:
    """A model's name as others may read it: of a folder on this machine its last name alone."""
    path = Path(model).expanduser()
    return path.resolve().name if path.exists() or path.is_absolute() else model


def _last_names(section: Any) -> dict[str, Any]:
    found = as_mapping(section)
    for each in fields(section):
        value = getattr(section, each.name)
        if isinstance(value, Path):
            found[each.name] = value.resolve().name
        elif is_dataclass(value):
            found[each.name] = _last_names(value)
    return found
