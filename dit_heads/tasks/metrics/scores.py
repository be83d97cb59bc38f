"""What a scorer returns: figures, and the protocol that they depend on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dit_heads.errors import InputError


@dataclass(frozen=True)
class Scores:
    """Figures of a task, with all that they depend on.

    Args:
        task: Its name.
        protocol: Sentences that say how it was measured.
        figures: By name.
        rows: The figures of each picture by its name, where the task has them.
        intervals: 95 % bootstrap intervals of figures by name, where they are measured.
    """

    task: str
    protocol: tuple[str, ...]
    figures: Mapping[str, float]
    rows: Mapping[str, Mapping[str, float]]
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @classmethod
    def of(cls, task: str, protocol: Sequence[str], rows: Mapping[str, Mapping[str, float]]) -> Scores:
        """Scores whose figures are means of pictures.

        Args:
            task, protocol, rows: As of the class.

        Raises:
            InputError: for no pictures.
        """
        if not rows:
            raise InputError("pairs: expected a picture or more, got none")
        names = next(iter(rows.values()))
        figures = {name: float(np.mean([row[name] for row in rows.values()])) for name in names}
        return cls(task, (f"{len(rows)} pictures", *protocol), figures, rows)

    def __str__(self) -> str:
        width = max(map(len, self.figures))
        lines = [f"{self.task}: {'; '.join(self.protocol)}"]
        for name, value in self.figures.items():
            known = self.intervals.get(name)
            spread = f"  [{known[0]:.4g}, {known[1]:.4g}]" if known else ""
            lines.append(f"  {name:<{width}}  {value:.4g}{spread}")
        return "\n".join(lines)


def interval(values: NDArray[np.float64], rounds: int = 2000) -> tuple[float, float]:
    """95 % bootstrap interval of a mean; the values, one per prompt, picture or set, are resampled."""
    rng = np.random.default_rng(0)
    means = values[rng.integers(len(values), size=(rounds, len(values)))].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
