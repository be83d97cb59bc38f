"""Model families: all that is particular to a transformer class, one module a family.

A new family is one module beside `sd3` and `flux`, and one line in `FAMILIES`.
"""

from typing import Any

from torch import nn

from dit_heads.errors import InputError
from dit_heads.families._family import Family, HeadLayout
from dit_heads.families.flux import FLUX
from dit_heads.families.sd3 import SD3

__all__ = ["FAMILIES", "Family", "HeadLayout", "family_of", "layout_of"]

FAMILIES: dict[str, Family] = {
    "SD3Transformer2DModel": SD3,
    "FluxTransformer2DModel": FLUX,
}
"""Families by the name of their transformer's class."""


def family_of(transformer: nn.Module | type) -> Family:
    """The family of a transformer or of a class, or of what it is a subclass of.

    Raises:
        InputError: if it is of no family in `FAMILIES`.
    """
    given = transformer if isinstance(transformer, type) else type(transformer)
    for kind in given.__mro__:
        if kind.__name__ in FAMILIES:
            return FAMILIES[kind.__name__]
    raise InputError(f"transformer: expected one of {', '.join(FAMILIES)}, got {given.__name__}")


def layout_of(transformer: Any) -> HeadLayout:
    """The blocks and heads of a transformer. Raises InputError as `family_of`."""
    return family_of(transformer).layout(transformer)
