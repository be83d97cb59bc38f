"""The codebook's moving averages, against the same in numpy, code by code."""

import numpy as np
import pytest
import torch

from dit_heads.tasks.soft_tokens.codebook import EPSILON, Codebook, usage

K, D, DECAY = 5, 3, 0.9


def by_hand(batches: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Counts and codes after some batches of vectors and the codes they are assigned to."""
    counts, sums = np.zeros(K), np.zeros((K, D))
    for vectors, numbers in batches:
        for k in range(K):
            mine = vectors[numbers == k]
            counts[k] = DECAY * counts[k] + (1 - DECAY) * len(mine)
            sums[k] = DECAY * sums[k] + (1 - DECAY) * mine.sum(0)
    smooth = (counts + EPSILON) / (counts.sum() + K * EPSILON) * counts.sum()
    return counts, sums / smooth[:, None]


def test_codes_follow_the_moving_average_of_their_vectors():
    rng = np.random.default_rng(0)
    batches = [(rng.normal(size=(40, D)), rng.integers(K, size=40)) for _ in range(4)]
    book = Codebook(K, D, DECAY)
    for vectors, numbers in batches:
        book.observe(torch.from_numpy(vectors).float(), torch.from_numpy(numbers))
    counts, codes = by_hand(batches)
    assert np.allclose(book.embedding_counts.detach(), counts, atol=1e-5)
    assert np.allclose(book.codes, codes, atol=1e-5)


def test_the_nearest_code_is_the_one_at_the_smallest_distance():
    torch.manual_seed(0)
    book = Codebook(K, D)
    book.embedding.data.normal_()
    vectors = torch.randn(4, 6, D)
    expected = (vectors[..., None, :] - book.codes).norm(dim=-1).argmin(-1)
    assert torch.equal(book.nearest(vectors), expected)
    assert torch.equal(book.look_up(expected)[2, 3], book.codes[expected[2, 3]])


def test_dead_codes_move_to_vectors_of_the_batch_and_others_stay():
    book = Codebook(K, D, DECAY)
    torch.manual_seed(1)
    vectors = torch.randn(30, D)
    for _ in range(3):  # codes 3 and 4 get nothing
        book.observe(vectors, torch.arange(30) % 3)
    before = book.codes.clone()
    assert book.revive(vectors, torch.Generator().manual_seed(0)) == 2
    assert torch.allclose(book.codes[:3], before[:3], atol=1e-3)
    for code in book.codes[3:]:
        assert (vectors - code).norm(dim=-1).min() < 1e-3
    assert book.revive(vectors, torch.Generator().manual_seed(0)) == 0


def test_an_empty_codebook_is_filled_by_the_first_batch():
    book = Codebook(K, D)
    vectors = torch.randn(30, D, generator=torch.Generator().manual_seed(0))
    assert book.revive(vectors, torch.Generator().manual_seed(0)) == K
    assert all((vectors - code).norm(dim=-1).min() < 1e-3 for code in book.codes)


@pytest.mark.parametrize(
    ("numbers", "share", "perplexity"), [([0, 1, 2, 3], 1.0, 4.0), ([2, 2, 2, 2], 0.25, 1.0)]
)
def test_usage_counts_codes(numbers: list[int], share: float, perplexity: float):
    found = usage(torch.tensor(numbers), 4)
    assert (found.share, found.perplexity) == pytest.approx((share, perplexity))
