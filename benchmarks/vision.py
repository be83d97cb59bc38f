"""Vision tasks on scenes of the test split: `python benchmarks/vision.py --loras FOLDER ... --count 500`.

Each scene is asked one question a task; of several names, one after the other, as the pipeline does. Every
LoRA answers it in each number of steps, and in each kind of phrasing. Beside them stand the autoencoder's
round trip of the right answers, which no model of latents can beat, and a constant answer. `--held-out` asks
for combinations of colour and shape that training never shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from PIL import Image
from tqdm import tqdm

from dit_heads.embedded import load_embedded
from dit_heads.embedded.evaluate import cell
from dit_heads.embedded.nets.vae import to_tensor
from dit_heads.embedded.pairs import ANSWERS, QUESTIONS, choice_of
from dit_heads.embedded.world.data import scene_of
from dit_heads.embedded.world.render import Rendering, render
from dit_heads.embedded.world.scenes import HELD_OUT, Scene, sample_scene, split_seed
from dit_heads.embedded.world.text import is_known
from dit_heads.io.pictures import write_png
from dit_heads.io.sheets import Column, contact_sheet
from dit_heads.pipelines.apart import apart, together
from dit_heads.pipelines.instruct import InstructPipeline, with_instruct_lora
from dit_heads.pipelines.vision_output import visualized
from dit_heads.tasks.annotations import Annotation, Boxes, Depth, Instances, Labels, Segmentation
from dit_heads.tasks.codecs import CODECS
from dit_heads.tasks.instructions import instruction
from dit_heads.tasks.metrics import (
    DepthProtocol,
    Scores,
    score_depth,
    score_detection,
    score_labels,
    score_segmentation,
)
from dit_heads.tasks.query import TASKS, Query, Task

Phrasing = Literal["plain", "seen", "unseen"]
PROTOCOL = DepthProtocol(far=60.0)
EXAMPLES = 8  # questions of a sheet
SHOWN = {
    "segment": ("mIoU", "IoU of a question", "found nothing there"),
    "instances": ("AP50", "AP"),
    "detect": ("AP50", "AP"),
    "depth": ("AbsRel", "RMSE, m", "delta1", "no distance"),
    "classify": ("accuracy", "probability of the right answer"),
}
PER_PICTURE = {"IoU of a question": "IoU"}  # figures that have another name in the rows of pictures


@dataclass(frozen=True)
class Case:
    """A question about a scene, with its answer."""

    name: str
    query: Query
    picture: np.ndarray
    truth: Any

    def words(self, phrasing: Phrasing, query: Query) -> str:
        """The instruction for a query that a model gets."""
        if phrasing == "plain":
            return CODECS[query.task].prompt(query)
        return instruction(query, self.name, phrasing, reads=is_known)


def cases(task: Task, count: int, held_out: bool = False) -> list[Case]:
    """Questions about the first scenes of the test split, or about those with a held-out combination."""
    return [_held_out(task, k) if held_out else _case(task, k) for k in range(count)]


def _case(task: Task, index: int) -> Case:
    scene, rng = scene_of("test", index), np.random.default_rng((6, index))
    ask = choice_of if task == "classify" else QUESTIONS[task]
    return _asked(f"scene {index}", scene, ask(scene, rng))


def _held_out(task: Task, index: int) -> Case:
    """A question for the combination that a scene has and training has not."""
    scene = sample_scene(split_seed("test", index), held_out=True)
    (name,) = {f"{s.colour} {s.shape}" for s in scene.solids if (s.colour, s.shape) in HELD_OUT}
    return _asked(f"held-out scene {index}", scene, Query(task, (name,)))


def _asked(name: str, scene: Scene, query: Query) -> Case:
    seen = render(scene)
    return Case(name, query, seen.image, ANSWERS[query.task](scene, seen, query))


# --- answers ---


def model_answers(
    edit: InstructPipeline,
    asked: Sequence[Case],
    phrasing: Phrasing,
    steps: int,
    batch: int,
    at_once: bool,
) -> list[Annotation]:
    """What a model answers, without guidance. Noise depends on a case's place alone."""
    edit.pipe.set_progress_bar_config(disable=True)
    parts = [(k, one) for k, case in enumerate(asked) for one in _parts(case.query, at_once)]
    found: list[list[Annotation]] = [[] for _ in asked]
    for at in tqdm(range(0, len(parts), batch), desc="answers", leave=False):
        some = parts[at : at + batch]
        images = edit(
            [asked[k].picture for k, _ in some],
            [asked[k].words(phrasing, one) for k, one in some],
            image_guidance_scale=1.0,
            guidance_scale=1.0,
            num_inference_steps=steps,
            generator=[torch.Generator().manual_seed(k) for k, _ in some],
            output_type="np",
        ).images
        for (k, one), image in zip(some, images, strict=True):
            found[k].append(CODECS[one.task].decode(image, one, asked[k].picture))
    return [together(case.query, own) for case, own in zip(asked, found, strict=True)]


def _parts(query: Query, at_once: bool) -> list[Query]:
    return [query] if at_once else apart(query)


@torch.no_grad()
def round_trip(vae: Any, asked: Sequence[Case]) -> list[Annotation]:
    """The right answers after the autoencoder."""
    found = []
    for case in asked:
        drawn = CODECS[case.query.task].encode(case.truth, case.query, case.picture)
        decoded = vae.decode(vae.encode(to_tensor(drawn[None])).latent_dist.mode()).sample[0]
        found.append(_read(case, (decoded / 2 + 0.5).clamp(0, 1).permute(1, 2, 0).numpy()))
    return found


def _read(case: Case, image: np.ndarray) -> Annotation:
    return CODECS[case.query.task].decode(image, case.query, case.picture)


def constant(case: Case) -> Annotation:
    """An answer that does not look at the picture: the first class everywhere, the mean box of training, the
    median depth of each of its pixels, the first choice."""
    names, size = case.query.names, case.picture.shape[:2]
    if case.query.task == "segment":
        return Segmentation(np.ones(size, np.int64), names)
    if case.query.task == "instances":
        return Instances(np.ones((1, *size), bool), names)
    if case.query.task == "detect":
        return Boxes(np.repeat(mean_box()[None], len(names), 0), names, size)
    return median_depth() if case.query.task == "depth" else Labels.of(names, names[0])


@cache
def _seen_in_training(count: int = 200) -> tuple[tuple[Scene, Rendering], ...]:
    return tuple((scene, render(scene)) for scene in (scene_of("train", k) for k in range(count)))


@cache
def mean_box() -> np.ndarray:
    query = Query("detect", ("object",))
    answer: Any = ANSWERS["detect"]
    return np.concatenate([answer(*one, query).boxes for one in _seen_in_training()]).mean(0)


@cache
def median_depth() -> Depth:
    return Depth.from_metres(np.median([seen.depth for _, seen in _seen_in_training()], 0))


# --- scores ---


def scored(asked: Sequence[Case], found: Sequence[Any]) -> Scores:
    """The figures of a task."""
    names, truths = [case.name for case in asked], [case.truth for case in asked]
    task = asked[0].query.task
    if task == "classify":
        return score_labels(zip(names, [truth.best for truth in truths], found, strict=True))
    score: Callable[..., Scores] = {
        "segment": score_segmentation,
        "depth": lambda pairs: score_depth(pairs, PROTOCOL),
    }.get(task, score_detection)
    return score(zip(names, truths, found, strict=True))


def row(name: str, scores: Scores, shown: Sequence[str]) -> str:
    """A row of a Markdown table, with 95 % bootstrap intervals over pictures where pictures have figures."""
    cells = []
    for figure in shown:
        key = PER_PICTURE.get(figure, figure)
        per_picture = [each[key] for each in scores.rows.values() if key in each]
        cells.append(cell(np.array(per_picture), 3) if per_picture else f"{scores.figures[figure]:.3f}")
    return f"| {name} | {' | '.join(cells)} |"


def table(task: Task, asked: Sequence[Case], answers: Mapping[str, list[Annotation]]) -> Iterator[str]:
    """The lines of a task's table."""
    shown = SHOWN[task]
    yield f"| {task} | {' | '.join(shown)} |\n|---|{'---|' * len(shown)}"
    every = {name: scored(asked, found) for name, found in answers.items()}
    for name, scores in every.items():
        yield row(name, scores, shown)
    yield "\n" + "; ".join([*every.values()][-1].protocol) + "\n"


def sheet(asked: Sequence[Case], answers: Mapping[str, list[Annotation]]) -> Image.Image:
    """Pictures, right answers and found ones, side by side."""
    every = {"right": [case.truth for case in asked], **answers}
    cells = [
        [
            Image.fromarray(case.picture),
            *(visualized(found[k], case.picture / 255) for found in every.values()),
        ]
        for k, case in enumerate(asked)
    ]
    words = [case.words("plain", case.query) for case in asked]
    return contact_sheet(cells, [Column("picture"), *map(Column, every)], words, title=asked[0].query.task)


def main(
    loras: tuple[Path, ...] = (),
    tasks: tuple[Task, ...] = TASKS,
    count: int = 500,
    steps: tuple[int, ...] = (1, 4, 20),
    phrasings: tuple[Phrasing, ...] = ("plain",),
    held_out: bool = False,
    at_once: bool = False,
    batch: int = 16,
    sheets: Path | None = None,
    device: str = "cpu",
) -> None:
    """Print a table a task.

    Args:
        loras: Folders of runs of the instruct task.
        tasks: What is asked.
        count: Number of scenes.
        steps: Numbers of inference steps.
        phrasings: plain, the task's own instruction; seen and unseen, paraphrases that training has or has
            not used.
        held_out: Ask for held-out combinations of colour and shape; for segment, instances and detect.
        at_once: Ask for several names in one instruction, each by a colour of its own.
        batch: Number of answers that are painted at once.
        sheets: Folder for pictures of the first answers of each task.
        device: Device of the model.
    """
    pipes = {
        folder: with_instruct_lora(load_embedded("sd3").to(device), folder / "lora.safetensors")
        for folder in loras
    }
    vae = load_embedded("sd3").vae
    for task in tasks:
        asked = cases(task, count, held_out)
        answers = {"autoencoder": round_trip(vae, asked), "constant": [constant(case) for case in asked]}
        for folder, edit in pipes.items():
            for phrasing in phrasings:
                for number in steps:
                    name = f"{folder.name}, {phrasing}, {number} step{'s' * (number > 1)}"
                    answers[name] = model_answers(edit, asked, phrasing, number, batch, at_once)
        for line in table(task, asked, answers):
            print(line, flush=True)
        if sheets is not None:
            first = {name: found[:EXAMPLES] for name, found in answers.items()}
            write_png(
                sheet(asked[:EXAMPLES], first), sheets / f"{task}.png", {"loras": list(map(str, loras))}
            )


if __name__ == "__main__":
    tyro.cli(main)
