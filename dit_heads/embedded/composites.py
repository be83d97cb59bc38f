"""Judge composites of unrelated panels, panel by panel: `python -m dit_heads.embedded.composites`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from jaxtyping import Bool, Float
from torch import Tensor

from dit_heads.embedded.evaluate import cell, load, paint, unseen_scenes
from dit_heads.embedded.export import load_judge
from dit_heads.embedded.nets.judge import Judge, verdict
from dit_heads.embedded.world.captions import caption, joint_caption, padded_length
from dit_heads.embedded.world.scenes import Scene
from dit_heads.io.pictures import write_png
from dit_heads.io.sheets import flowing_rows

JUDGED = ((1, 2), (1, 3), (2, 2), (3, 1))  # rows, columns
SIDE = 128  # pixels of a panel


@dataclass(frozen=True)
class PanelVerdict:
    """The judge's verdict on n composites of P panels each."""

    attributes: Float[Tensor, "n p"]
    """Share of each panel's attributes that are right."""
    placed: Bool[Tensor, "n p"]
    """Whether the judge finds each panel likelier under its own caption than under that of another panel."""

    @property
    def right(self) -> Bool[Tensor, "n p"]:
        """Whether every attribute of a panel is right."""
        return self.attributes == 1

    def row(self, name: str) -> str:
        """A row of a Markdown table, in %, with 95 % bootstrap intervals over composites."""
        shares = (self.right.float(), self.attributes, self.placed.float())
        return f"| {name} | {' | '.join(cell(100 * s.mean(1).double().numpy(), 1) for s in shares)} |"


HEADER = "| | panels all right | attributes right | in their place |\n|---|---|---|---|"


def unseen_composites(count: int, panels: int, solids: Sequence[int]) -> list[list[Scene]]:
    """The scenes of composites of unrelated panels, none of which was seen in training.

    Args:
        count: number of composites.
        panels: panels per composite.
        solids: numbers of objects, which the panels take in turn.
    """
    kinds = [iter(unseen_scenes("test", count * panels, solids=n)) for n in solids]
    return [[next(kinds[(k + j) % len(kinds)]) for k in range(panels)] for j in range(count)]


def joint_prompts(sheets: Sequence[Sequence[Scene]], rows: int, columns: int) -> list[str]:
    """Joint captions made of canonical captions, each with its own markers and summary."""
    rng = np.random.default_rng(0)
    return [joint_caption([caption(scene) for scene in sheet], rows, columns, rng) for sheet in sheets]


def panels_of(pictures: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n p 3 128 128"]:
    """The panels of composites, in reading order."""
    n, channels, height, width = pictures.shape
    rows, columns = height // SIDE, width // SIDE
    grid = pictures.view(n, channels, rows, SIDE, columns, SIDE).permute(0, 2, 4, 1, 3, 5)
    return grid.reshape(n, rows * columns, channels, SIDE, SIDE)


def judge_panels(
    judge: Judge, pictures: Float[Tensor, "n 3 h w"], sheets: Sequence[Sequence[Scene]]
) -> PanelVerdict:
    """Judge composites in [-1, 1] against the scenes of their panels, in reading order."""
    panels = panels_of(pictures)
    count, each = panels.shape[:2]
    likelihood = torch.zeros(count, each, each)  # of panel [n, i] under the caption of panel j
    attributes = torch.zeros(count, each)
    for j in range(each):
        scenes = [sheet[j] for sheet in sheets for _ in range(each)]
        found = verdict(judge, panels.flatten(0, 1), scenes)
        asked = len(found.right) * found.asked.float().sum(-1)  # else captions of fewer solids win
        likelihood[:, :, j] = (found.log_likelihood / asked).view(count, each)
        attributes[:, j] = found.per_picture().view(count, each)[:, j]
    return PanelVerdict(attributes, likelihood.argmax(-1) == torch.arange(each))


def main(
    model: str = "sd3",
    guidance: float = 4.0,
    count: int = 32,
    sheet: Path | None = None,
    batch: int = 8,
    device: str = "cpu",
) -> None:
    """Judge composites of an embedded model.

    Args:
        model: "sd3", "flux" or a folder in diffusers' format.
        guidance: the guidance scale, in 28 steps.
        count: number of composites per row of the table.
        sheet: PNG file for six composites of each grid.
        batch: number of composites generated at once.
        device: device of the model.
    """
    pipe, judge, shown = load(model).to(device), load_judge(), []
    print(HEADER, flush=True)
    for rows, columns in JUDGED:
        for name, solids in (("one or two objects", (1, 2)), ("three objects", (3,))):
            sheets = unseen_composites(count, rows * columns, solids)
            pictures = _painted(pipe, sheets, rows, columns, batch=batch, guidance_scale=guidance)
            shown += list(pictures[:4] if len(solids) > 1 else pictures[:2])
            judged = judge_panels(judge, pictures, sheets)
            print(judged.row(f"{rows} x {columns}, {name}"), flush=True)
    if sheet:
        write_png(_sheet(pipe, shown), sheet, {"guidance": guidance, "model": model})


def _painted(
    pipe: Any, sheets: Sequence[Sequence[Scene]], rows: int, columns: int, **call: Any
) -> Float[Tensor, "n 3 h w"]:
    texts = joint_prompts(sheets, rows, columns)
    size = {"height": SIDE * rows, "width": SIDE * columns}
    own = {"num_inference_steps": 28, "max_sequence_length": padded_length(texts)}
    return paint(pipe, [], prompts=texts, **size, **own, **call)


def _sheet(pipe: Any, composites: Sequence[Float[Tensor, "3 h w"]]) -> Any:
    """All composites on one sheet, as wide as six of two panels."""
    pictures = [pipe.image_processor.postprocess(composite[None])[0] for composite in composites]
    return flowing_rows(pictures, width=6 * 2 * SIDE + 5 * 8)


if __name__ == "__main__":
    tyro.cli(main)
