"""The checker of shape annotations that `tests/conftest.py` hooks into every import of the package."""

import re
from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype

_SHAPE = re.compile(r"\b(?:Float|Int|UInt|Bool|Shaped|Num)\d*\[")
_beartype: Any = beartype(conf=BeartypeConf(is_pep484_tower=True))


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Check the annotations of a function that are shapes of tensors; the type checker reads the others."""
    shapes = {name: hint for name, hint in function.__annotations__.items() if _SHAPE.search(str(hint))}
    if not shapes:
        return function
    function.__annotations__ = shapes
    return _beartype(function)
