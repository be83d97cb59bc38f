"""Kinds of settings: numbers in a range, folders, precisions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from pydantic import AfterValidator, BeforeValidator
from pydantic_core import PydanticCustomError

from dit_heads.settings import Field

_EMPTY = "expected a path that is not empty"


def _not_empty(value: Any) -> Any:
    """ "" would be the current folder."""
    if value == "":
        raise PydanticCustomError(_EMPTY, _EMPTY)  # tyro shows an error's first argument
    return value


def _switched_off(value: Any) -> Any:
    """YAML reads `precision: no` as false."""
    return "no" if value is False else value


Inline = tyro.conf.arg(name="")
Count = Annotated[int, Field(ge=1)]
CountOrNone = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
NotNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Side = Annotated[int, Field(ge=16, le=8192, multiple_of=16)]
Folder = Annotated[
    Path,
    BeforeValidator(_not_empty),
    AfterValidator(Path.expanduser),
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="FOLDER",
        instance_from_str=lambda words: Path(_not_empty(words[0])),
        is_instance=lambda value: isinstance(value, Path),
        str_from_instance=lambda path: [str(path)],
    ),
]
Precision = Annotated[Literal["auto", "no", "bf16", "fp16"], BeforeValidator(_switched_off)]
