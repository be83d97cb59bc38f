"""What a page says of a model before anything is drawn with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dit_heads.cli.see import shipped_lora, shipped_tokens
from dit_heads.errors import InputError
from dit_heads.families import layout_of, pipelines_of
from dit_heads.heads.presets import PresetFile, shipped_presets
from dit_heads.models import EMBEDDED, empty_transformer, model_sides

FLAGS = {"instruct": "instruct_lora", "multimodal": "edit_lora"}
"""What brings a LoRA of a task to the page."""
SINGLE = "single heads"  # in a preset file's provenance: the gain of each head alone


@dataclass(frozen=True)
class Facts:
    """One model.

    Attributes:
        name: as `--model` takes it.
        public: as visitors see it; of a folder its name alone.
        heads, image_only: heads of each block.
        presets: head sets with names, each with its scale and softness.
        scores: the gain of each head alone, where it was measured.
        distilled: whether its guidance scale is an input, so that no negative prompt is read.
        embedded: whether it ships with the package.
        side, largest: of its pictures in pixels; `largest` is None for any.
        parameters: of its transformer.
        instruct: the LoRA with which it answers questions about pictures, None where there is none.
        multimodal: the LoRA with which it follows instructions with pictures in them, None where there
            is none.
        soft_tokens: the folder with which it answers by soft tokens, None where there is none.
    """

    name: str
    public: str
    heads: tuple[int, ...]
    image_only: tuple[int, ...]
    presets: tuple[dict[str, Any], ...]
    scores: Mapping[str, float]
    distilled: bool
    embedded: bool
    side: int
    largest: int | None
    parameters: int
    instruct: Path | None = None
    multimodal: Path | None = None
    soft_tokens: Path | None = None

    def answers_by(self, method: str) -> Path | None:
        """The weights with which it answers questions by a method of `dit-heads see`, if there are any."""
        return {"instruct": self.instruct, "soft-tokens": self.soft_tokens}.get(method)


def facts_of(name: str) -> Facts:
    """The facts of a model, from its configs alone. Raises InputError for a model that is not supported."""
    transformer: Any = empty_transformer(name)
    layout, found = layout_of(transformer), presets_of(name)
    side, largest = model_sides(name, transformer)
    return Facts(
        name=name,
        public=public_name(name),
        heads=tuple(layout.heads),
        image_only=tuple(layout.image_only_heads) if any(layout.image_only_heads) else (),
        presets=tuple(_shown(preset) for file in found for preset in file.presets),
        scores={head: gain for file in found for head, gain in file.provenance.get(SINGLE, {}).items()},
        distilled=pipelines_of(transformer).distilled,
        embedded=name in EMBEDDED,
        side=side,
        largest=largest,
        parameters=sum(parameter.numel() for parameter in transformer.parameters()),
        instruct=shipped_lora(name),
        multimodal=shipped_lora(name, "multimodal"),
        soft_tokens=shipped_tokens(name),
    )


def with_weights(facts: Facts, instruct: Path | None, multimodal: Path | None, tokens: Path | None) -> Facts:
    """A model with the weights that are given, in place of those that ship for it."""
    for task, lora in {"instruct": instruct, "multimodal": multimodal}.items():
        facts = with_lora(facts, lora, task) if lora is not None else facts
    return with_tokens(facts, tokens) if tokens is not None else facts


def with_lora(facts: Facts, path: Path, task: str = "instruct") -> Facts:
    """A model with another LoRA for questions about pictures, or for instructions with pictures in them.

    Args:
        facts: of the model.
        path: the LoRA's file.
        task: the LoRA's, "instruct" or "multimodal".

    Raises:
        InputError: for a file that is not there, is no LoRA of the task, lacks the encoder of references that
            belongs to the task multimodal, or does not fit.
    """
    from dit_heads.loras.tasks.multimodal import REFERENCES
    from dit_heads.loras.weights.files import run_settings
    from dit_heads.loras.weights.formats import read_lora

    flag = FLAGS[task]
    if run_settings(path).get("task") != task:
        raise InputError(f"{flag}: expected a LoRA of the task {task}, got '{path}'")
    if task == "multimodal" and not (encoder := path.with_name(f"{REFERENCES}.safetensors")).is_file():
        raise InputError(f"{flag}: expected the encoder of references as '{encoder}', got none")
    read_lora(path, empty_transformer(facts.name))
    return replace(facts, **{task: path})


def with_tokens(facts: Facts, folder: Path) -> Facts:
    """A model with other weights of soft tokens.

    Raises:
        InputError: for files that are missing or do not fit together, or do not fit the model.
    """
    from dit_heads.pipelines.soft_tokens import check_fit, read_weights

    check_fit(read_weights(folder), empty_transformer(facts.name))
    return replace(facts, soft_tokens=folder)


def public_name(name: str) -> str:
    """A model's name without the path of its folder."""
    return Path(name).name if Path(name).expanduser().is_dir() else name


def presets_of(name: str) -> list[PresetFile]:
    """The preset files of a model."""
    alike = {name, f"embedded/{EMBEDDED[name]}"} if name in EMBEDDED else {name}
    return [file for file in shipped_presets() if file.model in alike]


def known_as(public: object, models: Mapping[str, Facts]) -> Facts:
    """The model that visitors see under a name. Raises InputError for one that the page does not have."""
    public = str(public)
    same = {facts.public: facts for facts in models.values()}
    if public in EMBEDDED:
        same |= {alias: f for alias in EMBEDDED for f in models.values() if _alike(alias, f.name)}
    if public not in same:
        there = ", ".join(facts.public for facts in models.values())
        raise InputError(f"model: expected one of this page, {there}, got '{public[:80]}'")
    return same[public]


def _alike(alias: str, name: str) -> bool:
    return EMBEDDED[alias] == EMBEDDED.get(name)


def _shown(preset: Any) -> dict[str, Any]:
    return {
        "name": preset.effect,
        "heads": str(preset.head_set),
        "scale": preset.scale,
        "softness": preset.softness,
        "note": preset.note,
    }
