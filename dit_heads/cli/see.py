"""The `see` command: a question about a picture, answered in words and files."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from dit_heads import __version__
from dit_heads.cli.generate import MAX_SEED, check_out
from dit_heads.cli.loras import SUFFIX
from dit_heads.cli.warn import warnings_told
from dit_heads.errors import InputError
from dit_heads.io.atomic import write_text
from dit_heads.io.formats import PICTURE_SUFFIXES
from dit_heads.io.pictures import read_image, write_png
from dit_heads.settings import Field, as_mapping, settings
from dit_heads.tasks.annotations import Annotation, Boxes, Depth, Instances, Labels, Segmentation
from dit_heads.tasks.coco import coco_file
from dit_heads.tasks.depth_files import save_depth_png
from dit_heads.tasks.label_files import save_label_png
from dit_heads.tasks.query import Query
from dit_heads.tasks.router import route

if TYPE_CHECKING:
    from dit_heads.pipelines.vision_output import VisionOutput

Flag = tyro.conf.arg
Scale = Annotated[float, Field(ge=0)]
MILLIMETRES = 1000.0  # levels a metre of the depth that is written


@settings
class SeeSettings:
    """How a picture is looked at."""

    model: str = "embedded"
    """Model: embedded, embedded/flux, a folder in diffusers' format, or a model id on the hub."""
    lora: Annotated[str | None, Flag(metavar="FILE.safetensors")] = None
    """LoRA of the task instruct, written by `dit-heads train`. Default: the one that ships for the model."""
    method: Literal["instruct", "soft-tokens"] = "instruct"
    """instruct paints the answer; soft-tokens reads depth and instances from one look of the model."""
    tokens: Annotated[str | None, Flag(metavar="FOLDER")] = None
    """Weights of soft tokens. Default: those that ship for the model."""
    hard: bool = False
    """Take the likeliest code of each soft token alone."""
    flips: bool = False
    """Read the mirrored picture by soft tokens too, and average both depths."""
    steps: Annotated[int, Field(ge=1, le=1000)] = 20
    """Number of denoising steps."""
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = 0
    """Seed of the noise."""
    guidance_scale: Scale = 1.0
    """Guidance towards the question. 1 turns it off."""
    image_guidance_scale: Scale = 1.0
    """Guidance towards the picture. 1 turns it off."""
    ensemble_size: Annotated[int, Field(ge=1, le=100)] = 1
    """Number of answers that are joined into one; several give an uncertainty. Not for instances."""
    processing_resolution: Annotated[Annotated[int, Field(ge=0, le=8192)] | None, Flag(metavar="PIXELS")] = (
        None
    )
    """Longest side that the model works at, 0 for the picture's own. Default: the model's."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of weights and computation."""


@dataclass(frozen=True)
class See:
    """Answer a question about a picture: masks, boxes, depth or classes."""

    words: tyro.conf.Positional[Annotated[tuple[str, ...], Flag(metavar="PICTURE QUESTION")]] = ()
    """The picture and the question, such as `photo.png "where are the cubes?"` or `photo.png depth`; the
    picture may come last too."""
    settings: Annotated[SeeSettings, Flag(name="")] = field(default_factory=SeeSettings)
    out: Annotated[Path, Flag(metavar="FOLDER|FILE.png")] = Path("out")
    """Folder for the answer, or the file of the picture that shows it; others are named after that one."""
    device: str = "auto"
    """Device of the model: auto, cpu, cuda, cuda:1, mps and so on."""

    def run(self) -> None:
        """Understand the question, read the picture, load the model, then answer and write."""
        picture, text = parted(self.words)
        query = route(text)
        image = read_image(picture)
        file = file_of(self.out, picture, query)
        check_names(query, self.settings.model)
        see, call = METHODS[self.settings.method](self.settings, self.device)
        began = time.perf_counter()
        output = answered(see, image, query, call)
        kept = {**as_mapping(self.settings), "question": text, "version": __version__}
        write_png(output.visualize(image)[0], file, kept)
        others = WRITERS[type(output.annotations[0])](output, file, picture.name)
        print("\n".join(summary(output)))
        print(f"{', '.join(map(str, [file, *others]))}  ({time.perf_counter() - began:.1f} s)")


def parted(words: Sequence[str]) -> tuple[Path, str]:
    """The picture and the question in a command's words. Raises InputError unless there are both."""
    if len(words) < 2:
        raise InputError(
            f'arguments: expected a picture and a question, such as photo.png "where are the cubes?", got '
            f"{' '.join(words) or 'none'}"
        )
    ends = (0, len(words) - 1)
    there = [at for at in ends if Path(words[at]).is_file()]
    named = [at for at in ends if Path(words[at]).suffix.lower() in PICTURE_SUFFIXES]
    (at, *_) = [*there, *named, 0]
    return Path(words[at]), " ".join([*words[:at], *words[at + 1 :]])


def file_of(out: Path, picture: Path, query: Query) -> Path:
    """The file of the picture that shows an answer.

    Raises:
        InputError: for another format than PNG, a file that cannot be written, and the picture itself.
    """
    is_file = bool(out.suffix) and not out.is_dir()
    file = out if is_file else out / f"{picture.stem}-{query.task}.png"
    check_out(file)
    if file.resolve() == picture.resolve():
        raise InputError(f"out: expected another file than the picture itself, got '{file}'")
    return file


def check_names(query: Query, model: str) -> None:
    """Raise InputError for names that an embedded model cannot know, since it has never read their words."""
    from dit_heads.models import EMBEDDED

    if model not in EMBEDDED:
        return
    from dit_heads.embedded.world.scenes import SHAPES
    from dit_heads.embedded.world.text import unknown_words

    if words := unknown_words(" ".join(query.names)):
        raise InputError(
            f"question: expected names in words that the embedded model has read, such as "
            f"{', '.join(SHAPES)}, got {', '.join(words)}"
        )


def lora_of(chosen: Any, task: str = "instruct") -> Path:
    """The LoRA of a task: the file that settings name, or the one that ships for their model.

    Args:
        chosen: settings with `model` and `lora`.
        task: its name in the settings of a training run.

    Raises:
        InputError: there is none.
    """
    if chosen.lora is not None:
        path = Path(chosen.lora)
        if path.suffix != SUFFIX or not path.is_file():
            raise InputError(f"lora: expected a {SUFFIX} file, got '{path}'")
        return path
    if (shipped := shipped_lora(chosen.model, task)) is None:
        raise InputError(
            f"lora: expected a LoRA of the task {task}, since none ships for the model '{chosen.model}'; "
            f"`dit-heads train` with `task: {task}` makes one"
        )
    return shipped


def shipped_lora(model: str, task: str = "instruct") -> Path | None:
    """The LoRA of a task that ships for a model, if any."""
    from dit_heads.embedded import WEIGHTS
    from dit_heads.loras.weights.files import run_settings
    from dit_heads.models import EMBEDDED

    for path in sorted((WEIGHTS / "loras").glob(f"*/lora{SUFFIX}")):
        found = run_settings(path)
        made_for = EMBEDDED.get(str(found.get("model")))
        if found.get("task") == task and made_for and made_for == EMBEDDED.get(model):
            return path
    return None


def painter(chosen: SeeSettings, device: str) -> tuple[Any, dict[str, Any]]:
    """The pipeline that paints answers, and the arguments of its calls."""
    from dit_heads.models import load_pipeline  # slow to import, so only now
    from dit_heads.pipelines import with_instruct_lora

    lora = lora_of(chosen)
    pipe = load_pipeline(chosen.model, chosen.dtype, device)
    return with_instruct_lora(pipe, lora), call_arguments(chosen)


def token_reader(chosen: SeeSettings, device: str) -> tuple[Any, dict[str, Any]]:
    """The pipeline that reads soft tokens, and the arguments of its calls."""
    from dit_heads.models import load_pipeline
    from dit_heads.pipelines import with_soft_tokens

    folder = tokens_of(chosen)
    pipe = load_pipeline(chosen.model, chosen.dtype, device)
    return with_soft_tokens(pipe, folder), {"hard": chosen.hard, "flips": chosen.flips}


METHODS: dict[str, Callable[[SeeSettings, str], tuple[Any, dict[str, Any]]]] = {
    "instruct": painter,
    "soft-tokens": token_reader,
}


def tokens_of(chosen: SeeSettings) -> Path:
    """The folder of soft tokens that the settings name, or the one that ships for the model.

    Raises:
        InputError: there is none.
    """
    if chosen.tokens is not None:
        folder = Path(chosen.tokens)
        if not folder.is_dir():
            raise InputError(f"tokens: expected a folder of weights of soft tokens, got '{folder}'")
        return folder
    if (folder := shipped_tokens(chosen.model)) is None:
        raise InputError(
            f"tokens: expected a folder of weights of soft tokens, since none ship for the model "
            f"'{chosen.model}'; `python -m dit_heads.embedded.soft_tokens.train` makes them"
        )
    return folder


def shipped_tokens(model: str) -> Path | None:
    """The folder of soft tokens that ships for a model, if any."""
    from dit_heads.embedded import embedded_soft_tokens
    from dit_heads.models import EMBEDDED

    try:
        return embedded_soft_tokens(EMBEDDED[model]) if model in EMBEDDED else None
    except InputError:
        return None


def answered(see: Any, image: Any, query: Query, call: dict[str, Any]) -> VisionOutput:
    """Ask a pipeline; its warnings become the command's."""
    with warnings_told():
        return see.ask(image, query, **call)


def call_arguments(chosen: SeeSettings) -> dict[str, Any]:
    """What `InstructPipeline.ask` is given beside picture and question."""
    import torch

    names = ("guidance_scale", "image_guidance_scale", "ensemble_size", "processing_resolution")
    call = {name: getattr(chosen, name) for name in names}
    noise = torch.Generator("cpu").manual_seed(chosen.seed)
    return {**call, "num_inference_steps": chosen.steps, "generator": noise}


# --- the answer in words ---


def summary(output: VisionOutput) -> Iterator[str]:
    """What was understood, and the answer."""
    query, (found,) = output.query, output.annotations
    yield f"{query.task}: {', '.join(query.names)}" if query.names else query.task
    yield from (f"  {line}" for line in SUMMARIES[type(found)](found))
    if output.uncertainty is not None and output.uncertainty[0].size:
        import numpy as np

        yield f"  uncertainty {np.nanmean(output.uncertainty[0]):.3g} in the mean"


def _boxes_in_words(found: Any) -> list[str]:
    boxes: Boxes = found.boxes() if isinstance(found, Instances) else found
    rows = zip(boxes.classes, boxes.scores, boxes.boxes, strict=True)
    lines = [f"{name} {score:.2f} at {' '.join(f'{x:.0f}' for x in box)}" for name, score, box in rows]
    return lines or ["nothing found"]


def _depth_in_words(found: Depth) -> list[str]:
    known = found.metres[found.valid]
    span = f"{known.min():.3g} to {known.max():.3g} m" if known.size else "no distance known"
    return [span, f"sky {found.sky.mean():.1%}"]


def _labels_in_words(found: Labels) -> list[str]:
    pairs = sorted(zip(found.answers, found.probabilities, strict=True), key=lambda pair: -pair[1])
    return [f"{name} {chance:.1%}" for name, chance in pairs]


def _classes_in_words(found: Segmentation) -> list[str]:
    return [f"{name} {found.mask(name).mean():.1%} of the picture" for name in found.classes]


SUMMARIES: dict[type[Annotation], Callable[[Any], list[str]]] = {
    Boxes: _boxes_in_words,
    Instances: _boxes_in_words,
    Depth: _depth_in_words,
    Labels: _labels_in_words,
    Segmentation: _classes_in_words,
}


# --- the answer in files ---


def _write_boxes(output: VisionOutput, file: Path, name: str) -> list[Path]:
    found = output.annotations[0]
    contents = coco_file([(name, found)], output.query.names)
    if output.uncertainty is not None:
        for entry, doubt in zip(contents["annotations"], output.uncertainty[0], strict=True):
            entry["uncertainty"] = float(doubt)
    return [_write_json(contents, file)]


def _write_classes(output: VisionOutput, file: Path, name: str) -> list[Path]:
    """Class numbers, and a mask a class in COCO's form."""
    found = output.annotations[0]
    numbers = file.with_name(f"{file.stem}-labels.png")
    save_label_png(found, numbers)
    masks = Instances.of_ids(found.labels, found.classes)
    return [_write_json(coco_file([(name, masks)], found.classes), file), numbers]


def _write_depth(output: VisionOutput, file: Path, name: str) -> list[Path]:
    path = file.with_name(f"{file.stem}-mm.png")
    save_depth_png(output.annotations[0], path, MILLIMETRES)
    return [path]


def _write_labels(output: VisionOutput, file: Path, name: str) -> list[Path]:
    found: Labels = output.annotations[0]
    contents: dict[str, Any] = {"file_name": name, "answer": found.best}
    contents["probabilities"] = dict(zip(found.answers, found.probabilities.tolist(), strict=True))
    if output.uncertainty is not None:
        contents["uncertainty"] = dict(zip(found.answers, output.uncertainty[0].tolist(), strict=True))
    return [_write_json(contents, file)]


def _write_json(contents: Any, file: Path) -> Path:
    path = file.with_suffix(".json")
    write_text(path, json.dumps(contents) + "\n")
    return path


WRITERS: dict[type[Annotation], Callable[[VisionOutput, Path, str], list[Path]]] = {
    Boxes: _write_boxes,
    Instances: _write_boxes,
    Depth: _write_depth,
    Labels: _write_labels,
    Segmentation: _write_classes,
}
