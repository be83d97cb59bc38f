"""What guidance adds to a prediction."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from dit_heads.errors import InputError


def difference(
    conditional: Float[Tensor, "r ..."], perturbed: Float[Tensor, "r ..."], scale: float, rescale: float
) -> Float[Tensor, "r ..."]:
    """scale * (conditional - perturbed), arXiv 2506.10978, with the standard deviation brought back.

    Args:
        conditional: prediction for the R conditional rows.
        perturbed: prediction for the same rows with perturbed heads.
        scale: w.
        rescale: share in [0, 1] of conditional + difference that gets the standard deviation of conditional,
            each row for itself (arXiv 2305.08891, eq. 15 and 16).

    Returns:
        The difference in the dtype of `conditional`, computed in float32 or better.
    """
    exact = torch.promote_types(conditional.dtype, torch.float32)
    clean = conditional.to(exact)
    added = scale * (clean - perturbed.to(exact))
    if rescale:
        guided = clean + added
        dims = list(range(1, guided.ndim))
        ratio = clean.std(dims, keepdim=True) / guided.std(dims, keepdim=True)
        added = added + rescale * (ratio - 1) * guided
    return added.to(conditional.dtype)


def added_to_every_tile(
    prediction: Float[Tensor, "b ..."], difference: Float[Tensor, "r ..."]
) -> Float[Tensor, "b ..."]:
    """A prediction of B = k R rows with the difference of R rows added to each of its k tiles.

    Raises:
        InputError: if B is no multiple of R.
    """
    if len(prediction) % len(difference):
        raise InputError(
            f"pipe: expected calls of a multiple of {len(difference)} rows in a step, got {len(prediction)}"
        )
    return (prediction.unflatten(0, (-1, len(difference))) + difference).flatten(0, 1)
