"""Random numbers by key: the same key gives the same numbers, in any process and order."""

from __future__ import annotations

import hashlib

import numpy as np
import torch

_WORDS = 624  # of the state of a Mersenne twister, the generator of torch's CPU


def keyed_generator(*key: object) -> torch.Generator:
    """A generator for what `key` names.

    A seed could not tell many keys apart, because torch's CPU generator reads 32 bits of it. The whole state
    is filled instead, by numpy's SeedSequence from a hash of the key.

    Args:
        key: anything whose `repr` names it, such as a seed, a word and a step.
    """
    entropy = int.from_bytes(hashlib.sha256(repr(key).encode()).digest(), "little")
    words = np.random.SeedSequence(entropy).generate_state(_WORDS, np.uint32)
    words[0] = 0x80000000  # as numpy does it: the state is never all zeros
    generator = torch.Generator().manual_seed(0)
    state = generator.get_state()  # seed, (left, seeded), next, then the words, each in 8 bytes
    state[24 : 24 + 8 * _WORDS].view(torch.int64).copy_(torch.from_numpy(words.astype(np.int64)))
    generator.set_state(state)
    return generator
