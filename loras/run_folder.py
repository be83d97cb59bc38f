"""The life of a run's folder: one run at a time, with settings and data of its own, whose files agree.

All of these checks come before a model is loaded. They change no file of a run that they refuse.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open

from dit_heads.errors import InputError, listed
from dit_heads.io.atomic import write_text
from dit_heads.io.fingerprints import content_hash
from dit_heads.loras.config import TrainConfig, as_mapping, shared
from dit_heads.loras.publish import LORA, is_card
from dit_heads.loras.sets.dataset import SetDataset
from dit_heads.models import EMBEDDED
from dit_heads.training.loop import FitConfig

CHECKPOINT, CONFIG, DATA, LOG = "checkpoint.safetensors", "config.json", "data.json", "log.csv"
# Settings that are known by content, or that change no weight of the LoRA.
FREE = {"root", "cache", "encode", "prior", "on_error", "steps", "precision", "base"}
FREE |= {"gradient_checkpointing", "validation_scenes"}
PARTS = ("data", "adapter", "loss", "optimization", "instruct", "multimodal")  # sections that a run keeps
MADE = ("lora-*.safetensors", "samples/step-*.png")  # files of a run beside those of READERS
DRAWN = ("prompts", "sample_every", "sample_steps", "guidance_scale", "validation", "keep_every")


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep a run's folder for this process. The lock of a process that was killed is free again.

    Raises `InputError` if another run holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InputError(f"out: another process is training in '{folder}'; choose another folder") from error
    try:
        yield
    finally:
        (folder / ".lock").unlink(missing_ok=True)  # while it is held: who waits for it makes a new one
        lock.release()
        with suppress(OSError):
            folder.rmdir()  # if nothing was written


# --- before a run starts ---


def check_places(config: TrainConfig) -> None:
    """Raise `InputError` if the run would write among the pictures that it reads, which the next start would
    take for a set."""
    read = {"root": config.data.root, "validation": config.watch.validation, "prior": config.loss.prior}
    written = {"out": config.out, "cache": config.data.cache, "prior": config.loss.prior}
    problems = [
        f"{name}: expected a folder outside of {where} '{outer}', got '{inner}'"
        for name, inner in written.items()
        for where, outer in read.items()
        if name != where and inner and outer and inner.resolve().is_relative_to(outer.resolve())
    ]
    if problems:
        raise InputError("\n".join(problems))


def check_folder(config: TrainConfig) -> None:
    """Raise `InputError`, a line for each problem, if the run cannot start or continue in its folder.

    Refused are files that no run wrote, files that are damaged, a run with other settings, and a run that
    has done more than its number of steps, or all of them with other samples."""
    out = config.out
    there = [name for name in READERS if (out / name).exists()]
    if CONFIG not in there:
        _refuse_foreign(out, there)
        return
    read = {name: _read(out / name) for name in there}
    step = read.get(CHECKPOINT, 0)
    if config.resume == "never" and step:
        raise InputError(f"resume: '{out}' holds a run; choose another folder, or resume latest")
    problems = [*_other_settings(config, read[CONFIG]), *_other_end(config, step, read.get(LORA))]
    if problems:
        raise InputError("\n".join(problems))


def _refuse_foreign(out: Path, there: Sequence[str]) -> None:
    """A run that begins may find what it cached and which data it began with, and nothing else of its own."""
    made = [str(path.relative_to(out)) for name in MADE for path in sorted(out.glob(name))]
    foreign = [name for name in there if name != DATA] + made
    if foreign:
        raise InputError(
            f"out: '{out}' holds {listed(foreign)}, which the run would replace; choose another folder"
        )
    if DATA in there:
        _read(out / DATA)


def fixed_settings(config: TrainConfig) -> dict[str, Any]:
    """The settings that a run must keep from its first step to its last, beside those of the training loop.

    A setting goes by its name, and by its section too where two sections have one of that name."""
    sections = as_mapping(config)
    parts = {name: sections[name] for name in PARTS if name in sections}
    names = Counter(name for part in parts.values() for name in part)
    fixed: dict[str, Any] = {"task": config.task, "model": _place(config.model), "seed": config.seed}
    for section, part in parts.items():
        for name, value in part.items():
            fixed[name if names[name] == 1 else f"{section}.{name}"] = value
    return {name: value for name, value in fixed.items() if name not in FREE}


def update_settings(config: TrainConfig) -> None:
    """Write the settings of an older version's run as this version does, once `check_folder` has found that
    they are the same: with those that it did not know, and without those that are gone."""
    path = config.out / CONFIG
    if path.exists():
        found = _read(path)
        loop = {
            name: found.get(name, value)
            for name, value in asdict(FitConfig(config.optimization.steps)).items()
        }
        write_text(path, json.dumps(loop | fixed_settings(config), indent=1))


def _place(model: str) -> str:
    """A model's name, or its folder however its path is spelled."""
    if model in EMBEDDED:
        return f"embedded/{EMBEDDED[model]}"
    path = Path(model).expanduser()
    return str(path.resolve()) if path.exists() else model


def _other_settings(config: TrainConfig, found: Mapping[str, Any]) -> Iterator[str]:
    """What the run in the folder has otherwise; a setting that an older version did not know was at its
    default."""
    default = fixed_settings(TrainConfig())
    for name, value in fixed_settings(config).items():
        before = found.get(name, default[name])
        if name == "model":
            before = _place(str(before))
        if before != value:
            yield f"{name}: expected {before!r}, as the run in '{config.out}' has it, got {value!r}"


def _other_end(config: TrainConfig, step: int, lora: Mapping[str, Any] | None) -> Iterator[str]:
    """What a run that has done `step` steps cannot do any more."""
    steps = config.optimization.steps
    if step > steps:
        yield f"steps: expected at least {step}, which the run in '{config.out}' has done, got {steps}"
    if step != steps or lora is None:
        return
    before, now = lora.get("watch", {}), shared(config)["watch"]
    for name in DRAWN:
        if name in before and before[name] != now[name]:
            yield (
                f"{name}: expected {before[name]!r}, with which the run in '{config.out}' is finished, got "
                f"{now[name]!r}; more steps, or another folder, would draw anew"
            )


# --- files of a run ---


def _read(path: Path) -> Any:
    """What a file of a run says. Raises `InputError` naming a file that is damaged, or that no run wrote."""
    try:
        return READERS[path.name](path)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"out: '{path}' is damaged, or no run wrote it ({why}); move it away, or choose another folder"
        ) from error


def _config(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_text("utf-8"))
    if not isinstance(found, dict) or "rank" not in found:
        raise ValueError(f"expected the settings of a run, got {str(found)[:60]}")
    return found


def _metadata(path: Path, name: str) -> str:
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
    if name not in metadata:
        raise ValueError(f"its metadata lack '{name}'")
    return metadata[name]


def _step(path: Path) -> int:
    return int(_metadata(path, "step"))


def _lora(path: Path) -> dict[str, Any]:
    return json.loads(_metadata(path, "dit_heads"))


def _log(path: Path) -> list[int]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        if "step" not in (rows.fieldnames or ()):
            raise ValueError(f"expected columns with commas between, got {rows.fieldnames}")
        return [int(row["step"]) for row in rows]


def _data(path: Path) -> dict[str, dict[str, list[str]]]:
    found = json.loads(path.read_text("utf-8"))
    return {"root": dict(found["root"]), **found}


def _card(path: Path) -> str:
    text = path.read_text("utf-8")
    if not is_card(text):
        raise ValueError("it is not a card as this program writes it")
    return text


READERS: dict[str, Callable[[Path], Any]] = {
    CONFIG: _config,
    CHECKPOINT: _step,
    LORA: _lora,
    LOG: _log,
    "validation.csv": _log,
    DATA: _data,
    "README.md": _card,
}


# --- data ---


def contents(data: SetDataset) -> dict[str, list[str]]:
    """What each set holds, by its name: hashes of its pictures and of its caption."""
    return {each.source: [each.digest[:16], content_hash(each.caption)[:16]] for each in data.samples}


def check_data(folder: Path, found: Mapping[str, Mapping[str, list[str]]]) -> None:
    """Keep in the folder which sets a run learns from, by content.

    Args:
        folder: the run's.
        found: by the setting that names them ("root", "prior"), sets as `contents` has them.

    Raises:
        InputError: the run in the folder was trained on others; says which have changed."""
    path = folder / DATA
    before = _read(path) if path.exists() else {}
    trained = (folder / CHECKPOINT).exists()
    problems = [
        f"{kind}: expected the sets that the run in '{folder}' learned from, got others: {changes}"
        for kind, sets in found.items()
        if trained and kind in before and (changes := _changes(before[kind], sets))
    ]
    if problems:
        raise InputError("\n".join(problems) + "\nchoose another folder for a run with these")
    write_text(path, json.dumps({**before, **found}, indent=1) + "\n")


def _changes(before: Mapping[str, list[str]], now: Mapping[str, list[str]]) -> str:
    both = [name for name in before if name in now]
    groups = {
        "other pictures in": [name for name in both if before[name][0] != now[name][0]],
        "another caption in": [name for name in both if before[name][1] != now[name][1]],
        "new are": [name for name in now if name not in before],
        "missing are": [name for name in before if name not in now],
    }
    return "; ".join(f"{what} {listed(names)}" for what, names in groups.items() if names)
