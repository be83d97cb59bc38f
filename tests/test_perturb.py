import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from dit_heads.perturb import PERTURBATIONS, identity

SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 9), st.integers(1, 8))
SEEDS = st.integers(0, 2**31)


def drawn(shape, seed):
    """q, k, v [B, H, N, D] in float64 and U [B, H]."""
    g = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, *shape, generator=g, dtype=torch.float64)
    return q, k, v, torch.rand(shape[:2], generator=g, dtype=torch.float64)


@given(SHAPES, SEEDS)
def test_identity_equals_the_blended_map(shape, seed):
    q, k, v, u = drawn(shape, seed)
    a = torch.softmax(q @ k.transpose(-1, -2) / shape[-1] ** 0.5, -1)
    blended = (1 - u[..., None, None]) * a + u[..., None, None] * torch.eye(shape[2], dtype=torch.float64)
    assert_close(identity(F.scaled_dot_product_attention(q, k, v), q, k, v, u), blended @ v)


@given(SHAPES, SEEDS)
def test_softness_zero_changes_nothing_and_one_gives_the_values(shape, seed):
    q, k, v, _ = drawn(shape, seed)
    out = F.scaled_dot_product_attention(q, k, v)
    assert torch.equal(identity(out, q, k, v, torch.zeros(shape[:2], dtype=out.dtype)), out)
    assert torch.equal(identity(out, q, k, v, torch.ones(shape[:2], dtype=out.dtype)), v)


def test_only_weighted_heads_of_weighted_samples_move():
    q, k, v, _ = drawn((3, 4, 5, 8), 0)
    out = F.scaled_dot_product_attention(q, k, v)
    u = torch.zeros(3, 4, dtype=torch.float64)
    u[1, 2] = 0.5
    moved = (identity(out, q, k, v, u) != out).flatten(2).any(-1)
    assert torch.equal(moved, u > 0)


def test_gradients_reach_the_weights():
    q, k, v, u = drawn((2, 3, 4, 4), 1)
    out = F.scaled_dot_product_attention(q, k, v)
    assert torch.autograd.gradcheck(lambda u: identity(out, q, k, v, u), u.requires_grad_())


def test_what_there_is():
    assert set(PERTURBATIONS) == {"identity"}
