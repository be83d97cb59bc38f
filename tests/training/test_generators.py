"""Generators by key: all of their state depends on the key."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from dit_heads.training.generators import keyed_generator


def drawn_bits(*key: object, count: int = 1) -> list[int]:
    """The low 24 bits of the numbers that torch's CPU generator makes."""
    drawn = torch.empty(count, dtype=torch.int64).random_(0, 2**24, generator=keyed_generator(*key))
    return drawn.tolist()


def test_torch_continues_the_state_as_numpys_mersenne_twister_does():
    words = keyed_generator("a key", 3).get_state()[24 : 24 + 8 * 624].view(torch.int64).numpy()
    twister = np.random.MT19937()
    twister.state = {"bit_generator": "MT19937", "state": {"key": words.astype(np.uint32), "pos": 624}}
    assert drawn_bits("a key", 3, count=2000) == (twister.random_raw(2000) % 2**24).tolist()


def test_a_key_gives_the_same_numbers_again_and_another_key_gives_others():
    first = torch.randn(9, generator=keyed_generator(0, "set", 3))
    assert torch.equal(first, torch.randn(9, generator=keyed_generator(0, "set", 3)))
    for other in ((0, "set", 4), (1, "set", 3), (0, "prior", 3), ("0", "set", 3), (0, "set", 3, 0)):
        assert not torch.isin(first, torch.randn(9, generator=keyed_generator(*other))).any()


@given(st.integers(0, 2**64))
def test_numbers_are_spread_evenly(key: int):
    drawn = torch.rand(2000, generator=keyed_generator(key))
    assert abs(drawn.mean().item() - 0.5) < 0.04  # six standard errors


def test_keys_are_not_mistaken_for_each_other():
    """Of a hundred thousand seeds of 32 bits, one pair is the same on average. No key here is."""
    words = {
        keyed_generator(0, step, place).get_state()[24:56].numpy().tobytes()
        for step in range(40)
        for place in range(50)
    }
    assert len(words) == 40 * 50
