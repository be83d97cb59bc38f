"""Edits in folders: what `dit-heads score edit` reads, and what it copies for GEdit-Bench's judges.

A folder for each edit holds `instruction.txt`, and what there is of `source.png`, `target.png`, `mask.png`,
`references/`, `caption.txt` (what the result should show) and `task.txt` (the kind of edit). It is the folder
that the task multimodal trains on, with more files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from dit_heads.errors import InputError, listed
from dit_heads.io.atomic import atomic_file
from dit_heads.io.formats import PICTURE_SUFFIXES
from dit_heads.io.pictures import picture_in, read_image
from dit_heads.tasks.metrics import EditResult, Scores, score_edits
from dit_heads.tasks.multimodal import instruction_in

if TYPE_CHECKING:
    from dit_heads.cli.score import Score

INSTRUCTION, CAPTION, TASK, RESULT = "instruction.txt", "caption.txt", "task.txt", "result"
OTHER_TASK = "edit"  # of edits that do not say


@dataclass(frozen=True)
class EditFiles:
    """The files of an edit.

    Args:
        folder: its folder.
        result: the picture of a model.
    """

    folder: Path
    result: Path

    @property
    def name(self) -> str:
        """The edit's name."""
        return self.folder.name

    @property
    def task(self) -> str:
        """The kind of edit."""
        task = _text(self.folder / TASK) or OTHER_TASK
        if task != Path(task).name or task in (".", ".."):
            raise InputError(
                f"task: expected a name that a folder can have in '{self.folder / TASK}', got {task!r}"
            )
        return task

    def read(self) -> EditResult:
        """The edit with its pictures.

        Raises:
            InputError: for no instruction, references that do not fit it, and pictures that cannot be read.
        """
        text = _text(self.folder / INSTRUCTION)
        if not text:
            raise InputError(f"truth: expected {INSTRUCTION} in '{self.folder}', got none")
        words = instruction_in(self.folder, text, read_image)
        target, source, mask = (self._picture(stem) for stem in ("target", "source", "mask"))
        return EditResult(
            self.name,
            _text(self.folder / CAPTION) or words.text,
            read_image(self.result),
            target,
            source,
            mask,
            words.pictures,
        )

    def _picture(self, stem: str) -> Image.Image | None:
        path = picture_in(self.folder, stem, "truth")
        return None if path is None else read_image(path)


def score_edit_folder(asked: Score) -> Scores:
    """Score the results of a folder, and copy them if asked to.

    Args:
        asked: the command.

    Raises:
        InputError: as of `edits_in` and `score_edits`, and for models that cannot be loaded.
    """
    found, extra = edits_in(asked.truth, asked.predictions)
    copies = None if asked.gedit is None else _place(asked.gedit, asked.method, asked.language)
    clip, dino = _embeddings(asked)
    scores = score_edits(_each(found, copies), clip, dino)
    if not extra:
        return scores
    told = f"{len(extra)} results without an edit, not scored ({listed(extra)})"
    return Scores(scores.task, (*scores.protocol, told), scores.figures, scores.rows, scores.intervals)


def edits_in(truth: Path, predictions: Path) -> tuple[list[EditFiles], list[str]]:
    """The edits of a folder with their results, and the names of results without an edit.

    Args:
        truth: A folder of folders.
        predictions: A folder with `NAME.png`, or `NAME/result.png`, for each (.jpg and .webp as well).

    Raises:
        InputError: for no edits, and for edits without a result, by name.
    """
    for name, folder in (("truth", truth), ("predictions", predictions)):
        if not folder.is_dir():
            raise InputError(f"{name}: expected a folder, got '{folder}'")
    folders = sorted(path for path in truth.iterdir() if (path / INSTRUCTION).is_file())
    if not folders:
        raise InputError(f"truth: expected folders with {INSTRUCTION} in '{truth}', got none")
    results = {folder.name: _result(predictions, folder.name) for folder in folders}
    if missing := [name for name, path in results.items() if path is None]:
        raise InputError(
            f"predictions: expected NAME.png or NAME/{RESULT}.png in '{predictions}' for each edit, got none "
            f"for {listed(missing)}"
        )
    there = {path.stem for path in predictions.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES}
    there |= {path.name for path in predictions.iterdir() if picture_in(path, RESULT, "predictions")}
    found = [EditFiles(folder, path) for folder in folders if (path := results[folder.name]) is not None]
    return found, sorted(there - set(results))


def _result(predictions: Path, name: str) -> Path | None:
    beside = picture_in(predictions, name, "predictions")
    inside = picture_in(predictions / name, RESULT, "predictions")
    if beside is not None and inside is not None:
        raise InputError(f"predictions: expected one result for {name}, got '{beside}' and '{inside}'")
    return beside or inside


def _each(found: list[EditFiles], copies: tuple[Path, str] | None) -> Iterator[EditResult]:
    """Edits, read one at a time, and copied."""
    for files in found:
        edit = files.read()
        if copies is not None and edit.source is not None:
            root, language = copies
            folder = root / files.task / language
            _save(edit.result, folder / f"{edit.name}.png")
            _save(edit.source, folder / f"{edit.name}_SRCIMG.png")
        yield edit


def _place(folder: Path, method: str, language: str) -> tuple[Path, str]:
    """Where GEdit-Bench's judges look for the results of a method. Raises InputError for a name that no
    folder can have."""
    if not method or method != Path(method).name or method in (".", ".."):
        raise InputError(f"method: expected a name that a folder can have, got {method!r}")
    return folder / method / "fullset", language


def _save(picture: Image.Image, path: Path) -> None:
    with atomic_file(path) as file:
        picture.save(file, "PNG")


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8").strip() if path.is_file() else ""
    except (OSError, ValueError) as error:
        raise InputError(f"truth: expected text in UTF-8, cannot read '{path}': {error}") from error


def _embeddings(asked: Score) -> tuple[Any, Any]:
    """The CLIP and the DINO that are asked for."""
    if asked.clip is None and asked.dino is None:
        return None, None
    # Slow to import, so only now.
    from dit_heads.models import torch_device
    from dit_heads.objectives.embeddings import ClipEmbedding, load_dino

    device = torch_device(asked.device)
    clip = None if asked.clip is None else ClipEmbedding(_clip(asked.clip), device)
    return clip, None if asked.dino is None else load_dino(asked.dino, device)


def _clip(model: str) -> Any:
    from dit_heads.embedded.objective import embedded_clip
    from dit_heads.io.quiet import quiet_libraries
    from dit_heads.objectives.clip import clip

    try:
        with quiet_libraries():
            return embedded_clip() if model == "embedded" else clip(model)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[:1]
        raise InputError(f"clip: cannot load '{model}': {''.join(reason)}") from error
