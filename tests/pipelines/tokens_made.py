"""A solver and tokenizers of random weights for the embedded SD3, and for other small ones."""

from pathlib import Path
from typing import Any

import torch

from dit_heads.tasks.soft_tokens.features import FeatureConfig
from dit_heads.tasks.soft_tokens.files import save_module
from dit_heads.tasks.soft_tokens.reading import SoftReader
from dit_heads.tasks.soft_tokens.sequences import Vocabulary
from dit_heads.tasks.soft_tokens.solver import Solver, SolverConfig
from dit_heads.tasks.soft_tokens.tokenizer import Tokenizer, TokenizerConfig

HEADS = FeatureConfig("L1H0-2", levels=(0.1, 0.3))
WORDS = Vocabulary(
    classes=("cube", "cone"), depth_tokens=16, mask_tokens=4, depth_codes=12, mask_codes=10, bins=33
)
SMALL: dict[str, Any] = {"width": 16, "heads": 2, "encoder_layers": 1, "decoder_layers": 1}


def parts(size: int = 128, channels: int = 96) -> SoftReader:
    """A reader of pictures of a size, from so many channels of features."""
    torch.manual_seed(3)
    shapes = (
        TokenizerConfig("depth", size, size // 16, (8, 8, 16), 12, 6),
        TokenizerConfig("mask", 16, 2, (8, 8, 16), 10, 6),
    )
    depth, mask = (Tokenizer(shape).eval() for shape in shapes)
    for each in (depth, mask):
        each.codebook.embedding.data.normal_()
    config = SolverConfig(
        vocabulary=WORDS, features=HEADS, size=size, channels=channels, kept=channels, **SMALL
    )
    solver = Solver(config).eval()
    for parameter in solver.outputs.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return SoftReader(solver, depth, mask)


def saved(reader: SoftReader, folder: Path) -> Path:
    """The files of a reader in a folder."""
    for name in ("solver", "depth", "mask"):
        part = getattr(reader, name)
        save_module(part, part.config, folder / f"{name}.safetensors")
    return folder
