"""AdamW alone, or with Muon for the weight matrices; both with state that can be stored tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


class Descent:
    """One optimiser step over named weights, at a share of the peak rate.

    `muon` orthogonalises the updates of weight matrices (torch's Muon,
    https://kellerjordan.github.io/posts/muon; with the step size matched to AdamW's, arXiv 2502.16982);
    convolutions count as matrices of [out, in * kernel]. Embeddings, biases and gains stay with AdamW. It
    needs bf16 products that are fast on the machine. Another `kind` is a ValueError."""

    def __init__(
        self,
        weights: Mapping[str, nn.Parameter],
        *,
        kind: str,
        rate: float,
        betas: tuple[float, float],
        weight_decay: float,
    ) -> None:
        if kind not in ("adamw", "muon"):
            raise ValueError(f"optimizer: expected 'adamw' or 'muon', got {kind!r}")
        self.rate, self.weights = rate, weights
        hidden = {n for n, p in weights.items() if kind == "muon" and p.ndim >= 2 and not _is_embedding(n)}
        self.matrices = {
            n: _as_stored(w.detach(), w).view(len(w), -1) for n, w in weights.items() if n in hidden
        }
        plain = [p for n, p in weights.items() if n not in hidden]
        groups = [{"params": plain}]  # a group may be empty, a list of parameters may not
        self.adamw = torch.optim.AdamW(groups, lr=rate, betas=betas, weight_decay=weight_decay, fused=True)
        self.muon = None
        if self.matrices:
            self.muon = torch.optim.Muon(
                self.matrices.values(), lr=rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
            )

    def step(self, share: float) -> None:
        """Apply the gradients at `share` of the peak rate, and forget them."""
        optimizers = [self.adamw] if self.muon is None else [self.adamw, self.muon]
        for name, matrix in self.matrices.items():
            weight = self.weights[name]
            gradient = weight.grad
            matrix.grad = None if gradient is None else _as_stored(gradient, weight).reshape(matrix.shape)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.rate * share
            optimizer.step()
        for weight in self.weights.values():
            weight.grad = None

    def _states(self) -> Iterator[tuple[str, dict[str, Tensor]]]:
        for name, weight in self.weights.items():
            if name in self.matrices and self.muon is not None:
                yield name, self.muon.state[self.matrices[name]]
            else:
                yield name, self.adamw.state[weight]

    def state(self) -> dict[str, Tensor]:
        """Every moment as `<key>/<weight>`."""
        return {f"{key}/{name}": value for name, state in self._states() for key, value in state.items()}

    def restore(self, stored: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave."""
        states = dict(self._states())
        for label, value in stored.items():
            key, name = label.split("/", 1)
            states[name][key] = value.to(self.weights[name].device) if key != "step" else value


def _as_stored(values: Tensor, weight: Tensor) -> Tensor:
    """`values` with the axes in the order in which `weight` lies in memory, so that the weight has a view as
    a matrix. Orthogonalisation does not care about the order of a matrix's columns."""
    if weight.is_contiguous() or not weight.is_contiguous(memory_format=torch.channels_last):
        return values
    return values.permute(0, 2, 3, 1)


def _is_embedding(name: str) -> bool:
    return "embed" in name or "shared" in name or name in ("place", "query")
