"""Scenes that need no renderer: squares before a slope under a sky, of 32 x 32 pixels."""

import numpy as np
import torch

from dit_heads.embedded.soft_tokens.truth import Truth
from dit_heads.tasks.annotations import Instances
from dit_heads.tasks.soft_tokens.sequences import Vocabulary, objects_of
from dit_heads.tasks.soft_tokens.tokenizer import Tokenizer, TokenizerConfig

SIDE = 32
WORDS = Vocabulary(
    classes=("cube", "cone"),
    depth_tokens=16,
    mask_tokens=4,
    depth_codes=12,
    mask_codes=10,
    bins=33,
    objects=2,
)
DEPTH = TokenizerConfig("depth", SIDE, 2, (8, 8, 16), 12, 6)
MASK = TokenizerConfig("mask", 16, 2, (8, 8, 16), 10, 6)


def truth(count: int = 12) -> Truth:
    """Scenes with one or two squares, the nearer one first in `ids`."""
    rng = np.random.default_rng(0)
    ids = np.zeros((count, SIDE, SIDE), np.uint8)
    for k in range(count):
        for number in range(1, 2 + k % 2):
            x, y = rng.integers(2, SIDE - 10, 2)
            ids[k, y : y + 8, x : x + 8] = number
    slope = np.broadcast_to(np.linspace(40, 4, SIDE)[:, None], (count, SIDE, SIDE)).astype(np.float32)
    metres = np.where(ids > 0, 3.0 * ids, slope)
    known = np.where((ids == 0) & (np.arange(SIDE)[:, None] < 6), 2, 1).astype(np.uint8)
    found = []
    for each in ids:
        numbers = [n for n in (1, 2) if (each == n).any()]
        found.append(Instances(np.stack([each == n for n in numbers]), ("cube", "cone")[: len(numbers)]))
    return Truth(
        np.zeros((count, SIDE, SIDE, 3), np.uint8),
        torch.from_numpy(np.where(known == 1, metres, 0)).half(),
        torch.from_numpy(known),
        torch.from_numpy(ids),
        objects_of(found, WORDS),
    )


def tokenizer(config: TokenizerConfig) -> Tokenizer:
    """A random tokenizer whose codebook is filled."""
    torch.manual_seed(0)
    made = Tokenizer(config)
    made.codebook.embedding.data.normal_()
    return made
