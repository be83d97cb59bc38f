"""Checkpoints of a run, and the settings it keeps. Files are replaced whole or not at all."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from dit_heads.errors import InputError
from dit_heads.io.atomic import write_tensors, write_text
from dit_heads.training.log import Means
from dit_heads.training.optimizers import Optimizer
from dit_heads.training.precision import fastest_precision, training_precision

if TYPE_CHECKING:
    from dit_heads.training.loop import FitConfig

CHECKPOINT, SETTINGS = "checkpoint.safetensors", "config.json"
FREE = {"steps", "checkpoint_minutes", "log_every"}  # settings that may change while a run lasts


@dataclass(frozen=True)
class Progress:
    """How far a run is: steps done, seconds of training, figures since the last line of its log."""

    step: int = 0
    seconds: float = 0.0
    figures: Means = field(default_factory=dict)


# --- settings ---


def check_resumable(folder: Path, config: FitConfig, settings: Mapping[str, Any]) -> None:
    """Raise InputError if the run in `folder`, if there is one, has other settings than these.

    Args:
        folder: of the run.
        config: settings of the training loop.
        settings: those of the caller, as `fit` gets them.
    """
    if not (folder / SETTINGS).exists():
        return
    found, wanted = read_settings(folder), _stored(config, settings)
    free = FREE | {"precision"} if "auto" in (found.get("precision"), config.precision) else FREE
    names = [name for name in {**found, **wanted} if name not in free]
    other = {k: (found.get(k), wanted.get(k)) for k in names if found.get(k) != wanted.get(k)}
    if other:
        raise InputError(f"{folder}: a run of other settings is there (found, wanted): {other}")


def write_settings(folder: Path, config: FitConfig, settings: Mapping[str, Any]) -> None:
    """Keep the settings of a run that begins or goes on. Arguments as of `check_resumable`."""
    write_text(folder / SETTINGS, json.dumps(_stored(config, settings), indent=1))


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings of the run in a folder, none without a run. Raises `InputError` for a damaged file."""
    path = folder / SETTINGS
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise InputError(f"'{path}': expected the settings of a run as JSON: {error}") from error
    if not isinstance(found, dict):
        raise InputError(f"'{path}': expected the settings of a run, got {str(found)[:60]}")
    return found


def run_precision(folder: Path, wanted: str) -> str:
    """The precision of the run in a folder, or of one that begins there.

    "auto" is settled once, when a run begins, by what is fastest on its machine. The run keeps it. A warning
    says so if this machine would choose another.

    Args:
        folder: of the run.
        wanted: "auto", "no", "bf16" or "fp16".

    Raises:
        InputError: for an unknown precision, and for one that this machine lacks.
    """
    kept = read_settings(folder).get("precision", "auto")
    if wanted != "auto" or kept == "auto":
        return training_precision(wanted)
    if (here := fastest_precision()) != kept:
        warnings.warn(
            f"precision: the run in '{folder}' keeps '{kept}', with which it began; on this machine '{here}' "
            "is faster",
            stacklevel=2,
        )
    return training_precision(kept)


def _stored(config: FitConfig, settings: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps({**settings, **asdict(config)}))


# --- weights ---


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    average: Mapping[str, Tensor],
    optimizer: Optimizer,
    progress: Progress,
) -> None:
    """Store the trained weights, their average and the optimiser's state.

    Args:
        folder: of the run.
        model: its parameters that are named in `average` are stored.
        average: averaged weights by name.
        optimizer: with its moments.
        progress: how far the run is.
    """
    tensors = {f"model.{n}": p.detach() for n, p in model.named_parameters() if n in average}
    tensors |= {f"average.{n}": t for n, t in average.items()}
    tensors |= {f"optimizer.{n}": t for n, t in optimizer.state().items()}
    metadata = {"step": str(progress.step), "seconds": f"{progress.seconds:.1f}"}
    metadata["figures"] = json.dumps(progress.figures)
    write_tensors(folder / CHECKPOINT, tensors, metadata)


def resume(folder: Path, model: nn.Module, average: dict[str, Tensor], optimizer: Optimizer) -> Progress:
    """Take over the checkpoint in a folder, if there is one.

    Args:
        folder: of the run.
        model, average, optimizer: get the stored weights, averages and moments.

    Returns:
        How far the run is.

    Raises:
        InputError: the file is damaged, or is of a model with other weights.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return Progress()
    stored, progress = _read(path)
    weights = _part(stored, "model.")
    problems = sorted(set(weights) ^ set(average))
    problems += [n for n, t in weights.items() if n in average and t.shape != average[n].shape]
    if problems:
        raise InputError(
            f"'{path}': expected the {len(average)} weights that are trained, got {len(weights)}; "
            f"they differ in {', '.join(problems[:3])}"
        )
    load_weights(model, weights)
    for name, tensor in _part(stored, "average.").items():
        average[name].copy_(tensor)
    optimizer.restore(_part(stored, "optimizer."))
    return progress


def read_average(folder: Path) -> tuple[dict[str, Tensor], int, float]:
    """The averaged weights in the checkpoint of `folder`, its steps and its seconds of training."""
    stored, progress = _read(folder / CHECKPOINT)
    return _part(stored, "average."), progress.step, progress.seconds


@torch.no_grad()
def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy tensors into the parameters of the same name. Parameters without one stay as they are."""
    for name, parameter in model.named_parameters():
        if name in weights:
            parameter.copy_(weights[name])


def _read(path: Path) -> tuple[dict[str, Tensor], Progress]:
    try:
        with safe_open(path, "pt") as file:
            names, metadata = file.keys(), file.metadata()
            tensors = {name: file.get_tensor(name) for name in names}
        figures = {
            n: (total, count) for n, (total, count) in json.loads(metadata.get("figures", "{}")).items()
        }
        return tensors, Progress(int(metadata["step"]), float(metadata["seconds"]), figures)
    except (SafetensorError, KeyError, TypeError, AttributeError, ValueError) as error:
        why = " ".join(str(error).split())
        raise InputError(
            f"'{path}' is no checkpoint, or is damaged ({why}): move it away to begin anew"
        ) from error


def _part(stored: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in stored.items() if k.startswith(prefix)}
