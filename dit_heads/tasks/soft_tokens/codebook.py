"""A codebook whose codes are moving averages of the vectors that are assigned to them (VQ-VAE, arXiv
1711.00937, appendix A.1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

EPSILON = 1e-5  # of the Laplace smoothing of counts
DEAD, REVIVED = 0.1, 0.2  # of the mean count: codes with less are revived, and then have this much


@dataclass(frozen=True)
class Usage:
    """How many codes of a codebook are in use.

    Attributes:
        share: of the codes, those that occur.
        perplexity: exponential of the entropy of their frequencies; the number of codes, if all are equally
            frequent.
    """

    share: float
    perplexity: float


class Codebook(nn.Module):
    """K codes of D numbers. They get no gradients: `observe` moves them.

    Parameters rather than buffers hold the state, so that checkpoints of the training loop have it. Codes
    that nothing was ever assigned to are zero and dead, so the first batch fills the codebook.

    Args:
        codes: number of codes, K.
        dimension: of each, D.
        decay: of the moving averages.
    """

    def __init__(self, codes: int, dimension: int, decay: float = 0.99) -> None:
        super().__init__()
        self.decay = decay
        self.embedding = nn.Parameter(torch.zeros(codes, dimension))
        self.embedding_sums = nn.Parameter(torch.zeros(codes, dimension))
        self.embedding_counts = nn.Parameter(torch.zeros(codes))

    @property
    def codes(self) -> Float[Tensor, "K D"]:
        """The codes, without gradients."""
        return self.embedding.detach()

    def nearest(self, vectors: Float[Tensor, "*n D"]) -> Int[Tensor, "*n"]:
        """The number of the code that is nearest to each vector, in fp32."""
        flat, codes = vectors.detach().flatten(0, -2).float(), self.codes.float()
        with torch.autocast(flat.device.type, enabled=False):
            distances = codes.pow(2).sum(1) - 2 * flat @ codes.T
        return distances.argmin(1).view(vectors.shape[:-1])

    def look_up(self, numbers: Int[Tensor, "*n"]) -> Float[Tensor, "*n D"]:
        """The codes of these numbers."""
        return self.codes[numbers]

    @torch.no_grad()
    def observe(self, vectors: Float[Tensor, "n D"], numbers: Int[Tensor, " n"]) -> None:
        """Move the codes towards the vectors that were assigned to them.

        Counts N and sums m are averaged, `N <- g N + (1 - g) n` and `m <- g m + (1 - g) sum z`, and a code is
        m / N. N is smoothed, so that a rare code does not fly off.

        Args:
            vectors: what was assigned.
            numbers: of the codes that they were assigned to.
        """
        one_hot = torch.zeros(len(numbers), len(self.embedding), device=vectors.device)
        one_hot.scatter_(1, numbers[:, None], 1.0)
        with torch.autocast(vectors.device.type, enabled=False):
            sums = one_hot.T @ vectors.detach().float()
        self.embedding_counts.lerp_(one_hot.sum(0), 1 - self.decay)
        self.embedding_sums.lerp_(sums, 1 - self.decay)
        self._refresh()

    @torch.no_grad()
    def revive(self, vectors: Float[Tensor, "n D"], generator: torch.Generator) -> int:
        """Put dead codes on random vectors of a batch. They die again unless they are used.

        Args:
            vectors: of the batch.
            generator: of the choice, on the CPU.

        Returns:
            The number of dead codes.
        """
        counts = self.embedding_counts
        dead = torch.nonzero(counts <= DEAD * counts.mean()).flatten()
        if len(dead):
            chosen = torch.randint(len(vectors), (len(dead),), generator=generator).to(vectors.device)
            count = (REVIVED * counts.mean()).clamp(min=1e-3)
            counts[dead] = count
            self.embedding_sums[dead] = vectors.detach()[chosen].float() * count
            self._refresh()
        return len(dead)

    def _refresh(self) -> None:
        counts = self.embedding_counts
        total = counts.sum()
        smoothed = (counts + EPSILON) / (total + len(counts) * EPSILON) * total
        self.embedding.copy_(self.embedding_sums / smoothed.clamp(min=1e-12)[:, None])


def usage(numbers: Int[Tensor, "*n"], codes: int) -> Usage:
    """How many of `codes` codes these tokens use."""
    frequency = torch.bincount(numbers.flatten(), minlength=codes).double()
    frequency = frequency / frequency.sum().clamp(min=1)
    entropy = -(frequency * frequency.clamp(min=1e-300).log()).sum()
    return Usage((frequency > 0).double().mean().item(), entropy.exp().item())
