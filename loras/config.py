"""The settings of a LoRA training run: one dataclass for YAML, the command line and Python."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from math import inf, isfinite
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import tyro

from dit_heads.errors import InputError

Inline = tyro.conf.arg(name="")


@dataclass(frozen=True)
class DataConfig:
    """The sets to learn from, and what they become."""

    root: Path = Path("sets")
    """a folder of sets, of ready composites with captions, or a Hugging Face image folder"""
    rows: int = 1
    """of panels in a composite"""
    columns: int = 2
    """of panels in a composite"""
    sizes: tuple[tuple[int, int], ...] = ((512, 512),)
    """height and width of a panel, in pixels, multiples of 16; of several, each set gets the nearest shape"""
    fit: Literal["crop", "pad"] = "crop"
    """how a picture gets the shape of its panel"""
    flip: bool = False
    """mirror half of the sets, each panel in its place"""
    on_error: Literal["stop", "skip"] = "stop"
    """at sets that cannot be used"""
    cache: Path | None = None
    """where latents and prompt embeddings are kept; without, in the run's folder"""
    text_tokens: int | None = None
    """that the T5 reads; without, as many as the pipeline does by default"""


@dataclass(frozen=True)
class AdapterConfig:
    """What is trained."""

    rank: int = 16
    """of each change"""
    alpha: float | None = None
    """changes are scaled by alpha / rank; without, alpha is the rank"""
    targets: tuple[str, ...] = ("attention",)
    """attention, mlp, modulation, or names of linear modules such as to_q"""
    blocks: str | None = None
    """such as "L0-11, L20"; without, all"""
    dora: bool = False
    """train magnitudes apart (arXiv 2402.09353)"""


@dataclass(frozen=True)
class LossConfig:
    """What a step minimises."""

    timesteps: Literal["logit_normal", "uniform", "mode"] = "logit_normal"
    """how noise levels are drawn"""
    timestep_mean: float = 0.0
    """of the normal draw"""
    timestep_std: float = 1.0
    """of the normal draw"""
    mode_scale: float = 1.29
    """of the mode draw, -1 to 1.75"""
    shift: float | None = None
    """moves noise levels towards noise; without, by resolution for FLUX, as its scheduler for SD3"""
    panel_weights: tuple[float, ...] = ()
    """a weight a panel; without, the whole composite counts"""
    caption_dropout: float = 0.05
    """share of samples that are trained without their caption"""
    prior: Path | None = None
    """a folder of ready pictures with captions that the model shall keep to (prior preservation)"""
    prior_weight: float = 1.0
    """of their loss"""
    prior_prompt: str | None = None
    """pictures of this are drawn into the folder `prior` first, by the model as it is"""
    prior_count: int = 100
    """how many"""


@dataclass(frozen=True)
class OptimizerConfig:
    """How it is minimised."""

    steps: int = 1000
    """in all"""
    batch_size: int = 4
    """sets a step, over all processes"""
    accumulate: int = 1
    """parts in which a process takes its share of the batch, one after the other"""
    learning_rate: float = 1e-4
    """at its peak"""
    warmup: int = 50
    """steps in which the rate rises"""
    decline: float = 0.0
    """last share of the run in which it falls to 3 %"""
    optimizer: Literal["adamw", "adamw8bit", "muon"] = "adamw"
    """adamw8bit needs a GPU and bitsandbytes"""
    weight_decay: float = 0.01
    """of AdamW"""
    clip: float = 1.0
    """largest norm of the gradient"""
    ema: float = 0.99
    """decay of the averaged weights, which are saved; 0 saves the last ones"""
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """of the computation"""
    base: Literal["auto", "float32", "bfloat16", "float16", "8bit"] = "auto"
    """of the frozen weights; 8bit needs a GPU and bitsandbytes"""
    gradient_checkpointing: bool = False
    """less memory, a third more time"""


@dataclass(frozen=True)
class WatchConfig:
    """What is looked at, and kept, on the way."""

    prompts: tuple[str, ...] = ()
    """joint captions to draw"""
    sample_every: int = 250
    """steps between drawings and validation losses; 0 is never"""
    sample_steps: int = 20
    """denoising steps of a drawing"""
    guidance_scale: float | None = None
    """of drawings; without, the pipeline's own"""
    validation: Path | None = None
    """sets whose loss is measured, always with the same noise"""
    checkpoint_minutes: float = 10.0
    """between checkpoints"""
    keep_every: int = 0
    """steps between LoRA files that are kept on the way; 0 keeps the last alone"""
    track: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """where figures go beside log.csv"""
    hub_id: str | None = None
    """owner/name of a model on the hub to push the finished LoRA to"""


@dataclass(frozen=True)
class TrainConfig:
    """A LoRA training run."""

    model: str = "embedded"
    """embedded, embedded/flux, a folder in diffusers' format, or a model id of the hub"""
    out: Path = Path("runs/lora")
    """the run's folder: checkpoint, log, LoRA, card; the same run started again goes on where it was"""
    seed: int = 0
    """of data, noise and first weights"""
    resume: Literal["latest", "never"] = "latest"
    """what to do about a run in the folder: go on, or refuse"""
    trigger: str = ""
    """word that begins the captions of this LoRA, for its card"""
    data: Annotated[DataConfig, Inline] = field(default_factory=DataConfig)
    adapter: Annotated[AdapterConfig, Inline] = field(default_factory=AdapterConfig)
    loss: Annotated[LossConfig, Inline] = field(default_factory=LossConfig)
    optimization: Annotated[OptimizerConfig, Inline] = field(default_factory=OptimizerConfig)
    watch: Annotated[WatchConfig, Inline] = field(default_factory=WatchConfig)


def read_config(path: Path) -> TrainConfig:
    """The settings of a YAML file, which has a section for each part of `TrainConfig`; what it leaves out is
    as by default. Raises ValueError naming what is unknown, given twice, or of another type."""
    try:
        import yaml
    except ImportError as error:
        raise InputError("config: PyYAML is missing: pip install 'dit-heads[train]'") from error
    try:
        text = path.read_text("utf-8")
        _refuse_twins(yaml.compose(text, yaml.SafeLoader))
        found = yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"config: cannot read '{path}': {error}") from error
    return config_of({} if found is None else found)


def _refuse_twins(node: Any) -> None:
    """YAML's parser would take the last of two settings of one name, a whole section too."""
    if isinstance(getattr(node, "value", None), list):
        pairs = [pair for pair in node.value if isinstance(pair, tuple)]
        names = [str(key.value) for key, _ in pairs]
        if twins := {name for name in names if names.count(name) > 1}:
            raise InputError(f"{', '.join(sorted(twins))}: expected once, got twice")
        for _, part in pairs:
            _refuse_twins(part)


def config_of(found: object) -> TrainConfig:
    """Settings of nested mappings. Raises ValueError as `read_config` does."""
    return _filled(TrainConfig, found, "config")


def _filled(kind: Any, found: object, label: str) -> Any:
    if not isinstance(found, Mapping):
        raise InputError(f"{label}: expected a mapping of settings, got {found!r}")
    types_of = get_type_hints(kind)
    for key in found:
        if key not in types_of:
            near = get_close_matches(str(key), types_of, 1)
            hint = f"did you mean '{near[0]}'" if near else f"there are {', '.join(types_of)}"
            raise InputError(f"{label}: '{key}' is no setting; {hint}")
    return kind(**{key: _value(types_of[key], value, key) for key, value in found.items()})


def _value(kind: Any, value: object, label: str) -> Any:
    """`value` as a `kind`, a type that the dataclasses above use."""
    if is_dataclass(kind):
        return _filled(kind, value, label)
    origin, choices = get_origin(kind), get_args(kind)
    if origin in (types.UnionType,):
        return None if value is None else _value(choices[0], value, label)
    if origin is Literal and value is False and "no" in choices:
        return "no"  # as YAML reads `precision: no`
    if origin is Literal and value in choices:
        return value
    if origin is tuple and isinstance(value, list | tuple):
        each = choices[:1] * len(value) if choices[-1] is Ellipsis else choices
        if len(each) == len(value):
            return tuple(_value(part, item, label) for part, item in zip(each, value, strict=True))
    if kind is Path and isinstance(value, str | Path):
        return Path(value)
    if kind is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        return _float(value, label)
    if isinstance(kind, type) and isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    raise InputError(f"{label}: expected {_named(kind)}, got {value!r}")


def _float(value: float | str, label: str) -> float:
    """YAML reads 1e-4, without a dot, as text."""
    try:
        return float(value)
    except ValueError as error:
        raise InputError(f"{label}: expected a number, got {value!r}") from error


def _named(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    if get_origin(kind) is tuple:
        return "a list of " + _named(get_args(kind)[0]).removeprefix("a ")
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}.get(
        kind, str(kind)
    )


def check(config: TrainConfig) -> None:
    """Raise ValueError naming the first setting that is out of its range."""
    for name, value, low, high in _ranges(config):
        if not low <= value <= high:
            wanted = f"at least {low}" if high == inf else f"{low} to {high}"
            raise InputError(f"{name}: expected {wanted}, got {value}")
    for name, value in _positive(config):
        if value is not None and not 0 < value < inf:
            raise InputError(f"{name}: expected a number above 0, got {value}")
    if not isfinite(config.loss.timestep_mean):
        raise InputError(f"timestep_mean: expected a finite number, got {config.loss.timestep_mean}")
    weights, panels = config.loss.panel_weights, config.data.rows * config.data.columns
    if weights and len(weights) != panels:
        raise InputError(f"panel_weights: expected {panels}, one a panel, got {weights}")
    if weights and not (all(0 <= weight < inf for weight in weights) and any(weights)):
        raise InputError(f"panel_weights: expected numbers from 0 up, not all of them 0, got {weights}")
    if config.loss.prior_prompt is not None and config.loss.prior is None:
        raise InputError("prior_prompt: expected a folder `prior` for its pictures, got none")


def _ranges(config: TrainConfig) -> Iterator[tuple[str, float, float, float]]:
    """Name, value, and its lowest and highest sensible values."""
    sections: tuple[tuple[Any, dict[str, tuple[float, float]]], ...] = (
        (config, {"seed": (0, 2**40)}),
        (config.data, {"rows": (1, inf), "columns": (1, inf)}),
        (config.adapter, {"rank": (1, inf)}),
        (
            config.loss,
            {
                "mode_scale": (-1, 1.75),
                "caption_dropout": (0, 1),
                "prior_weight": (0, inf),
                "prior_count": (1, inf),
            },
        ),
        (
            config.optimization,
            {
                "steps": (1, inf),
                "batch_size": (1, inf),
                "accumulate": (1, inf),
                "warmup": (0, inf),
                "decline": (0, 1),
                "weight_decay": (0, inf),
                "ema": (0, 1),
            },
        ),
        (
            config.watch,
            {
                "sample_every": (0, inf),
                "sample_steps": (1, inf),
                "checkpoint_minutes": (0, inf),
                "keep_every": (0, inf),
            },
        ),
    )
    for section, ranges in sections:
        for name, (low, high) in ranges.items():
            yield name, getattr(section, name), low, high


def _positive(config: TrainConfig) -> tuple[tuple[str, float | None], ...]:
    """Name and value; None where it need not be given."""
    return (
        ("text_tokens", config.data.text_tokens),
        ("alpha", config.adapter.alpha),
        ("timestep_std", config.loss.timestep_std),
        ("shift", config.loss.shift),
        ("learning_rate", config.optimization.learning_rate),
        ("clip", config.optimization.clip),
    )


def as_mapping(config: Any) -> dict[str, Any]:
    """The settings as YAML and JSON hold them; `config_of` takes them back."""
    return {f.name: _plain(getattr(config, f.name)) for f in fields(config)}


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return as_mapping(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
