"""Model families. One module holds everything that is particular to a family of transformers.

To add a family, write one module beside `sd3` and `flux` and add one line to `FAMILIES`.
"""

from typing import Any

from torch import nn

from dit_heads.errors import InputError
from dit_heads.families._family import (
    Family,
    HeadLayout,
    InputProjection,
    LoraDialect,
    Pipelines,
    Residuals,
    Training,
    class_names,
)
from dit_heads.families.calls import Arguments, Call, Carrier, Conditioning, Keywords
from dit_heads.families.flux import FLUX
from dit_heads.families.sd3 import SD3

__all__ = [
    "FAMILIES",
    "Arguments",
    "Call",
    "Carrier",
    "Conditioning",
    "Family",
    "HeadLayout",
    "InputProjection",
    "Keywords",
    "LoraDialect",
    "Pipelines",
    "Residuals",
    "Training",
    "class_names",
    "family_of",
    "layout_of",
    "pipeline_names",
    "pipelines_of",
    "training_of",
]

FAMILIES: dict[str, Family] = {
    "SD3Transformer2DModel": SD3,
    "FluxTransformer2DModel": FLUX,
}
"""The families by class name of their transformer."""


def family_of(transformer: nn.Module | type) -> Family:
    """The family of a transformer.

    Args:
        transformer: a transformer or its class; subclasses belong to the family of their parent.

    Raises:
        InputError: for a class that is in no family.
    """
    given = transformer if isinstance(transformer, type) else type(transformer)
    for name in class_names(given):
        if name in FAMILIES:
            return FAMILIES[name]
    raise InputError(f"transformer: expected one of {', '.join(FAMILIES)}, got {given.__name__}")


def layout_of(transformer: Any) -> HeadLayout:
    """The blocks and heads of a transformer.

    Args:
        transformer: a transformer, which may be on the meta device.

    Raises:
        InputError: as `family_of`.
    """
    return family_of(transformer).layout(transformer)


def training_of(transformer: nn.Module) -> Training:
    """How transformers of this family are trained.

    Args:
        transformer: a transformer.

    Raises:
        InputError: for a family that can only be guided.
    """
    family = family_of(transformer)
    if family.training is None:
        raise InputError(f"transformer: expected one of a family that can be trained, got {family.name}")
    return family.training


def pipelines_of(transformer: nn.Module) -> Pipelines:
    """How the pipelines of this transformer's family generate pictures.

    Args:
        transformer: a transformer.

    Raises:
        InputError: for a family that can only be guided.
    """
    family = family_of(transformer)
    if family.pipelines is None:
        raise InputError(f"pipe: expected one of a family whose pipelines are known, got {family.name}")
    return family.pipelines


def pipeline_names(*, fill: bool = False) -> tuple[str, ...]:
    """Class names of the diffusers pipelines that we can drive.

    Args:
        fill: whether to include the pipelines that paint inside of a mask.
    """
    known = [family.pipelines for family in FAMILIES.values() if family.pipelines]
    fillers = [each.fill for each in known if fill and each.fill]
    return tuple(dict.fromkeys([*(each.text_to_image for each in known), *fillers]))
