"""Scores and pictures of head sets, each on the (prompt, seed) pairs of a search."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from dit_heads.heads import HeadSet
from dit_heads.hunt.config import HuntConfig
from dit_heads.hunt.log import TrialLog
from dit_heads.hunt.scorer import Backend
from dit_heads.hunt.trials import Pair, Strength, Trial, batches_of, evaluate

Done = Callable[[int], object]
"""Told how many more pictures are scored."""


class Evaluator:
    """Scores head sets from the log of a search, or by pictures that are drawn now.

    Args:
        backend: draws and scores.
        log: of the search.
        config: its settings; scale and softness of pictures are these unless a strength is given.
        pairs: the (prompt, seed) pairs of the search.

    Attributes:
        used: every picture whose score was asked for.
    """

    def __init__(self, backend: Backend, log: TrialLog, config: HuntConfig, pairs: Sequence[Pair]) -> None:
        self.backend, self.log, self.config, self.pairs = backend, log, config, tuple(pairs)
        self.used: set[Trial] = set()

    def scores(
        self,
        sets: Sequence[HeadSet | None],
        pairs: Sequence[Pair],
        done: Done,
        strength: Strength | None = None,
    ) -> list[list[float]]:
        """Score head sets.

        Args:
            sets: None stands for no guidance.
            pairs: (prompt, seed) pairs that each set is scored on.
            done: told the number of pictures.
            strength: of the pictures. Default: that of the search.

        Returns:
            A list for each set, with a score for each pair.
        """
        trials = [[self.trial(heads, pair, strength) for pair in pairs] for heads in sets]
        flat = list(itertools.chain.from_iterable(trials))
        self.used.update(flat)
        found = evaluate(flat, self.log, self.backend.score, size=self.config.batch, done=done)
        return [[found[trial] for trial in of_set] for of_set in trials]

    def pictures(
        self, heads: HeadSet | None, pairs: Sequence[Pair], strength: Strength | None = None
    ) -> list[Image.Image]:
        """Draw a picture of each pair with a head set, at the strength of the search by default."""
        batches = batches_of([self.trial(heads, pair, strength) for pair in pairs], self.config.batch)
        found = dict(self.backend.paint(batches))
        return _pictures(torch.cat([found[batch] for batch in batches]))

    def trial(self, heads: HeadSet | None, pair: Pair, strength: Strength | None = None) -> Trial:
        """The picture of a pair with a head set, at the strength of the search by default."""
        if heads is None:
            return Trial("", *pair, self.config.steps, 0.0, 0.0)
        scale, softness = strength or (self.config.scale, self.config.softness)
        return Trial(str(heads), *pair, self.config.steps, scale, softness)


def _pictures(images: Float[Tensor, "b 3 h w"]) -> list[Image.Image]:
    """Pictures of tensors in [0, 1], 8 bits a channel."""
    arrays = (images.permute(0, 2, 3, 1).cpu().float().numpy() * 255).round().astype("uint8")
    return [Image.fromarray(array) for array in arrays]
