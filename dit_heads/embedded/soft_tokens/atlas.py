"""Atlas of the heads of an embedded model for perception: `python -m dit_heads.embedded.soft_tokens.atlas`.

A linear probe a head for depth, normals, instances and classes, all from the renderer. It writes a map of the
heads for each, and `atlas.json` with all scores.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from jaxtyping import Float
from torch import Tensor

from dit_heads.embedded import load_embedded
from dit_heads.embedded.soft_tokens.runs import device_of
from dit_heads.embedded.soft_tokens.truth import Truth, load_features, load_world
from dit_heads.embedded.world.data import CELL
from dit_heads.embedded.world.render import FORWARD, RIGHT, SIZE, UP, rays
from dit_heads.embedded.world.scenes import SHAPES
from dit_heads.errors import InputError
from dit_heads.families import layout_of
from dit_heads.heads import HeadId, HeadSet
from dit_heads.hunt.plots import draw_head_map
from dit_heads.io.atomic import write_text
from dit_heads.tasks.soft_tokens.features import FeatureConfig, chosen_heads
from dit_heads.tasks.soft_tokens.maps import DISTANCE
from dit_heads.tasks.soft_tokens.probes import Probed, Target, best, probed

MOSTLY = 0.5  # share of a token's pixels that must have the target
EDGE = 0.1  # relative jump of depth to a neighbour at which there is no normal
TARGETS = ("depth", "normals", "instance", "class")


def targets_of(truth: Truth) -> dict[str, Target]:
    """What each image token of the scenes shows.

    Args:
        truth: the scenes.

    Returns:
        depth: mean logarithm of metres. normals: the mean unit normal, in the camera's axes. instance: the
        way from the token to the middle of the box of the solid that it shows, in shares of the picture.
        class: 1 for the shape of that solid, 0 for the others.
    """
    metres, known = truth.metres.float().cpu(), truth.known.cpu() == DISTANCE
    logs = torch.where(known, metres.clamp(min=1e-3).log(), 0)
    found = {"depth": _cell_means(logs[..., None], known)}
    normals, smooth = normals_of(metres, known)
    found["normals"] = _cell_means(normals, smooth)
    return found | _of_solids(truth)


def normals_of(metres: Float[Tensor, "s h w"], known: Tensor) -> tuple[Float[Tensor, "s h w 3"], Tensor]:
    """Unit normals of surfaces in the camera's axes (right, up, forward), towards the camera, and where there
    are any: not at a jump of depth, nor at the border."""
    across = torch.from_numpy((np.arange(SIZE, dtype=np.float32) + 0.5) / SIZE * 2 - 1)
    directions = torch.from_numpy(rays(across.numpy(), across.numpy()))
    axes = torch.from_numpy(np.stack([RIGHT, UP, FORWARD]))
    local = directions @ axes.T  # [H, W, 3] in the camera's axes
    points = local / local[..., 2:] * metres[..., None]
    right, down = points[:, 1:-1, 2:] - points[:, 1:-1, :-2], points[:, 2:, 1:-1] - points[:, :-2, 1:-1]
    normal = torch.cross(right, down, dim=-1)
    normal = normal / normal.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    inner = points[:, 1:-1, 1:-1]
    normal = normal * torch.where((normal * inner).sum(-1, keepdim=True) > 0, -1.0, 1.0)
    smooth = known[:, 1:-1, 1:-1].clone()
    middle = metres[:, 1:-1, 1:-1].clamp(min=1e-6)
    for rows, columns in (((1, -1), (0, -2)), ((1, -1), (2, None)), ((0, -2), (1, -1)), ((2, None), (1, -1))):
        beside = (slice(None), slice(*rows), slice(*columns))
        smooth &= known[beside] & ((metres[beside] / middle - 1).abs() < EDGE)
    pad = torch.nn.functional.pad
    return pad(normal, (0, 0, 1, 1, 1, 1)), pad(smooth, (1, 1, 1, 1))


def _cell_means(values: Float[Tensor, "s h w t"], where: Tensor) -> Target:
    """The mean of the pixels of each image token that have a value, if most of them do."""
    s, h, w, _ = values.shape
    rows, columns = h // CELL, w // CELL
    mask = where.float()[..., None]
    cells = [
        (each).reshape(s, rows, CELL, columns, CELL, -1).sum((2, 4)).flatten(1, 2)
        for each in (values * mask, mask)
    ]
    total, count = cells
    return Target(total / count.clamp(min=1), count[..., 0] >= MOSTLY * CELL**2)


def _of_solids(truth: Truth) -> dict[str, Target]:
    """Instance and class of the solid that most pixels of a token show, if they show one."""
    ids, objects = truth.ids.cpu(), truth.objects
    s, h, w = ids.shape
    rows, columns = h // CELL, w // CELL
    places = torch.stack(
        torch.meshgrid(
            (torch.arange(columns) + 0.5) / columns, (torch.arange(rows) + 0.5) / rows, indexing="xy"
        ),
        -1,
    ).flatten(0, 1)  # [N, 2], x and y
    offsets, classes = torch.zeros(s, rows * columns, 2), torch.zeros(s, rows * columns, len(SHAPES))
    counted = torch.zeros(s, rows * columns, dtype=torch.bool)
    for scene, place in torch.nonzero(objects.there.cpu()).tolist():
        number = int(objects.order[scene, place]) + 1
        share = (ids[scene] == number).float().reshape(rows, CELL, columns, CELL).mean((1, 3)).flatten()
        mine = share >= MOSTLY
        box = objects.boxes[scene, place].cpu()
        offsets[scene, mine] = ((box[:2] + box[2:]) / 2 - places)[mine]
        classes[scene, mine, int(objects.classes[scene, place])] = 1
        counted[scene] |= mine
    return {"instance": Target(offsets, counted), "class": Target(classes, counted)}


@dataclass(frozen=True)
class Atlas:
    """The scores of all heads of a model.

    Attributes:
        heads: in the order of the scores.
        found: the scores by target.
    """

    heads: tuple[HeadId, ...]
    found: Mapping[str, Probed]

    def best(self, share: float) -> list[HeadId]:
        """The share of the heads with the best mean rank over all targets, sorted."""
        count = max(1, round(share * len(self.heads)))
        return sorted(self.heads[k] for k in best(self.found, count))

    def rank(self, target: str, heads: Sequence[HeadId], rounds: int = 10_000) -> tuple[float, float]:
        """How well some heads see beside all others.

        Args:
            target: one of `TARGETS`.
            heads: these heads.
            rounds: number of draws of random heads.

        Returns:
            Their mean rank as a share, 1 for the best head and 0 for the worst, and the chance that as many
            random heads have such a mean or a higher one.
        """
        count = len(self.heads)
        ranks = self.found[target].scores.argsort().argsort().double().numpy() / (count - 1)
        own = float(np.mean([ranks[self.heads.index(head)] for head in heads]))
        rng = np.random.default_rng(0)
        drawn = rng.permuted(np.tile(ranks, (rounds, 1)), axis=1)[:, : len(heads)].mean(1)
        return own, float(((drawn >= own - 1e-12).sum() + 1) / (rounds + 1))


def make_atlas(
    model: str,
    count: int,
    level: float,
    permutations: int,
    split: Literal["train", "validation"] = "validation",
) -> Atlas:
    """Probe all heads of an embedded model.

    Args:
        model: "sd3" or "flux".
        count: number of scenes.
        level: noise level.
        permutations: of the null.
        split: of the scenes.
    """
    device = torch.device("cpu")
    truth = load_world(split, count, device)
    features = load_features(model, split, truth.images, FeatureConfig(levels=(level,)), device_of()).cpu()
    heads = chosen_heads(layout_of(load_embedded(model).transformer), "all")
    per_head = features.float().unflatten(-1, (len(heads), -1))
    targets = targets_of(truth)
    return Atlas(
        heads, {name: probed(per_head, targets[name], permutations=permutations) for name in TARGETS}
    )


def as_json(atlas: Atlas, about: Mapping[str, Any]) -> dict[str, Any]:
    """An atlas as JSON holds it."""
    found = {
        name: {
            "scores": {str(h): round(float(s), 5) for h, s in zip(atlas.heads, each.scores, strict=True)},
            "halves agree": round(each.agreement, 4),
            "null, 95 %": round(each.threshold, 5),
        }
        for name, each in atlas.found.items()
    }
    return {**about, "targets": found}


def main(
    model: Literal["sd3", "flux"] = "sd3",
    count: int = 1000,
    level: float = 0.1,
    permutations: int = 20,
    share: float = 0.1,
    guiding: str = "",
    out: Path = Path("atlas"),
) -> None:
    """Probe all heads, draw their maps and print the best ones.

    Args:
        model: sd3 or flux.
        count: number of validation scenes.
        level: noise level.
        permutations: of the null.
        share: of the heads that are called the best.
        guiding: heads that guide, such as those of a search, to be marked and ranked.
        out: folder of the maps and of `atlas.json`.
    """
    atlas = make_atlas(model, count, level, permutations)
    guides = _guides(guiding, atlas)
    about = {"model": model, "scenes": count, "level": level, "best": ", ".join(map(str, atlas.best(share)))}
    write_text(out / "atlas.json", json.dumps(as_json(atlas, about), indent=1) + "\n")
    print("| probe | best head | R² | median R² | null, 95 % | above null | halves agree |")
    print("|---|---|---|---|---|---|---|")
    for name, each in atlas.found.items():
        top = int(each.scores.argmax())
        above = int((each.scores > each.threshold).sum())
        print(
            f"| {name} | {atlas.heads[top]} | {each.scores[top]:.3f} | {each.scores.median():.3f} | "
            f"{each.threshold:.3f} | {above} of {len(atlas.heads)} | {each.agreement:.2f} |"
        )
        gains = {head: max(0.0, float(s)) for head, s in zip(atlas.heads, each.scores, strict=True)}
        draw_head_map(gains, out / f"{name}.png", chosen=guides, title=name, label="R²")
        if guides:
            own, chance = atlas.rank(name, guides)
            print(f"{name}: heads that guide have the mean rank {own:.2f} (1 is the best), p = {chance:.3f}")
    print(f"best {share:.0%}: {about['best']}")


def _guides(text: str, atlas: Atlas) -> list[HeadId]:
    if not text:
        return []
    found = [part for part in HeadSet.parse(text) if isinstance(part, HeadId)]
    if missing := [str(head) for head in found if head not in atlas.heads] or ([text] if not found else []):
        raise InputError(f"guiding: expected heads of the model, got {', '.join(missing)}")
    return found


if __name__ == "__main__":
    tyro.cli(main)
