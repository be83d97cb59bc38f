"""Objectives: any functions of pictures and prompts, where higher is better."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dit_heads.errors import InputError
from dit_heads.io.fingerprints import content_hash


class Objective(Protocol):
    """A score for each picture."""

    def __call__(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[str], /) -> Float[Tensor, " b"]:
        """The score of each picture.

        Args:
            images: pictures in [0, 1], as pipelines return them with `output_type="pt"`.
            prompts: one prompt per picture.
        """
        ...


def name_of(objective: Objective) -> str:
    """The name under which logs store an objective: its `name`, or MODULE:FUNCTION.

    Args:
        objective: any objective.

    Raises:
        InputError: for a lambda, a nested function or an object without a name, which logs could not tell
            apart.
    """
    name = getattr(objective, "name", None)
    if isinstance(name, str) and name:
        return name
    function = getattr(objective, "__qualname__", "<")
    if "<" in function or "." in function:
        raise InputError(
            f"objective: expected a `name` attribute or a function of a module, got {objective!r}"
        )
    return f"{objective.__module__}:{function}"


def checked_scores(
    objective: Objective, images: Float[Tensor, "b 3 h w"], prompts: Sequence[str]
) -> Float[Tensor, " b"]:
    """The scores of an objective in fp32, on the device of the pictures.

    Args:
        objective: any objective.
        images: pictures in [0, 1].
        prompts: one prompt per picture.

    Raises:
        InputError: unless there is one finite score per picture.
    """
    scores = objective(images, prompts)
    called = getattr(objective, "name", getattr(objective, "__qualname__", type(objective).__name__))
    if not isinstance(scores, Tensor) or scores.shape != (len(prompts),):
        came = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise InputError(f"objective: {called} gave {came}, expected a tensor ({len(prompts)},)")
    if not scores.isfinite().all():
        odd = prompts[int((~scores.isfinite()).nonzero()[0])]
        raise InputError(f"objective: {called} gave a score that is not finite for '{odd}'")
    return scores.to(images.device, torch.float32)


def parts_of(objective: Objective) -> dict[str, Any]:
    """Everything that an objective's scores depend on, by name.

    Args:
        objective: any objective.

    Returns:
        Its `parts` if it has them; otherwise the modules that it is or holds, or the hash of a function's
        source.
    """
    if (parts := getattr(objective, "parts", None)) is not None:
        return dict(parts)
    if isinstance(objective, nn.Module):
        return {"module": objective}
    if inspect.isfunction(objective):
        return {"source": _source(objective)}
    held = getattr(objective, "__dict__", {})
    return {name: part for name, part in held.items() if isinstance(part, nn.Module)}


def _source(function: Any) -> str | None:
    try:
        return content_hash(inspect.getsource(function))
    except OSError:  # typed at a prompt
        return None
