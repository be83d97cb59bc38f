"""How well answers of vision tasks survive an autoencoder, each coding of `dit_heads.tasks.codecs`:
`python benchmarks/codecs.py --count 64`, or `--vae black-forest-labs/FLUX.1-dev --size 512`.

Each answer is drawn, encoded, decoded and read again: with no autoencoder (what 8 bits cost), with it, and
with noise of 1 % of the latents' standard deviation in between. Edges are within 2 pixels of a border between
objects, or of a jump of depth by a tenth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import tyro
from diffusers import AutoencoderKL
from numpy.typing import NDArray

from dit_heads.embedded import load_embedded
from dit_heads.embedded.world.data import scene_of
from dit_heads.embedded.world.render import boxes as boxes_of
from dit_heads.embedded.world.render import render
from dit_heads.embedded.world.scenes import SHAPES, Scene
from dit_heads.tasks.annotations import Boxes, Depth, Instances, Labels, Segmentation, box_iou, mask_iou
from dit_heads.tasks.codecs import BoxCodec, Codec, DepthCodec, InstanceCodec, LabelCodec, MaskCodec
from dit_heads.tasks.codecs.depth import CURVES, PATHS
from dit_heads.tasks.codecs.pixels import Picture, dilated
from dit_heads.tasks.query import Query

Mask = NDArray[np.bool_]
Numbers = dict[str, float]
EDGE = 2  # pixels
ANYTHING = Query("detect", ("object",))
COLOURS = 16


@dataclass(frozen=True)
class View:
    """A scene and all that is known of its picture."""

    scene: Scene
    image: Picture
    depth: Depth
    ids: NDArray[np.int64]

    @property
    def shapes(self) -> tuple[str, ...]:
        return tuple(solid.shape for solid in self.scene.solids)


@dataclass(frozen=True)
class Coding:
    """A codec, what it is asked of a view, the truth, and how an answer is scored."""

    name: str
    codec: Codec
    query: Callable[[View], Query]
    truth: Callable[[View], Any]
    score: Callable[[View, Any, Any], Numbers]


def view_of(index: int, size: int) -> View:
    """A validation scene, each pixel repeated up to `size` a side."""
    scene = scene_of("validation", index)
    done = render(scene)
    times = size // len(done.ids)
    maps = (done.image, done.depth, done.ids)
    image, depth, ids = (each.repeat(times, 0).repeat(times, 1) for each in maps)
    return View(scene, image, Depth.from_metres(depth), ids.astype(np.int64))


# --- scores ---


def at_borders(ids: NDArray[Any]) -> Mask:
    """Pixels within `EDGE` of a border between regions."""
    out = np.zeros(ids.shape, bool)
    out[1:] |= ids[1:] != ids[:-1]
    out[:, 1:] |= ids[:, 1:] != ids[:, :-1]
    return dilated(out, EDGE)


def score_classes(view: View, truth: Segmentation, found: Segmentation) -> Numbers:
    """Mean IoU of the classes, and wrong pixels at borders."""
    wrong, edge = truth.labels != found.labels, at_borders(truth.labels)
    return {
        "IoU": float(np.mean([mask_iou(truth.mask(name), found.mask(name)) for name in truth.classes])),
        "wrong pixels at edges, %": float(100 * wrong[edge].mean()),
        "elsewhere, %": float(100 * wrong[~edge].mean()),
    }


def score_instances(view: View, truth: Instances, found: Instances) -> Numbers:
    """Mean IoU of each object with the best mask, and objects found too many or too few."""
    best = [max((mask_iou(mask, other) for other in found.masks), default=0.0) for mask in truth.masks]
    return {"IoU": float(np.mean(best)), "count right, %": 100 * float(len(found) == len(truth))}


def score_boxes(view: View, truth: Boxes, found: Boxes) -> Numbers:
    """F score at an IoU of 0.75, the error of the edges of boxes that are found, and the least score."""
    pairs = list(matched(truth, found))
    sides = [np.abs(truth.boxes[i] - found.boxes[j]).mean() for i, j in pairs]
    return {
        "F score at IoU 0.75": 2 * len(pairs) / max(len(truth) + len(found), 1),
        "edges off by, pixels": float(np.mean(sides)) if sides else np.nan,
        "score": float(np.mean([found.scores[j] for _, j in pairs])) if pairs else np.nan,
    }


def matched(truth: Boxes, found: Boxes, least: float = 0.75) -> Iterator[tuple[int, int]]:
    """Pairs of a true box and the surest free one of its class that covers it."""
    free = set(range(len(truth)))
    for j in np.argsort(-found.scores, kind="stable"):
        same = [i for i in free if truth.classes[i] == found.classes[j]]
        best = max(same, key=lambda i: box_iou(truth.boxes[i], found.boxes[j]), default=None)
        if best is not None and box_iou(truth.boxes[best], found.boxes[j]) >= least:
            free.remove(best)
            yield best, int(j)


def score_depth(view: View, truth: Depth, found: Depth) -> Numbers:
    """AbsRel at edges and elsewhere and RMSE, of valid pixels; sky and ground taken for each other."""
    both = truth.valid & found.valid
    relative = np.abs(found.metres - truth.metres) / np.where(truth.valid, truth.metres, 1)
    edge = at_borders(np.digitize(np.log(np.where(truth.valid, truth.metres, 99)), JUMPS) + 99 * view.ids)
    squares = (found.metres - truth.metres)[both] ** 2
    return {
        "AbsRel elsewhere, %": 100 * relative[both & ~edge].mean(),
        "at edges, %": 100 * relative[both & edge].mean(),
        "RMSE, m": np.sqrt(squares.mean()),
        "sky wrong, %": 100 * (truth.valid != found.valid).mean(),
    }


JUMPS = np.log(1.1) * np.arange(60)


def score_labels(view: View, truth: Labels, found: Labels) -> Numbers:
    """Whether the answer is right, and its probability."""
    right = found.probabilities[truth.answers.index(truth.best)]
    return {"right, %": 100 * float(found.best == truth.best), "its probability": float(right)}


# --- codings ---


def first_shape(view: View) -> Segmentation:
    """Every solid of the first one's shape."""
    name = view.shapes[0]
    kinds = [k for k, shape in enumerate(view.shapes, 1) if shape == name]
    return Segmentation.of_mask(np.isin(view.ids, kinds), name)


def all_shapes(view: View) -> Segmentation:
    """The shape that each pixel shows."""
    table = np.array([0, *(SHAPES.index(shape) + 1 for shape in view.shapes)])
    return Segmentation(table[view.ids], SHAPES)


def solids(view: View) -> Instances:
    """Each solid."""
    return Instances.of_ids(view.ids, ("object",) * len(view.shapes))


def boxes(view: View, named: bool) -> Boxes:
    """A box around each solid."""
    count = len(view.shapes)
    around = boxes_of(view.ids.astype(np.uint8), count)
    return Boxes.clipped(around, view.shapes if named else ("object",) * count, view.ids.shape)


def shapes_seen(view: View) -> Query:
    return Query("detect", tuple(dict.fromkeys(view.shapes)))


def answer(view: View) -> Labels:
    """One of sixteen answers, which the number of sky pixels decides."""
    names = tuple(map(str, range(COLOURS)))
    return Labels.of(names, names[int((view.ids == 0).sum()) % COLOURS])


def mask_codings() -> list[Coding]:
    codec = MaskCodec()
    one = Coding("one class, white on black", codec, lambda v: Query("segment", v.shapes[:1]), first_shape,
                 score_classes)  # fmt: skip
    five = Query("segment", SHAPES)
    return [one, Coding("five classes in bound colours", codec, lambda v: five, all_shapes, score_classes)]


def instance_codings() -> list[Coding]:
    query = Query("instances", ("object",))
    return [Coding("a colour an object", InstanceCodec(), lambda v: query, solids, score_instances)]


def box_codings() -> list[Coding]:
    out = []
    for filled in (False, True):
        for line in (1 / 64, 1 / 42, 1 / 32, 1 / 21):
            codec = BoxCodec(line, filled)
            name = f"{'filled' if filled else 'hollow'}, lines of 1/{round(1 / line)}"
            out.append(Coding(f"{name}, one class", codec, lambda v: ANYTHING, lambda v: boxes(v, False),
                              score_boxes))  # fmt: skip
            out.append(Coding(f"{name}, classes", codec, shapes_seen, lambda v: boxes(v, True), score_boxes))
    return out


def depth_codings(near: float = 2.0, far: float = 60.0) -> list[Coding]:
    every = {
        f"{curve}, {path}": DepthCodec(curve, path, near, far) for curve in CURVES for path in PATHS
    }
    paper = {"linear, grey, 0 to 10 m": DepthCodec("linear", "grey", 0, 10)}
    return [
        Coding(name, codec, lambda v: Query("depth"), lambda v: v.depth, score_depth)
        for name, codec in (paper | every).items()
    ]


def label_codings() -> list[Coding]:
    query = Query("classify", tuple(map(str, range(COLOURS))))
    return [Coding("sixteen colours", LabelCodec(), lambda v: query, answer, score_labels)]


TASKS = {
    "Segmentation": mask_codings,
    "Instances": instance_codings,
    "Detection": box_codings,
    "Depth": depth_codings,
    "Classification": label_codings,
}


# --- the autoencoder ---


def load_vae(vae: str) -> AutoencoderKL:
    """The embedded autoencoder, or that of a folder or name, itself or in its folder `vae`."""
    if vae == "embedded":
        return load_embedded("sd3").vae
    try:
        return AutoencoderKL.from_pretrained(vae, subfolder="vae", use_safetensors=True)
    except OSError:
        return AutoencoderKL.from_pretrained(vae, use_safetensors=True)


@torch.no_grad()
def through(vae: AutoencoderKL, pictures: NDArray[np.uint8], noise: float) -> NDArray[np.float32]:
    """Pictures [N, H, W, 3], encoded to the posterior's mode and decoded, in [0, 1]; `noise` is a share of
    the latents' standard deviation."""
    generator, back = torch.Generator().manual_seed(0), []
    for some in torch.from_numpy(pictures).permute(0, 3, 1, 2).split(8):
        x = (some.float() / 127.5 - 1).to(vae.device, vae.dtype)
        z = vae.encode(x).latent_dist.mean  # pyright: ignore[reportAttributeAccessIssue]
        z = z + noise * z.std() * torch.randn(z.shape, generator=generator).to(z)
        y = vae.decode(z).sample  # pyright: ignore[reportAttributeAccessIssue]
        back.append((y.float().clamp(-1, 1) + 1) / 2)
    return torch.cat(back).permute(0, 2, 3, 1).cpu().numpy()


def row(coding: Coding, views: list[View], sent: Callable[[NDArray[np.uint8]], NDArray[Any]]) -> Numbers:
    """Mean scores over all views, those that have one."""
    queries, truths = [coding.query(v) for v in views], [coding.truth(v) for v in views]
    pairs = zip(views, truths, queries, strict=True)
    back = sent(np.stack([coding.codec.encode(t, q, v.image) for v, t, q in pairs]))
    found = [coding.codec.decode(x, q, v.image) for x, q, v in zip(back, queries, views, strict=True)]
    scores = [coding.score(v, t, f) for v, t, f in zip(views, truths, found, strict=True)]
    return {name: _mean([each[name] for each in scores]) for name in scores[0]}


def _mean(values: list[float]) -> float:
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else np.nan


def main(vae: str = "embedded", count: int = 64, size: int = 128, noise: float = 0.01) -> None:
    """Print a table a task.

    Args:
        vae: "embedded", or the folder or name of an AutoencoderKL or of a pipeline that has one.
        count: Number of validation scenes.
        size: Pixels a side, a multiple of 128.
        noise: Share of the latents' standard deviation.
    """
    device: Any = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_vae(vae).to(device)
    views = [view_of(index, size) for index in range(count)]
    ways = {
        "8 bits alone": lambda x: x,
        "autoencoder": lambda x: through(model, x, 0),
        f"and {100 * noise:g} % noise": lambda x: through(model, x, noise),
    }
    for task, codings in TASKS.items():
        print_table(task, codings(), views, ways)


def print_table(task: str, codings: list[Coding], views: list[View], ways: dict[str, Any]) -> None:
    """A row a coding and way; Markdown."""
    names: list[str] = []
    for coding in codings:
        for way, sent in ways.items():
            numbers = row(coding, views, sent)
            if not names:
                names = list(numbers)
                print(f"\n| {task} | | {' | '.join(names)} |\n|{'---|' * (len(names) + 2)}")
            print(f"| {coding.name} | {way} | {' | '.join(f'{numbers[n]:.3g}' for n in names)} |", flush=True)


if __name__ == "__main__":
    tyro.cli(main)
