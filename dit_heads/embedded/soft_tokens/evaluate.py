"""Score a solver on scenes of the test split: `python -m dit_heads.embedded.soft_tokens.evaluate NAME`.

The figures are kept in the folder of the run as `figures.json`, for benchmarks/soft_tokens.py.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor

from dit_heads.embedded.pairs import ANSWERS
from dit_heads.embedded.soft_tokens.losses import labels_of
from dit_heads.embedded.soft_tokens.runs import (
    SolverRun,
    device_of,
    folder_of,
    run_of,
    trained_reader,
)
from dit_heads.embedded.soft_tokens.truth import Encoder, Truth, load_features, load_world
from dit_heads.embedded.world.data import load_truth, scene_of
from dit_heads.embedded.world.render import Rendering
from dit_heads.io.atomic import write_text
from dit_heads.tasks.annotations import Depth, Instances
from dit_heads.tasks.metrics import DepthProtocol, score_depth, score_detection
from dit_heads.tasks.query import Query
from dit_heads.tasks.soft_tokens.maps import depth_input
from dit_heads.tasks.soft_tokens.reading import (
    DEPTH_TAU,
    HARD,
    MASK_TAU,
    SoftReader,
    depth_maps,
    pasted_instances,
)
from dit_heads.tasks.soft_tokens.sequences import split_objects
from dit_heads.tasks.soft_tokens.tokenizer import Decoded, Tokenizer

PROTOCOL = DepthProtocol(far=60.0)
FIGURES = "figures.json"
SECONDS, SECONDS_OF_BATCH = "seconds a picture", "seconds a picture of a batch"  # keys of the figures
BATCH = 50


@dataclass(frozen=True)
class Right:
    """The right answers about the first scenes of the test split."""

    names: list[str]
    depth: list[Depth]
    instances: list[Instances]


def right_answers(count: int) -> Right:
    """The exact depth of scenes, and their objects by shape."""
    images, depth, ids = load_truth("test", count)
    names, maps, found = [], [], []
    for k in range(count):
        scene, seen = scene_of("test", k), Rendering(images[k], depth[k], ids[k])
        names.append(f"scene {k}")
        maps.append(ANSWERS["depth"](scene, seen, Query("depth")))
        found.append(Instances.of_ids(ids[k].astype(int), [solid.shape for solid in scene.solids]))
    return Right(names, maps, found)


def scored(right: Right, maps: Sequence[Depth] | None, found: Sequence[Instances] | None) -> dict[str, float]:
    """AbsRel, RMSE and delta1 of depth; AP and AP50 of masks."""
    figures: dict[str, float] = {}
    if maps is not None:
        scores = score_depth(zip(right.names, right.depth, maps, strict=True), PROTOCOL).figures
        figures |= {name: scores[name] for name in ("RMSE, m", "AbsRel", "delta1", "no distance")}
    if found is not None:
        scores = score_detection(zip(right.names, right.instances, found, strict=True)).figures
        figures |= {name: scores[name] for name in ("AP", "AP50")}
    return figures


# --- what a solver answers ---


def answers(reader: SoftReader, features: Tensor, hard: bool) -> tuple[list[Depth], list[Instances]]:
    """Depth and objects of scenes, by hard or by soft tokens."""
    side = reader.depth.config.size
    maps: list[Depth] = []
    found: list[Instances] = []
    for some in features.split(BATCH):
        read = reader.read_depth(some, HARD if hard else DEPTH_TAU)
        maps += depth_maps(read.values, read.sky, reader.depth.range)
        objects = reader.read_objects(some, HARD if hard else MASK_TAU)
        found += [each.instances((side, side)) for each in objects]
    return maps, found


def ceiling(reader: SoftReader, truth: Truth) -> tuple[list[Any], list[Any]]:
    """What the tokenizers make of the right answers: what no solver of hard tokens can beat."""
    maps: list[Depth] = []
    found: list[Instances] = []
    depth, mask, vocabulary = reader.depth, reader.mask, reader.solver.config.vocabulary
    labels = labels_of(truth, depth, mask, vocabulary)
    for which in torch.arange(len(truth), device=truth.ids.device).split(BATCH):
        given = depth_input(*truth.depth(which), depth.range)
        with torch.no_grad():
            decoded = Decoded.of(depth.decode_tokens(depth.tokenize(given)).float())
        maps += depth_maps(decoded.values, decoded.sky.sigmoid(), depth.range)
        numbers = split_objects(labels.objects[which], vocabulary).mask
        for row, scene in enumerate(which.tolist()):
            found.append(_reconstructed(truth, mask, scene, numbers[row], vocabulary))
    return maps, found


def _reconstructed(truth: Truth, mask: Tokenizer, scene: int, numbers: Tensor, vocabulary: Any) -> Instances:
    """The objects of a scene, in their exact boxes, with masks that went through the tokenizer."""
    objects = truth.objects
    at = torch.nonzero(objects.there[scene]).flatten()
    with torch.no_grad():
        masks = mask.decode_tokens(numbers[at])[:, 0].float().sigmoid()
    names = tuple(vocabulary.classes[k] for k in objects.classes[scene, at].tolist())
    size = (truth.ids.shape[1], truth.ids.shape[2])
    return pasted_instances(masks, objects.boxes[scene, at], names, masks.new_ones(len(at)), size)[0]


def seconds_a_picture(call: Callable[[], Any], pictures: int, repeats: int = 3) -> float:
    """Seconds that a call takes for each of its pictures, the fastest of some."""
    found = []
    for _ in range(repeats):
        _synchronize()
        began = time.perf_counter()
        call()
        _synchronize()
        found.append((time.perf_counter() - began) / pictures)
    return min(found)


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def evaluated(name: str, count: int) -> dict[str, Any]:
    """The figures of a run, by hard and by soft tokens, with those of its tokenizers alone."""
    device, run = device_of(), run_of(name, SolverRun)
    reader = trained_reader(name).to(device)
    truth, right = load_world("test", count, device), right_answers(count)
    chosen = reader.solver.config.features
    features = load_features(run.model, "test", truth.images, chosen, device)
    figures: dict[str, Any] = {
        "tokenizers": scored(right, *ceiling(reader, truth))
    }
    for how, hard in (("soft", False), ("hard", True)):
        figures[how] = scored(right, *answers(reader, features, hard))
    encoder = Encoder(run.model, device)
    for how, images in ((SECONDS, truth.images[:1]), (SECONDS_OF_BATCH, truth.images[:BATCH])):

        def answer(images: Any = images) -> Any:
            return answers(reader, encoder.features(images, chosen), False)

        figures[how] = seconds_a_picture(answer, len(images))
    figures["weights"] = sum(p.numel() for p in reader.solver.parameters())
    return figures


def main(name: Annotated[str, tyro.conf.Positional], count: int = 500) -> None:
    """Score a run and keep the figures.

    Args:
        name: of the run of a solver.
        count: number of scenes.
    """
    figures = {"scenes": count, **evaluated(name, count)}
    write_text(folder_of(name) / FIGURES, json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures))


if __name__ == "__main__":
    tyro.cli(main)
