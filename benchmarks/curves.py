"""Training curves of a run: `python benchmarks/curves.py RUN_FOLDER/log.csv --out docs/sd3-curves.png`."""

from __future__ import annotations

import csv
from pathlib import Path

import matplotlib.pyplot as plt
import tyro


def main(log: tyro.conf.Positional[Path], out: Path, first: int = 0) -> None:
    """Every figure of a log over steps, from step `first` on: as logged, and a mean over 9 lines."""
    with log.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if int(row["step"]) >= first]
    names = [name for name in rows[0] if name not in ("step", "seconds", "gradient", "loss")]
    figure, axes = plt.subplots(1, len(names), figsize=(5 * len(names), 3.2), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        points = [(int(row["step"]), float(row[name])) for row in rows if row[name]]
        steps, values = zip(*points, strict=True)
        axis.plot(steps, values, color="0.8", linewidth=0.8)
        axis.plot(steps, _smooth(values), color="tab:blue", linewidth=1.6)
        axis.set(title=name, xlabel="step")
        axis.spines[["top", "right"]].set_visible(False)
    hours = float(rows[-1]["seconds"]) / 3600
    figure.suptitle(f"{log.parent.name}: {int(rows[-1]['step']) + 1} steps, {hours:.1f} hours", fontsize=10)
    figure.savefig(out, dpi=110, bbox_inches="tight")


def _smooth(values: tuple[float, ...], half: int = 4) -> list[float]:
    parts = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return [sum(part) / len(part) for part in parts]


if __name__ == "__main__":
    tyro.cli(main)
