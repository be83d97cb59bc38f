"""Whether results of multimodal instructions keep their subjects and follow what is said, by the judge."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dit_heads.embedded.agreement import solids_seen
from dit_heads.embedded.edits import Edit
from dit_heads.embedded.nets.judge import WHOLE, Judge
from dit_heads.embedded.world.data import ATTRIBUTES
from dit_heads.embedded.world.scenes import Scene, Solid

IDENTITY = ("shape", "colour", "texture")
Look = tuple[str, ...]


@torch.no_grad()
def fidelity(
    judge: Judge, pictures: Float[Tensor, "b 3 128 128"], edits: Sequence[Edit], batch: int = 32
) -> list[dict[str, float]]:
    """What the judge finds in each picture, 1 or 0 each, wherever it sees the solids.

    `shape`, `colour`, `texture` and `identity`, all three of one solid: whether the solids to be kept are
    seen as often as the right result has such solids. Those are the ones that references show; without
    references, those of the source that stay as they are. Without such solids, the four are missing.

    `instruction`: whether all else that has to change is as in the right result: ground, sky, style, the
    number of solids, and how often each solid that comes or goes is seen. On a blank canvas, that is all
    that the instruction names.

    Args:
        judge: the judge.
        pictures: results, in [-1, 1].
        edits: their instructions.
        batch: number of pictures that are judged at once.
    """
    found: list[dict[str, float]] = []
    for some, asked in zip(pictures.split(batch), _split(edits, batch), strict=True):
        logits = judge(some)
        whole = {name: logits[name].argmax(-1).tolist() for name in WHOLE}
        for k, (edit, seen) in enumerate(zip(asked, solids_seen(logits), strict=True)):
            attributes = {name: values[whole[name][k]] for name, values in WHOLE.items()}
            found.append({**identity(edit, seen), "instruction": float(followed(edit, seen, attributes))})
    return found


def identity(edit: Edit, seen: Sequence[Look]) -> dict[str, float]:
    """Which attributes of the solids to be kept are seen: see `fidelity`.

    Args:
        edit: the instruction.
        seen: shape, colour, texture and size of each solid in the result.
    """
    if not (kept := kept_solids(edit)):
        return {}
    kinds: dict[str, Look] = {**{name: (name,) for name in IDENTITY}, "identity": IDENTITY}
    return {kind: float(_as_often(kept, edit.target.solids, seen, names)) for kind, names in kinds.items()}


def kept_solids(edit: Edit) -> tuple[Solid, ...]:
    """The solids whose identity counts: those that references show, else those that stay as they are."""
    if edit.references:
        return tuple(solid for scene in edit.references for solid in scene.solids)
    stay = () if edit.source is None else edit.source.solids
    return tuple(solid for solid in edit.target.solids if solid in stay)


def followed(edit: Edit, seen: Sequence[Look], whole: Mapping[str, Any]) -> bool:
    """Whether everything but the subjects has changed as it should: see `fidelity`.

    Args:
        edit: the instruction.
        seen: shape, colour, texture and size of each solid in the result.
        whole: number of solids, ground, sky and style of the result.
    """
    right = _whole(edit.target)
    before = None if edit.source is None else _whole(edit.source)
    changed = [name for name in right if before is None or before[name] != right[name]]
    wanted = _looks(edit.target.solids)
    had = Counter() if edit.source is None else _looks(edit.source.solids)
    subjects = _looks(solid for scene in edit.references for solid in scene.solids)
    moved = [look for look in wanted | had if wanted[look] != had[look] and look not in subjects]
    found = Counter(seen)
    return all(whole[name] == right[name] for name in changed) and all(
        found[look] == wanted[look] for look in moved
    )


def _as_often(kept: Sequence[Solid], target: Sequence[Solid], seen: Sequence[Look], names: Look) -> bool:
    """Whether solids with these attributes of the kept ones are seen as often as the target has them."""
    places = [tuple(ATTRIBUTES).index(name) for name in names]
    found = Counter(tuple(look[place] for place in places) for look in seen)
    wanted = _looks(target, names)
    return all(found[look] >= wanted[look] for look in _looks(kept, names))


def _looks(solids: Any, names: Sequence[str] = tuple(ATTRIBUTES)) -> Counter[Look]:
    return Counter(tuple(getattr(solid, name) for name in names) for solid in solids)


def _whole(scene: Scene) -> dict[str, Any]:
    return {"count": len(scene.solids), "ground": scene.ground, "sky": scene.sky, "style": scene.style}


def _split(edits: Sequence[Edit], batch: int) -> list[Sequence[Edit]]:
    return [edits[at : at + batch] for at in range(0, len(edits), batch)]
