"""The settings of a search, and its prompts; imports nothing heavy, as the command reads it first."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from string import Formatter
from typing import Annotated, Literal

from dit_heads.errors import InputError
from dit_heads.settings import Field, settings

Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]


@settings
class HuntConfig:
    """The settings of a search, with the names of arXiv 2506.10978, algorithm 1, in brackets."""

    method: Literal["exhaustive", "fast"] = "exhaustive"
    """Search algorithm: exhaustive draws pictures with every head (algorithm 1); fast screens all heads by
    gradients, then draws with the best by successive halving."""
    share: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Pictures that a fast search may draw, as a share of those of an exhaustive one."""
    rounds: Count = 1
    """Number of rounds [R]."""
    per_round: Count = 3
    """Number of heads that each round adds [k]."""
    scale: Annotated[float, Field(gt=0)] = 3.0
    """Head guidance scale of the pictures [w]."""
    softness: Annotated[float, Field(gt=0, le=1)] = 1.0
    """How far heads are perturbed, above 0 and up to 1 [u]."""
    steps: Annotated[int, Field(ge=1, le=1000)] = 20
    """Number of denoising steps of a picture."""
    guidance_scale: Annotated[float, Field(ge=0)] = 1.0
    """Classifier-free guidance scale of the pictures. 1 is off, as in the paper's searches."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0,)
    """Seeds. Each is drawn with every prompt, which makes M pairs."""
    batch: Count = 16
    """Number of pictures that are drawn side by side."""
    micro_batch: Count | None = None
    """Number of pictures that a fast search differentiates side by side. Default: as many as have 2 million
    pixels (two of 1024 x 1024), at most a batch."""
    perturbation: str = "identity"
    """Perturbation of heads: identity, uniform, mean_query, arg_max or temperature."""
    region: str = "joint"
    """Tokens that are perturbed: joint, image or image_to_image."""
    temperature: Annotated[float, Field(gt=0)] | None = None
    """Temperature of the perturbation of that name."""

    def __post_init__(self) -> None:
        if (self.perturbation, self.region, self.temperature) != ("identity", "joint", None):
            from dit_heads.guidance.perturb import Perturbation  # imports torch

            Perturbation(self.perturbation, self.region, self.temperature)


def style_prompts(template: str, styles: Sequence[str], contents: Sequence[str]) -> list[str]:
    """Fill a template with every style and content.

    Args:
        template: such as "{style}, {content}".
        styles: texts for the first.
        contents: texts for the second.

    Raises:
        InputError: if the template does not hold just these two.
    """
    try:
        names = {name for _, name, _, _ in Formatter().parse(template) if name is not None}
    except ValueError:
        names = set()
    if names != {"style", "content"}:
        raise InputError(
            f"template: expected {{style}} and {{content}} in it, and no other braces, got {template!r}"
        )
    return [template.format(style=s, content=c) for s, c in itertools.product(styles, contents)]


def read_prompts(path: Path) -> list[str]:
    """Read prompts: the lines of a text file that are not empty.

    Raises:
        InputError: if there is none, or the file is not UTF-8.
    """
    try:
        prompts = [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"prompts: cannot read '{path}': {error}") from error
    if not prompts:
        raise InputError(f"prompts: '{path}' holds none")
    return prompts
