import math

import pytest
import torch

from dit_heads.errors import InputError
from dit_heads.tasks.soft_tokens.soft import entropy, probabilities, soft_tokens

LOGITS = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))
CODES = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))


def test_soft_tokens_become_hard_ones_as_tau_grows():
    hard = CODES[LOGITS.argmax(-1)]
    assert torch.equal(soft_tokens(probabilities(LOGITS, math.inf), CODES), hard)
    assert torch.allclose(soft_tokens(probabilities(LOGITS, 1e5), CODES), hard, atol=1e-5)
    apart = [(soft_tokens(probabilities(LOGITS, tau), CODES) - hard).norm() for tau in (0.5, 2.0, 20.0)]
    assert apart[0] > apart[1] > apart[2]


def test_soft_tokens_are_means_of_codes():
    weights = (0.8 * LOGITS.double()).exp()
    expected = (weights[..., None] * CODES.double()).sum(-2) / weights.sum(-1, keepdim=True)
    assert torch.allclose(soft_tokens(probabilities(LOGITS, 0.8), CODES).double(), expected, atol=1e-6)


def test_entropy_is_a_share_of_the_largest():
    even, sure = torch.full((1, 8), 1 / 8), torch.eye(8)[:1]
    assert entropy(even).item() == pytest.approx(1, abs=1e-6) and entropy(sure).item() == pytest.approx(0)


@pytest.mark.parametrize("tau", [0.0, -1.0, math.nan])
def test_tau_is_above_zero(tau: float):
    with pytest.raises(InputError, match="tau: expected a number above 0"):
        probabilities(LOGITS, tau)
