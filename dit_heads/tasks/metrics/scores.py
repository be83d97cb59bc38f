"""What a scorer returns: figures, and the protocol that they depend on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dit_heads.errors import InputError


@dataclass(frozen=True)
class Scores:
    """Figures of a task, with all that they depend on.

    Args:
        task: Its name.
        protocol: Sentences that say how it was measured.
        figures: By name.
        rows: The figures of each picture by its name, where the task has them.
    """

    task: str
    protocol: tuple[str, ...]
    figures: Mapping[str, float]
    rows: Mapping[str, Mapping[str, float]]

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
        return "\n".join(lines + [f"  {name:<{width}}  {value:.4g}" for name, value in self.figures.items()])
