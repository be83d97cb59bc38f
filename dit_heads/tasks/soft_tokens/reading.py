"""From the features of pictures to depth in metres and masks of objects, with the doubts of their tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dit_heads.errors import InputError
from dit_heads.tasks.annotations import Depth, Instances
from dit_heads.tasks.soft_tokens.maps import DepthRange, pasted
from dit_heads.tasks.soft_tokens.sequences import soft_boxes, split_objects
from dit_heads.tasks.soft_tokens.soft import entropy, probabilities, soft_tokens
from dit_heads.tasks.soft_tokens.solver import Solver
from dit_heads.tasks.soft_tokens.tokenizer import Decoded, Tokenizer

HARD = math.inf  # the inverse temperature of hard tokens
DEPTH_TAU, MASK_TAU = 0.8, 1.0  # of soft tokens (AiT: 0.8 for depth)


@dataclass(frozen=True)
class DepthReading:
    """Depth of B pictures.

    Attributes:
        values: depth in [-1, 1], by the tokenizer's range.
        sky: probability of sky.
        probability: of the codes of each token.
        entropy: of each token, from 0 to 1, on their grid.
    """

    values: Float[Tensor, "b h w"]
    sky: Float[Tensor, "b h w"]
    probability: Float[Tensor, "b n k"]
    entropy: Float[Tensor, "b rows columns"]

    def joined(self, other: DepthReading) -> DepthReading:
        """The mean of two readings of the same pictures: of the logarithms of their metres, of the chance of
        sky, and of the entropies. The probabilities stay those of this one."""
        values, sky, doubt = (
            (getattr(self, name) + getattr(other, name)) / 2 for name in ("values", "sky", "entropy")
        )
        return DepthReading(values, sky, self.probability, doubt)

    def flipped(self) -> DepthReading:
        """The reading of the pictures as a mirror shows them. The probabilities stay in their order."""
        values, sky, doubt = (getattr(self, name).flip(-1) for name in ("values", "sky", "entropy"))
        return DepthReading(values, sky, self.probability, doubt)


@dataclass(frozen=True)
class ObjectReading:
    """The objects of a picture.

    Attributes:
        boxes: x0, y0, x1, y1 as shares of the width and height, of a positive area.
        classes: their names.
        scores: the chance of the class times the mean chance of the pixels of the mask.
        masks: chance of each pixel, within the box.
        box_probability: of the steps of each coordinate.
        class_probability: of the classes, and of none as the last.
        mask_probability: of the codes of each mask token.
    """

    boxes: Float[Tensor, "m 4"]
    classes: tuple[str, ...]
    scores: Float[Tensor, " m"]
    masks: Float[Tensor, "m side side"]
    box_probability: Float[Tensor, "m 4 bins"]
    class_probability: Float[Tensor, "m c"]
    mask_probability: Float[Tensor, "m n k"]

    def instances(self, size: tuple[int, int]) -> Instances:
        """The masks on a picture of this height and width. Those without a pixel are left out."""
        return self.answer(size)[0]

    def answer(self, size: tuple[int, int]) -> tuple[Instances, Float[np.ndarray, " k"]]:
        """The masks on a picture of this height and width, without empty ones, and the mean entropy of the
        mask tokens of each."""
        found, kept = pasted_instances(self.masks, self.boxes, self.classes, self.scores, size)
        return found, self.entropies().cpu().numpy()[kept]

    def entropies(self) -> Float[Tensor, " m"]:
        """The mean entropy of the mask tokens of each object."""
        return entropy(self.mask_probability).mean(-1)

    def chances(self) -> dict[str, np.ndarray]:
        """The probabilities of the tokens, by kind."""
        every = {
            "box": self.box_probability,
            "class": self.class_probability,
            "mask": self.mask_probability,
        }
        return {kind: p.cpu().numpy() for kind, p in every.items()}

    def doubt(self, size: tuple[int, int]) -> Float[np.ndarray, "h w"]:
        """The mean entropy of an object's mask tokens on its box, on a picture of this height and width; the
        largest where boxes overlap, 0 outside of them."""
        if not len(self.classes):
            return np.zeros(size, np.float32)
        found = pasted(self.entropies()[:, None, None].expand_as(self.masks), self.boxes, size)
        return found.amax(0).cpu().numpy()


@dataclass(frozen=True)
class SoftReader:
    """A solver with the tokenizers whose tokens it writes.

    Attributes:
        solver: in evaluation mode.
        depth: the tokenizer of depth.
        mask: the tokenizer of masks.
    """

    solver: Solver
    depth: Tokenizer
    mask: Tokenizer

    @torch.no_grad()
    def read_depth(
        self, features: Float[Tensor, "b n f"], tau: float = DEPTH_TAU, feedback: float | None = None
    ) -> DepthReading:
        """The depth of pictures.

        Args:
            features: of the pictures.
            tau: inverse temperature of the tokens; infinity for hard ones.
            feedback: inverse temperature of the tokens that an autoregressive solver reads: 1 by default,
                or infinity with hard tokens.
        """
        logits = self.solver.write(features, "depth", _feedback(tau, feedback)).logits["depth"]
        p, side = probabilities(logits, tau), self.depth.config.side
        decoded = Decoded.of(self.depth.decode(soft_tokens(p, self.depth.codebook.codes)).float())
        plain = probabilities(logits, 1.0)
        return DepthReading(
            decoded.values, decoded.sky.sigmoid(), plain, entropy(plain).unflatten(1, (side, side))
        )

    @torch.no_grad()
    def read_objects(
        self, features: Float[Tensor, "b n f"], tau: float = MASK_TAU, feedback: float | None = None
    ) -> list[ObjectReading]:
        """The objects of pictures. Arguments as of `read_depth`."""
        vocabulary = self.solver.config.vocabulary
        written = self.solver.write(features, "instances", _feedback(tau, feedback))
        split = split_objects(written.numbers, vocabulary)
        boxes = _ordered(soft_boxes(probabilities(written.logits["box"], tau)), vocabulary.bins)
        chances = {kind: probabilities(logits, 1.0) for kind, logits in written.logits.items()}
        there = split.name != vocabulary.none
        found = []
        for row in range(len(features)):
            at = torch.nonzero(there[row]).flatten()
            codes = probabilities(written.logits["mask"][row, at], tau)
            masks = self._masks(codes)
            sure = chances["class"][row, at].amax(-1) * _certainty(masks)
            names = tuple(vocabulary.classes[k] for k in split.name[row, at].tolist())
            own = (chances[kind][row, at] for kind in ("box", "class", "mask"))
            found.append(ObjectReading(boxes[row, at], names, sure, masks, *own))
        return found

    def _masks(self, codes: Float[Tensor, "m n k"]) -> Float[Tensor, "m side side"]:
        side = self.mask.config.size
        if not len(codes):
            return codes.new_zeros(0, side, side)
        return self.mask.decode_soft(codes)[:, 0].float().sigmoid()

    def check(self) -> None:
        """Raise InputError unless the tokenizers are those of the solver's vocabulary."""
        vocabulary, config = self.solver.config.vocabulary, self.solver.config
        for kind, tokenizer in (("depth", self.depth), ("mask", self.mask)):
            found = (tokenizer.config.kind, tokenizer.config.tokens, tokenizer.config.codes)
            sizes = (getattr(vocabulary, f"{kind}_tokens"), getattr(vocabulary, f"{kind}_codes"))
            if found != (kind, *sizes):
                raise InputError(
                    f"{kind}: expected a tokenizer of {kind} with {sizes[0]} tokens of {sizes[1]} codes, got "
                    f"one of {found[0]} with {found[1]} of {found[2]}"
                )
        if self.depth.config.size != config.size:
            raise InputError(
                f"depth: expected a tokenizer of maps of {config.size} pixels, got {self.depth.config.size}"
            )

    def to(self, device: torch.device | str) -> SoftReader:
        """The same reader on a device."""
        return SoftReader(self.solver.to(device), self.depth.to(device), self.mask.to(device))


def pasted_instances(
    masks: Float[Tensor, "m side side"],
    boxes: Float[Tensor, "m 4"],
    classes: Sequence[str],
    scores: Float[Tensor, " m"],
    size: tuple[int, int],
) -> tuple[Instances, list[int]]:
    """Masks within their boxes as instances on a whole picture, without those that have no pixel; and the
    numbers of those that are left.

    Args:
        masks: chance of each pixel.
        boxes: x0, y0, x1, y1 as shares of the width and height, of a positive area.
        classes: their names.
        scores: how sure each is.
        size: height and width of the picture.
    """
    whole = pasted(masks, boxes, size).cpu().numpy() > 0.5
    kept = np.flatnonzero(whole.any((1, 2))).tolist()
    names = tuple(classes[k] for k in kept)
    return Instances(whole[kept], names, scores.double().cpu().numpy()[kept]), kept


def depth_maps(values: Float[Tensor, "b h w"], sky: Float[Tensor, "b h w"], span: DepthRange) -> list[Depth]:
    """Depth in metres of each picture; sky where it is likelier than not.

    Args:
        values: depth in [-1, 1].
        sky: probability of sky.
        span: what the values stand for.
    """
    metres = span.metres(values).double().cpu().numpy()
    far = (sky > 0.5).cpu().numpy()
    return [Depth(m, ~s, s) for m, s in zip(metres, far, strict=True)]


def _feedback(tau: float, feedback: float | None) -> float:
    return feedback if feedback is not None else HARD if math.isinf(tau) else 1.0


def _ordered(boxes: Float[Tensor, "b m 4"], bins: int) -> Float[Tensor, "b m 4"]:
    """Boxes whose corners are in order, at least one step wide and high."""
    low, high = (
        torch.minimum(boxes[..., :2], boxes[..., 2:]),
        torch.maximum(boxes[..., :2], boxes[..., 2:]),
    )
    step = 1 / (bins - 1)
    low = low.clamp(max=1 - step)
    return torch.cat([low, torch.maximum(high, low + step)], -1)


def _certainty(masks: Float[Tensor, "m h w"]) -> Float[Tensor, " m"]:
    """The mean chance of the pixels that a mask takes for its own."""
    inside: Bool[Tensor, "m h w"] = masks > 0.5
    return (masks * inside).sum((1, 2)) / inside.sum((1, 2)).clamp(min=1)
