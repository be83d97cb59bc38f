"""The settings of single tasks of a run, each a section of `TrainConfig`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, get_args

import tyro

from dit_heads.errors import InputError
from dit_heads.loras.fields import Count, CountOrNone, NotNegative, Positive
from dit_heads.settings import Field, settings
from dit_heads.tasks.query import Task as VisionTask


@settings
class InstructConfig:
    """Vision tasks by instruction; read for the task instruct alone."""

    conditioning: Literal["channels", "tokens"] = "channels"
    """How the transformer sees the picture: its latents on the channel axis of a widened input, or as tokens
    in the sequence."""
    pairs: Literal["world", "classes", "coco", "depth"] = "world"
    """Where pictures and answers come from: world, the renderer of the embedded models; or the folder `root`,
    and likewise `validation`: classes, with a folder of pictures for each class; coco, with annotations.json
    and the pictures that it names; depth, with the folders rgb and depth, which has PNG files of 16 bits."""
    depth_scale: Positive = 1000.0
    """Levels a metre in the PNG files of depth: 1000 as in NYUv2, 256 as in KITTI."""
    scenes: Count = 4000
    """Number of scenes of the world."""
    tasks: Annotated[tuple[VisionTask, ...], Field(min_length=1)] = get_args(VisionTask)
    """Tasks to learn together. Classes have classify alone, depth has depth alone, and coco has detect, and
    segment and instances where all objects have masks."""
    task_weights: tuple[NotNegative, ...] = ()
    """How often each task comes, relative to the others. By default all come equally often."""
    questions: Count = 4
    """Number of different questions of a task about a picture."""
    choices: Literal["some", "all"] = "some"
    """Classes of a folder that a question names: some of them in any order, or one against all others; or
    all, in one order, so that each colour always stands for the same class."""
    paraphrase: bool = True
    """Whether half of the instructions vary: by three quarters of our phrasings of each task (for embedded
    models, of those that they can read); the others are kept for tests. Without it, each task has one."""
    phrases: Path | None = None
    """JSON file of more phrasings, such as a language model writes: a list for each of segment,
    segment_classes, instances, detect, detect_classes, depth, classify."""
    dropout: Annotated[float, Field(ge=0, le=1 / 3)] = 0.05
    """Share of samples without the instruction, as many without the picture, and as many without both."""
    mask_shift: Positive = 1.0
    """Shift of noise levels, beside that of the loss, for answers in flat colours; above 1 means noisier."""
    validation_scenes: CountOrNone = 4
    """Number of pictures that are answered and measured during the run."""

    def __post_init__(self) -> None:
        weights = self.task_weights
        if weights and len(weights) != len(self.tasks):
            raise InputError(f"task_weights: expected {len(self.tasks)}, one a task, got {len(weights)}")
        if weights and not any(weights):
            raise InputError(f"task_weights: expected numbers not all of which are 0, got {list(weights)}")


@settings
class MultimodalConfig:
    """Instructions with pictures in them; read for the task multimodal alone."""

    pairs: Annotated[Literal["world", "folder"], tyro.conf.arg(name="edits")] = "world"
    """Where instructions and results come from: world, the renderer of the embedded models; or the folder
    `root`, and likewise `validation`, with a folder for each pair (docs/edit.md)."""
    scenes: Annotated[Count, tyro.conf.arg(name="edit-scenes")] = 4000
    """Number of scenes of the world."""
    kinds: Annotated[tuple[Literal["subject", "edit", "compositional"], ...], Field(min_length=1)] = (
        "subject",
        "edit",
        "compositional",
    )
    """Tasks of the world to learn together: a subject in a new scene, an edit, or both at once."""
    kind_weights: tuple[NotNegative, ...] = ()
    """How often each task comes, relative to the others. By default all come equally often."""
    features: Annotated[tuple[Literal["semantic", "latents"], ...], Field(min_length=1)] = (
        "semantic",
        "latents",
    )
    """What is read of a reference: semantic, the tokens of the vision tower; latents, how it looks."""
    tower: str = "embedded"
    """Vision tower: embedded, or a folder or hub id of a CLIP."""
    tokens: Count = 32
    """Number of tokens of text that a reference becomes."""
    width: Count = 768
    """Width of the encoder of references."""
    heads: Count = 8
    """Attention heads in each layer of the encoder of references."""
    layers: Count = 2
    """Layers in which the encoder of references reads the vision tower."""
    dropout: Annotated[float, Field(ge=0, le=1 / 3), tyro.conf.arg(name="edit-dropout")] = 0.05
    """Share of samples without the instruction, as many without the source, and as many without both."""
    validation_pairs: CountOrNone = 6
    """Number of instructions that are carried out and measured during the run."""

    def __post_init__(self) -> None:
        weights = self.kind_weights
        if weights and (len(weights) != len(self.kinds) or not any(weights)):
            wanted = f"{len(self.kinds)}, one a kind, not all of them 0"
            raise InputError(f"kind_weights: expected {wanted}, got {list(weights)}")
