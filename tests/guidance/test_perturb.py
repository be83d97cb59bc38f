import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from dit_heads.guidance.perturb import Perturbation
from tests.tiny import KINDS, attention_map, perturbed_map

TEXT = 3
SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(TEXT + 1, 9), st.integers(1, 8))
SEEDS = st.integers(0, 2**31)
IMAGES = [slice(TEXT, None), slice(None, -TEXT)]  # text first as in FLUX, image first as in SD3


def drawn(shape, seed):
    """q, k, v [B, H, N, D] in float64 and U [B, H]."""
    g = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, *shape, generator=g, dtype=torch.float64)
    return q, k, v, torch.rand(shape[:2], generator=g, dtype=torch.float64)


@pytest.mark.parametrize("image", IMAGES, ids=["text first", "image first"])
@pytest.mark.parametrize("kind", KINDS, ids=str)
@given(shape=SHAPES, seed=SEEDS)
def test_every_perturbation_equals_its_blended_map(kind, image, shape, seed):
    q, k, v, u = drawn(shape, seed)
    blend = u[..., None, None]
    expected = ((1 - blend) * attention_map(q, k) + blend * perturbed_map(kind, q, k, image)) @ v
    assert_close(kind(F.scaled_dot_product_attention(q, k, v), q, k, v, u, image), expected)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_softness_zero_changes_nothing(kind):
    q, k, v, u = drawn((2, 3, 8, 4), 0)
    out = F.scaled_dot_product_attention(q, k, v)
    assert torch.equal(kind(out, q, k, v, torch.zeros_like(u), IMAGES[0]), out)


def test_softness_one_of_identity_gives_the_values():
    q, k, v, u = drawn((2, 3, 8, 4), 0)
    out = F.scaled_dot_product_attention(q, k, v)
    assert torch.equal(Perturbation()(out, q, k, v, torch.ones_like(u), IMAGES[0]), v)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_only_weighted_heads_of_weighted_samples_move(kind):
    q, k, v, u = drawn((3, 4, 8, 8), 0)
    out = F.scaled_dot_product_attention(q, k, v)
    u = torch.zeros_like(u)
    u[1, 2] = 0.5
    moved = (kind(out, q, k, v, u, IMAGES[0]) != out).flatten(2).any(-1)
    assert torch.equal(moved, u > 0)


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that an operation inside gives."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_no_map_of_all_tokens_by_all_tokens_is_made(kind):
    tokens = 1024
    q, k, v, u = drawn((1, 1, tokens, 4), 0)
    with Largest() as largest:
        kind(v, q, k, v, u, IMAGES[0])
    assert largest.elements < tokens**2 / 2


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_gradients_reach_the_weights(kind):
    q, k, v, u = drawn((2, 3, 5, 4), 1)
    out = F.scaled_dot_product_attention(q, k, v)
    assert torch.autograd.gradcheck(lambda u: kind(out, q, k, v, u, IMAGES[0]), u.requires_grad_())


def test_the_strongest_key_is_found_beyond_one_chunk_of_queries():
    q, k, v, u = drawn((1, 1, 700, 4), 2)
    out = F.scaled_dot_product_attention(q, k, v)
    got = Perturbation("arg_max")(out, q, k, v, torch.ones_like(u), slice(None))
    assert torch.equal(got, v[:, :, (q @ k.transpose(-1, -2)).argmax(-1)[0, 0]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("blur",), "perturbation: expected identity, uniform, .* got 'blur'"),
        (("identity", "text"), "region: expected joint, image, image_to_image, got 'text'"),
        (("uniform", "image_to_image"), "defined for identity only, got 'uniform'"),
        (("temperature",), "temperature: expected a number for 'temperature'"),
        (("identity", "joint", 2.0), "temperature: expected a number for 'temperature'"),
        (("temperature", "joint", 0.0), "a finite number above 0, got 0.0"),
        (("temperature", "joint", float("nan")), "a finite number above 0, got nan"),
    ],
)
def test_what_has_no_defined_map_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Perturbation(*arguments)
