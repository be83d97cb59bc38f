"""LoRAs that a page offers: those that ship, those that visitors bring, and those that are trained here."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from dit_heads.cli.loras import SUFFIX, lora_text, read_loras
from dit_heads.demo.drawing import Lora
from dit_heads.demo.facts import Facts
from dit_heads.demo.isolation import MAKING
from dit_heads.demo.limits import Limits
from dit_heads.demo.shelf import Shelf
from dit_heads.embedded import WEIGHTS
from dit_heads.errors import InputError, finite_number
from dit_heads.loras.weights.files import run_settings
from dit_heads.models import EMBEDDED, empty_transformer

FILE = f"lora{SUFFIX}"
_HEADER = 4 * 2**20  # the most bytes of a safetensors header
_KEYS = 20_000


@dataclass(frozen=True)
class LoraFile:
    """A LoRA that a page offers.

    Attributes:
        id: how the page names it: a shipped LoRA's name, or a secret.
        name: what visitors see, and what a command line calls it.
        path: its file.
        layout: rows and columns of the sets that it was trained on, None where the file does not say.
    """

    id: str
    name: str
    path: Path
    layout: tuple[int, int] | None = None


@cache
def shipped(model: str) -> tuple[LoraFile, ...]:
    """The In-Context LoRAs that ship for a model."""
    if model not in EMBEDDED:
        return ()
    files = sorted((WEIGHTS / "loras").glob(f"*/{FILE}"))
    own = [path for path in files if _made_for(run_settings(path)) == ("in_context", EMBEDDED[model])]
    return tuple(LoraFile(path.parent.name, path.parent.name, path, layout_in(path)) for path in own)


def _made_for(settings: Mapping[str, Any]) -> tuple[str, str | None]:
    """The task and the model of the run with these settings."""
    return settings.get("task", "in_context"), EMBEDDED.get(str(settings.get("model", "embedded")))


def layout_in(path: Path) -> tuple[int, int] | None:
    """Rows and columns of the sets that a file was trained on, if it was trained by this package."""
    data = run_settings(path).get("data")
    found = (data.get("rows"), data.get("columns")) if isinstance(data, dict) else ()
    return found if len(found) == 2 and all(type(n) is int and 0 < n < 10 for n in found) else None  # pyright: ignore[reportReturnType]


def bring(shelf: Shelf, facts: Facts, name: str, data: bytes, owner: str | None, limits: Limits) -> LoraFile:
    """Take in the file of a visitor.

    Args:
        shelf: where it is kept.
        facts: of the model that it is for.
        name: of the file.
        data: its bytes.
        owner: the session that brings it.
        limits: of its size.

    Raises:
        InputError: for a file of another kind, one that is too large, and one that does not fit the model.
    """
    if not name.lower().endswith(SUFFIX):
        raise InputError(f"lora: expected a {SUFFIX} file, got '{plain_name(name)}'")
    if len(data) > limits.lora_upload_bytes:
        raise InputError(f"lora: expected at most {limits.lora_upload_bytes / 2**20:.0f} MB")
    check_header(data)

    def fill(folder: Path) -> Any:
        path = folder / FILE
        path.write_bytes(data)
        check_fits(path, facts)
        return {"name": plain_name(name), "model": facts.name}

    return on_shelf(shelf, facts, shelf.put(fill, owner).id)


def plain_name(name: str) -> str:
    """The name of a visitor's file as it may be shown, written and typed."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(name.replace("\\", "/")).stem).strip("-")[:40]
    return (stem or "lora") + SUFFIX


def check_header(data: bytes) -> None:
    """Look at what a safetensors file says of itself, before anything is loaded.

    Raises:
        InputError: for another kind of file, and for too many keys.
    """
    length = int.from_bytes(data[:8], "little")
    try:
        if not 2 <= length <= min(_HEADER, len(data) - 8):
            raise ValueError("its header has no such length")
        keys = json.loads(data[8 : 8 + length])
        if not isinstance(keys, dict) or len(keys) > _KEYS:
            raise ValueError("its header is no table of tensors")
    except (ValueError, RecursionError) as error:
        told = "lora: expected a safetensors file; this one is damaged, or of another kind"
        raise InputError(told) from error


def check_fits(path: Path, facts: Facts) -> None:
    """Raise InputError if a LoRA's keys or shapes are not those of a model's modules."""
    try:
        read_loras([(path, 1.0)], _bare(facts.name))
    except InputError as error:
        told = str(error).replace(str(path), path.name)
        raise InputError(f"lora: this file cannot be used with this model: {told}") from error


@cache
def _bare(model: str) -> Any:
    """A model's transformer without weights."""
    with MAKING:
        return empty_transformer(model)


def on_shelf(shelf: Shelf, facts: Facts, key: object) -> LoraFile:
    """A LoRA that was brought or trained. Raises InputError for one that is gone, or is another model's."""
    entry = shelf.get(key)
    if entry.about["model"] != facts.name:
        raise InputError(f"lora: '{entry.about['name']}' is for another model; please choose that model")
    path = entry.folder / FILE
    return LoraFile(entry.id, entry.about["name"], path, layout_in(path))


def chosen(value: object, shelf: Shelf, facts: Facts, limits: Limits) -> tuple[list[Lora], tuple[str, ...]]:
    """The LoRAs that a visitor switched on.

    Args:
        value: of the page's picker.
        shelf, facts: where they are looked for.
        limits: of their number and scales.

    Returns:
        The files with their scales, and what a command line calls them.

    Raises:
        InputError: for one that is not there, too many, and a scale beyond the limits.
    """
    lines = _lines(value) if isinstance(value, dict) else []
    used = [each for each in lines if each.get("on") and each.get("model", facts.public) == facts.public]
    if len(used) > limits.loras:
        raise InputError(f"loras: expected at most {limits.loras} at once, got {len(used)}")
    files, names = [], []
    for each in used:
        scale = finite_number("lora weight", each.get("scale"), -limits.lora_scale, limits.lora_scale)
        file = known(each.get("id"), shelf, facts)
        files.append(Lora(file.path, scale))
        names.append(lora_text(file.name, scale))
    return files, tuple(names)


def _lines(value: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The LoRAs of a picker's value: as a visitor left it, or as the server sent it (`add`, `on`) where the
    visitor has changed nothing since."""
    parts = [value.get(name) for name in ("loras", "add")]
    lines = [each for part in parts if isinstance(part, list) for each in part if isinstance(each, dict)]
    on = value.get("on")
    if not isinstance(on, dict):
        return lines
    switched = [each for each in lines if isinstance(each.get("id"), str) and each["id"] in on]
    return [{**each, "on": True, "scale": on[each["id"]]} for each in switched]


def known(key: object, shelf: Shelf, facts: Facts) -> LoraFile:
    """The LoRA of an id. Raises InputError for one that is not there."""
    same = [file for file in shipped(facts.name) if file.id == key]
    return same[0] if same else on_shelf(shelf, facts, key)


def entries(facts: Facts, files: Sequence[LoraFile], on: Mapping[str, float]) -> list[dict[str, Any]]:
    """Lines of the page's picker, for LoRAs of a model; `on` has the scale of each one that is switched on,
    by its id."""
    return [
        {
            "id": file.id,
            "name": file.name.removesuffix(SUFFIX),
            "layout": "x".join(map(str, file.layout)) if file.layout else "",
            "model": facts.public,
            "scale": on.get(file.id, 1.0),
            "on": file.id in on,
        }
        for file in files
    ]
