"""How well generated sets keep to their captions and to each other, according to the judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dit_heads.embedded.nets.judge import COUNTS, Judge, Verdict, verdict
from dit_heads.embedded.sets import SceneSet, task_of
from dit_heads.embedded.world.data import ATTRIBUTES
from dit_heads.errors import InputError


@dataclass(frozen=True)
class Agreement:
    """The judge's verdict on generated sets.

    Attributes:
        right: whether a panel shows everything in its caption.
        share: share of a panel's attributes that are right.
        kept: whether the solids are the same in all panels of a set.
    """

    right: Bool[Tensor, "s p"]
    share: Float[Tensor, "s p"]
    kept: Bool[Tensor, " s"]


def agreement(judge: Judge, pictures: Float[Tensor, "s p 3 h w"], sets: Sequence[SceneSet]) -> Agreement:
    """Judge the panels, in [-1, 1], of sets of one task.

    Raises:
        InputError: for a wrong number of panels, and for sets of several tasks.
    """
    tasks = {one.task for one in sets}
    if len(tasks) != 1:
        raise InputError(f"sets: expected sets of one task, got {sorted(tasks)}")
    panels = len(sets[0].scenes)
    if pictures.shape[:2] != (len(sets), panels):
        raise InputError(
            f"pictures: expected {len(sets)} x {panels} panels, got the shape {tuple(pictures.shape)}"
        )
    judged = verdict(judge, pictures.flatten(0, 1), [scene for one in sets for scene in one.scenes])
    return Agreement(
        panels_right(judged, panels),
        judged.per_picture().view(-1, panels),
        identity_kept(judge, pictures, tasks.pop()),
    )


def panels_right(judged: Verdict, panels: int) -> Bool[Tensor, "s p"]:
    """Whether all attributes in a panel's caption are right. The verdict lists the panels set by set."""
    whole = [ok for ok in judged.right.values() if ok.ndim == 1]
    solid = [(ok | ~judged.asked).all(-1) for ok in judged.right.values() if ok.ndim == 2]
    return torch.stack(whole + solid).all(0).view(-1, panels)


@torch.no_grad()
def identity_kept(
    judge: Judge, pictures: Float[Tensor, "s p 3 h w"], task: str, batch: int = 32
) -> Bool[Tensor, " s"]:
    """Whether the judge sees the same solids in all panels of a set, whatever the caption asks for.

    The number of solids and their attributes (`Task.identity`) must agree, but not their places.

    Raises:
        InputError: for an unknown task.
    """
    names = task_of(task).identity
    seen = [
        found for part in pictures.flatten(0, 1).split(batch) for found in solids_seen(judge(part), names)
    ]
    panels = pictures.shape[1]
    sets = [seen[at : at + panels] for at in range(0, len(seen), panels)]
    return torch.tensor([len(set(one)) == 1 for one in sets])


Seen = tuple[tuple[str, ...], ...]


def solids_seen(
    logits: Mapping[str, Float[Tensor, "b ..."]], names: Sequence[str] = tuple(ATTRIBUTES)
) -> list[Seen]:
    """The solids that the judge sees in each picture.

    Args:
        logits: output of the judge: `count` [B, 3], and each of `names` [B, 3, classes].
        names: attributes of interest.

    Returns:
        The attributes of each solid in each picture, sorted, so that equal multisets of solids are equal.
    """
    counts = [COUNTS[k] for k in logits["count"].argmax(-1).tolist()]
    classes = torch.stack([logits[name].argmax(-1) for name in names], -1).tolist()  # [B, 3, names]
    return [
        tuple(sorted(_in_words(solid, names) for solid in solids[:count]))
        for solids, count in zip(classes, counts, strict=True)
    ]


def _in_words(solid: Sequence[int], names: Sequence[str]) -> tuple[str, ...]:
    return tuple(ATTRIBUTES[name][k] for name, k in zip(names, solid, strict=True))
