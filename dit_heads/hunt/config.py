"""How a search goes, and its prompts; imports nothing heavy, as the command reads it first."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dit_heads.errors import InputError

METHODS = ("exhaustive", "fast")


@dataclass(frozen=True)
class HuntConfig:
    """The settings of a search, with the names of arXiv 2506.10978, algorithm 1, in brackets."""

    method: str = "exhaustive"
    """exhaustive (algorithm 1 to the letter) or fast: screened by gradients, then successive halving"""
    share: float = 0.1
    """of the pictures of an exhaustive search, what a fast one may draw"""
    rounds: int = 1
    """rounds of choosing [R]"""
    per_round: int = 3
    """heads that each round adds [k]"""
    scale: float = 3.0
    """head guidance scale of the pictures [w]"""
    softness: float = 1.0
    """how far heads are perturbed, from 0 to 1 [u]"""
    steps: int = 20
    """denoising steps of a picture"""
    guidance_scale: float = 1.0
    """classifier-free guidance; 1 is off, as in the paper's searches"""
    seeds: tuple[int, ...] = (0,)
    """each is drawn with every prompt, M pairs in all"""
    batch: int = 16
    """pictures that are drawn side by side"""
    perturbation: str = "identity"
    """what is done to heads: identity, uniform, mean_query or arg_max"""
    region: str = "joint"
    """for which tokens: joint, image or image_to_image"""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(f"method: expected one of {', '.join(METHODS)}, got {self.method!r}")
        if not 0 < self.share <= 1:
            raise InputError(f"share: expected more than 0 and at most 1, got {self.share}")
        for name in ("rounds", "per_round", "steps", "batch"):
            if (value := getattr(self, name)) < 1:
                raise InputError(f"{name}: expected at least 1, got {value}")
        if not self.seeds:
            raise InputError("seeds: expected at least one, got none")


def style_prompts(template: str, styles: Sequence[str], contents: Sequence[str]) -> list[str]:
    """A template such as "{style}, {content}" with every style and content. Raises ValueError if it lacks
    either."""
    if "{style}" not in template or "{content}" not in template:
        raise InputError(f"template: expected {{style}} and {{content}} in it, got {template!r}")
    return [template.format(style=s, content=c) for s, c in itertools.product(styles, contents)]


def read_prompts(path: Path) -> list[str]:
    """The lines of a text file that are not empty. Raises ValueError if there is none."""
    prompts = [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
    if not prompts:
        raise InputError(f"prompts: '{path}' holds none")
    return prompts
