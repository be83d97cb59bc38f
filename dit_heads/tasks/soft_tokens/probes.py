"""What single heads see: a linear probe a head, with split halves and a permutation null.

A probe is a ridge regression from the output of one head at an image token to what that token shows. What the
place of a token alone says, its mean over pictures, is taken away before, so the score of a head is the share
of the variance around that mean which its probe explains on pictures that it was not fitted to (R^2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dit_heads.errors import InputError
from dit_heads.training.generators import keyed_generator

RIDGE = 1e-3  # of the mean variance of a head's channels
FITTED = 2 / 3  # share of the pictures to which a probe is fitted


@dataclass(frozen=True)
class Target:
    """What N image tokens of S pictures show.

    Attributes:
        values: T numbers a token.
        counted: tokens that have them.
    """

    values: Float[Tensor, "s n t"]
    counted: Bool[Tensor, "s n"]


@dataclass(frozen=True)
class Probed:
    """The scores of all heads for one target.

    Attributes:
        scores: R^2 of each head; below 0 for a head that misleads.
        halves: the same from either half of the pictures alone.
        null: the largest score of any head with the targets of other pictures, in each permutation.
    """

    scores: Float[Tensor, " h"]
    halves: Float[Tensor, "2 h"]
    null: Float[Tensor, " p"]

    @property
    def agreement(self) -> float:
        """Correlation of the scores of the two halves over heads."""
        return float(torch.corrcoef(self.halves)[0, 1])

    @property
    def threshold(self) -> float:
        """The 95 % quantile of the null: what no head reaches by chance, all heads taken together."""
        return float(self.null.quantile(0.95))


def probed(
    features: Float[Tensor, "s n h d"], target: Target, *, permutations: int = 20, seed: int = 0
) -> Probed:
    """Probe every head for one target.

    Args:
        features: outputs of H heads of D channels.
        target: what the tokens show.
        permutations: number of times that pictures get the targets of others.
        seed: of the permutations.

    Raises:
        InputError: for fewer than 12 pictures, and where no token of a part of them has the target.
    """
    count = len(features)
    if count < 12:
        raise InputError(f"pictures: expected 12 at least, to fit and to test on halves of them, got {count}")
    everything, order = torch.arange(count), torch.arange(count)
    halves = torch.stack([scores(features, target, order[k::2]) for k in (0, 1)])
    null = []
    for k in range(permutations):
        mixed = torch.randperm(count, generator=keyed_generator("null", seed, k))
        other = Target(target.values[mixed], target.counted[mixed])
        null.append(scores(features, other, everything).max())
    return Probed(scores(features, target, everything), halves, torch.stack(null))


def scores(features: Float[Tensor, "s n h d"], target: Target, pictures: Tensor) -> Float[Tensor, " h"]:
    """R^2 of each head on the last third of some pictures, of probes fitted to the others.

    Args:
        features: outputs of all heads.
        target: what the tokens show.
        pictures: numbers of the pictures that are used.

    Raises:
        InputError: no token of either part has the target.
    """
    cut = round(FITTED * len(pictures))
    fit, test = pictures[:cut], pictures[cut:]
    mean = _means_of_places(target, fit)
    x, y = _counted(features, target, mean, fit)
    weights, centre = _ridge(x, y)
    x, y = _counted(features, target, mean, test)
    found = torch.einsum("nhd,hdt->nht", x - centre, weights)
    left = (y[:, None] - found).pow(2).sum((0, 2))
    return 1 - left / y.pow(2).sum().clamp(min=1e-12)


def _means_of_places(target: Target, pictures: Tensor) -> Float[Tensor, "n t"]:
    """The mean of each place over the pictures in which it has the target; of all places, where none has."""
    values, counted = target.values[pictures].double(), target.counted[pictures].double()[..., None]
    total, count = (values * counted).sum(0), counted.sum(0)
    overall = total.sum(0) / count.sum(0).clamp(min=1)
    return torch.where(count > 0, total / count.clamp(min=1), overall)


def _counted(
    features: Float[Tensor, "s n h d"], target: Target, mean: Float[Tensor, "n t"], pictures: Tensor
) -> tuple[Float[Tensor, "m h d"], Float[Tensor, "m t"]]:
    """The tokens of some pictures that have the target, and the target without the mean of its place."""
    where = target.counted[pictures]
    if not where.any():
        raise InputError(
            "target: expected a token or more that has it in each part of the pictures, got none"
        )
    return features[pictures][where].double(), (target.values[pictures].double() - mean)[where]


def _ridge(
    x: Float[Tensor, "m h d"], y: Float[Tensor, "m t"]
) -> tuple[Float[Tensor, "h d t"], Float[Tensor, "h d"]]:
    """The ridge regression of each head, and the centre of its features."""
    centre = x.mean(0)
    x = x - centre
    gram = torch.einsum("mhd,mhe->hde", x, x)
    scale = gram.diagonal(dim1=1, dim2=2).mean(1)
    gram = gram + RIDGE * scale.clamp(min=1e-12)[:, None, None] * torch.eye(x.shape[2], dtype=x.dtype)
    return torch.linalg.solve(gram, torch.einsum("mhd,mt->hdt", x, y)), centre


def best(found: Mapping[str, Probed], count: int) -> list[int]:
    """The heads with the best mean rank over all targets.

    Args:
        found: the scores, by target.
        count: number of heads.
    """
    ranks = torch.stack([each.scores.argsort().argsort().double() for each in found.values()])
    return ranks.mean(0).argsort(descending=True)[:count].tolist()
