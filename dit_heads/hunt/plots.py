"""Pictures of a search: scores as a map heads x blocks, scores against the number of heads, contact sheets.

The plots need matplotlib: `pip install 'dit-heads[search]'`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dit_heads.errors import InputError
from dit_heads.heads import HeadId
from dit_heads.io.atomic import atomic_file

NEEDS = "matplotlib is missing, which plots need: pip install 'dit-heads[search]'"


def draw_head_map(
    gains: Mapping[HeadId, float],
    path: Path,
    *,
    chosen: Sequence[HeadId] = (),
    title: str = "",
    label: str = "gain in score",
) -> None:
    """Write a PNG with a column for each block and a row for each head. Image-only heads have their own map.

    Args:
        gains: of each head; blue is below 0, red above.
        path: of the file.
        chosen: heads that get their number in the order of choice.
        title: of the figure.
        label: what the numbers are.

    Raises:
        InputError: if matplotlib is missing.
    """
    matplotlib = require_matplotlib()
    kinds = [only for only in (False, True) if any(head.image_only is only for head in gains)]
    shape = _shape(gains)
    size = (len(kinds) * (1.8 + 0.34 * shape[0]), 1.4 + 0.32 * shape[1])
    figure = matplotlib.figure.Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, len(kinds), squeeze=False)
    limit = max(map(abs, gains.values())) or 1.0
    for axis, only in zip(axes[0], kinds, strict=True):
        values = [[float("nan")] * shape[0] for _ in range(shape[1])]
        for head, gain in gains.items():
            if head.image_only is only:
                values[head.head][head.block] = gain
        axis.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit, origin="lower", aspect="equal")
        for number, head in enumerate(chosen, 1):
            if head.image_only is only:
                place = head.block, head.head
                axis.add_patch(matplotlib.patches.Circle(place, 0.4, facecolor="white", edgecolor="black"))
                axis.annotate(str(number), place, ha="center", va="center", fontsize=8)
        axis.set(xlabel="block", ylabel="head", title="image-only attention" if only else "")
        axis.set_xticks(range(0, shape[0], max(1, shape[0] // 12)))
        axis.set_yticks(range(0, shape[1], max(1, shape[1] // 12)))
    figure.colorbar(axes[0][0].images[0], ax=axes[0].tolist(), label=label, shrink=0.8)
    figure.suptitle(title, fontsize=10)
    _save(figure, path)


def draw_curve(
    means: Sequence[float], path: Path, *, intervals: Sequence[tuple[float, float]] = (), title: str = ""
) -> None:
    """Write a PNG of the score with 0, 1, 2 ... heads.

    Args:
        means: the scores.
        path: of the file.
        intervals: (low, high) of each score, drawn as a band.
        title: of the figure.

    Raises:
        InputError: if matplotlib is missing.
    """
    figure = require_matplotlib().figure.Figure(figsize=(5.2, 3.2))
    axis = figure.subplots()
    if intervals:
        axis.fill_between(range(len(means)), *zip(*intervals, strict=True), color="tab:blue", alpha=0.15)
    axis.plot(range(len(means)), means, marker="o", markersize=4, color="tab:blue")
    axis.axhline(means[0], color="0.6", linewidth=0.8, linestyle="--")
    axis.set(xlabel="heads, in the order of choice", ylabel="score", title=title)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def draw_grid(
    values: Sequence[Sequence[float]],
    path: Path,
    *,
    rows: tuple[str, Sequence[str]],
    columns: tuple[str, Sequence[str]],
    title: str = "",
    decimals: int = 3,
) -> None:
    """Write a PNG of a table whose cells are coloured and hold their value. NaN is left white.

    Args:
        values: row by row; blue is below 0, red above.
        path: of the file.
        rows, columns: title of the axis, and the label of each row or column.
        title: of the figure.
        decimals: of the written values.

    Raises:
        InputError: if matplotlib is missing.
    """
    matplotlib = require_matplotlib()
    limit = max((abs(v) for row in values for v in row if v == v), default=0.0) or 1.0
    size = (2.2 + 0.62 * len(columns[1]), 1.6 + 0.42 * len(rows[1]))
    figure = matplotlib.figure.Figure(figsize=size, layout="constrained")
    axis = figure.subplots()
    axis.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            if value == value:
                ink = "white" if abs(value) > 0.6 * limit else "black"
                axis.annotate(
                    f"{value:.{decimals}f}", (x, y), ha="center", va="center", fontsize=7, color=ink
                )
    axis.set(xlabel=columns[0], ylabel=rows[0])
    axis.set_xticks(range(len(columns[1])), columns[1])
    axis.set_yticks(range(len(rows[1])), rows[1])
    axis.set_title(title, fontsize=10)
    _save(figure, path)


def _shape(gains: Mapping[HeadId, float]) -> tuple[int, int]:
    """Blocks and heads that a map must have room for."""
    return max(head.block for head in gains) + 1, max(head.head for head in gains) + 1


def _save(figure: Any, path: Path) -> None:
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=130, bbox_inches="tight")


def require_matplotlib() -> Any:
    """Import matplotlib for figures that are written to files. No backend is chosen for the process.

    Raises:
        InputError: if it is missing, with what to install.
    """
    try:
        import matplotlib
        import matplotlib.figure
        import matplotlib.patches
    except ImportError as error:
        raise InputError(NEEDS) from error
    return matplotlib
