"""AdamW, optionally in 8 bits, or Muon for the weight matrices. State is stored tensor by tensor."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dit_heads.compat import copy_all, muon_group
from dit_heads.errors import InputError

SCALER = "(scaler)"  # a name that no weight can have
STACKED = 2**24  # elements of the matrices that Muon orthogonalises together, at most


class Muon(torch.optim.Muon):
    """torch's Muon, with its matrix products in `dtype`.

    torch's own are in bf16 everywhere. On CPUs without bf16 they take longer than the gradients."""

    dtype = torch.float32

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Take one step by the gradients of the weights. Matrices of one shape are orthogonalised together,
        which takes a GPU a fraction of the kernels."""
        assert closure is None, "a closure is not called"
        for group in self.param_groups:
            alike: dict[torch.Size, list[tuple[Tensor, Tensor, Tensor]]] = defaultdict(list)
            for matrix in muon_group(self, group):
                alike[matrix[0].shape].append(matrix)
            for shape, found in alike.items():
                together = max(1, STACKED // shape.numel())
                for first in range(0, len(found), together):
                    self._move(found[first : first + together], group)

    def _move(self, matrices: Sequence[tuple[Tensor, Tensor, Tensor]], group: Mapping[str, Any]) -> None:
        """Apply the gradients of weights of one shape, given with their momenta."""
        weights, gradients, momenta = (torch.stack(parts) for parts in zip(*matrices, strict=True))
        momenta.lerp_(gradients, 1 - group["momentum"])
        updates = orthogonalised(gradients.lerp(momenta, group["momentum"]).to(self.dtype), group)
        weights.mul_(1 - group["lr"] * group["weight_decay"])
        weights.add_(updates, alpha=-group["lr"] * 0.2 * max(weights.shape[1:]) ** 0.5)
        copy_all([weight for weight, _, _ in matrices], weights)
        copy_all([momentum for _, _, momentum in matrices], momenta)


def orthogonalised(matrices: Float[Tensor, "n r c"], settings: Mapping[str, Any]) -> Float[Tensor, "n r c"]:
    """Move the singular values of matrices to near 1, by Newton and Schulz's iteration with the coefficients
    of https://kellerjordan.github.io/posts/muon.

    Args:
        matrices: of one shape.
        settings: a parameter group of torch's Muon.
    """
    a, b, c = settings["ns_coefficients"]
    is_wide = matrices.shape[1] <= matrices.shape[2]
    wide = matrices if is_wide else matrices.mT
    x = wide / wide.flatten(1).norm(dim=1).clamp(min=settings["eps"])[:, None, None]
    for _ in range(settings["ns_steps"]):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if is_wide else x.mT


class Optimizer:
    """An optimiser of named weights.

    "muon" orthogonalises the updates of weight matrices (https://kellerjordan.github.io/posts/muon, with the
    step size matched to AdamW's, arXiv 2502.16982). Convolutions count as matrices [out, in * kernel].
    Embeddings, biases and gains stay with AdamW.

    Args:
        weights: the trained parameters by name.
        kind: "adamw", "adamw8bit" (moments in 8 bits by bitsandbytes, on a GPU) or "muon".
        rate: peak learning rate.
        betas: of AdamW.
        weight_decay: of both.
        dtype: number format of Muon's matrix products.
        scaler: of losses in fp16. Until `unscale`, gradients are those of the scaled loss. Steps in which
            they overflow are skipped.

    Raises:
        InputError: for another `kind`, and for one that cannot be had.
    """

    def __init__(
        self,
        weights: Mapping[str, nn.Parameter],
        *,
        kind: str,
        rate: float,
        betas: tuple[float, float],
        weight_decay: float,
        dtype: torch.dtype = torch.float32,
        scaler: Any = None,
    ) -> None:
        if kind not in ("adamw", "adamw8bit", "muon"):
            raise InputError(f"optimizer: expected 'adamw', 'adamw8bit' or 'muon', got {kind!r}")
        if kind == "muon" and scaler is not None:
            raise InputError("optimizer: 'muon' trains in bf16 or without mixed precision, not in fp16")
        self.rate, self.weights = rate, weights
        self.scaler: Any = scaler
        hidden = {n for n, p in weights.items() if kind == "muon" and p.ndim >= 2 and not _is_embedding(n)}
        self.matrices = {
            n: _as_stored(w.detach(), w).view(len(w), -1) for n, w in weights.items() if n in hidden
        }
        plain = [p for n, p in weights.items() if n not in hidden]
        groups = [{"params": plain}]  # a group may be empty, a list of parameters may not
        options: dict[str, Any] = {"lr": rate, "betas": betas, "weight_decay": weight_decay}
        if kind == "adamw8bit":
            self.adamw = require_bitsandbytes("optimizer").optim.AdamW8bit(groups, **options)
        else:
            self.adamw = torch.optim.AdamW(groups, fused=True, **options)
        self.eight_bit = kind == "adamw8bit"
        self.muon = None
        if self.matrices:
            self.muon = Muon(self.matrices.values(), lr=rate, weight_decay=weight_decay)
            self.muon.dtype = dtype

    def unscale(self) -> None:
        """Make the gradients those of the loss itself."""
        if self.scaler is not None:
            self.scaler.unscale_(self.adamw)

    def step(self, share: float) -> None:
        """Apply the gradients at `share` of the peak rate, and clear them."""
        optimizers = [self.adamw] if self.muon is None else [self.adamw, self.muon]
        for name, matrix in self.matrices.items():
            weight = self.weights[name]
            gradient = weight.grad
            matrix.grad = None if gradient is None else _as_stored(gradient, weight).reshape(matrix.shape)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.rate * share
            if self.scaler is None:
                optimizer.step()
            else:
                self.scaler.step(optimizer)
        if self.scaler is not None:
            self.scaler.update()
        for weight in self.weights.values():
            weight.grad = None

    def _states(self) -> Iterator[tuple[str, dict[str, Tensor]]]:
        for name, weight in self.weights.items():
            if name in self.matrices and self.muon is not None:
                yield name, self.muon.state[self.matrices[name]]
            else:
                yield name, self.adamw.state[weight]

    def state(self) -> dict[str, Tensor]:
        """Every moment as `<key>/<weight>`, and where there is one, the scaler's state as `<key>/scaler`."""
        found = {f"{key}/{name}": value for name, state in self._states() for key, value in state.items()}
        if self.scaler is not None:
            found |= {f"{key}/{SCALER}": value for key, value in self.scaler.state_dict().items()}
        # In 8 bits all weights share one table of levels, which a file could not hold twice.
        shared = self.eight_bit
        tensors = {label: torch.as_tensor(value) for label, value in found.items()}
        return {label: t.clone() if shared else t for label, t in tensors.items()}

    def restore(self, stored: Mapping[str, Tensor]) -> None:
        """Take over a state that `state` returned."""
        states = dict(self._states())
        scaler: dict[str, float] = {}
        for label, value in stored.items():
            key, name = label.split("/", 1)
            if name == SCALER:
                scaler[key] = value.item()
            elif key == "step" and self.eight_bit:
                count: Any = int(value)
                states[name][key] = count
            else:
                states[name][key] = value.to(self.weights[name].device)
        if self.scaler is not None and scaler:
            self.scaler.load_state_dict(scaler)


def require_bitsandbytes(argument: str) -> Any:
    """The bitsandbytes library.

    Args:
        argument: that asked for it, which the error names.

    Raises:
        InputError: the library or a GPU is missing.
    """
    if not torch.cuda.is_available():
        raise InputError(f"{argument}: 8 bits need a CUDA GPU, this machine has none")
    try:
        import bitsandbytes  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError(f"{argument}: 8 bits need bitsandbytes: pip install bitsandbytes") from error
    return bitsandbytes


def _as_stored(values: Tensor, weight: Tensor) -> Tensor:
    """`values` with the axes in the order in which `weight` lies in memory, so that the weight has a view as
    a matrix. Orthogonalisation does not care about the order of a matrix's columns."""
    if weight.is_contiguous() or not weight.is_contiguous(memory_format=torch.channels_last):
        return values
    return values.permute(0, 2, 3, 1)


def _is_embedding(name: str) -> bool:
    return "embed" in name or "shared" in name or name in ("place", "query")
