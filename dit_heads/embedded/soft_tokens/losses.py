"""Losses of the training loop: of a tokenizer, and of a solver, on the blocks world."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dit_heads.embedded.soft_tokens.truth import BLOCK, Truth
from dit_heads.errors import InputError
from dit_heads.tasks.soft_tokens import losses
from dit_heads.tasks.soft_tokens.codebook import usage
from dit_heads.tasks.soft_tokens.maps import cropped, depth_input, with_patches_hidden
from dit_heads.tasks.soft_tokens.sequences import object_tokens, split_objects
from dit_heads.tasks.soft_tokens.soft import probabilities
from dit_heads.tasks.soft_tokens.solver import Solver
from dit_heads.tasks.soft_tokens.tokenizer import Decoded, Tokenizer
from dit_heads.training.loop import Part

Figures = dict[str, float | Tensor]
COMMITMENT, SILOG, SKY = 0.25, 0.5, 0.1  # weights in the loss of a tokenizer, beside the error of values
MASK_TOKENS = 0.2  # weight of mask tokens' cross-entropy (AiT)
DEPTH_TAU = 0.8  # of soft depth tokens in the loss (AiT)


class TokenizerLoss:
    """Reconstruction of depth maps or of masks in their boxes, and the codebook's averages.

    Args:
        tokenizer: the model.
        truth: the scenes.
        batch: number of maps or masks of a step.
        augmented: whether patches of depth maps are hidden from the encoder.
        revived_until: the step from which on dead codes stay where they are, so that averaged weights settle.
    """

    def __init__(
        self, tokenizer: Tokenizer, truth: Truth, batch: int, augmented: bool, revived_until: int
    ) -> None:
        self.tokenizer, self.truth, self.batch = tokenizer, truth, batch
        self.augmented, self.revived_until = augmented, revived_until
        self.seen = torch.nonzero(truth.objects.there)  # [objects, 2]: scene and place

    def __call__(self, part: Part, generator: torch.Generator) -> tuple[Tensor, Figures]:
        if part.count > 1:
            raise InputError(
                "accumulate: expected one process and batches in one part, since the codebook's averages "
                f"are taken over a batch, got {part.count} parts"
            )
        is_depth = self.tokenizer.config.kind == "depth"
        flipped = bool(torch.rand((), generator=generator) < 0.5)
        return (self._depth if is_depth else self._masks)(part, generator, flipped)

    def _depth(self, part: Part, generator: torch.Generator, flipped: bool) -> tuple[Tensor, Figures]:
        which = torch.randint(len(self.truth), (self.batch,), generator=generator)
        metres, known = (_flipped(t, flipped) for t in self.truth.depth(which.to(self.truth.ids.device)))
        span = self.tokenizer.range
        given = depth_input(metres, known, span)
        if self.augmented:
            given = with_patches_hidden(given, generator)
        output, commitment, figures = self._reconstructed(given, part, generator)
        decoded = Decoded.of(output.float())
        value = losses.value_error(decoded, metres, known, span)
        silog = losses.depth_silog(decoded, metres, known, span)
        sky = losses.sky_error(decoded, known)
        total = value + SILOG * silog + SKY * sky + COMMITMENT * commitment
        return total, {"value": value.detach(), "silog": silog.detach(), "sky": sky.detach(), **figures}

    def _masks(self, part: Part, generator: torch.Generator, flipped: bool) -> tuple[Tensor, Figures]:
        drawn = torch.randint(len(self.seen), (self.batch,), generator=generator)
        scenes, places = self.seen[drawn.to(self.seen.device)].T
        true = _flipped(crops_of(self.truth, scenes, places, self.tokenizer.config.size), flipped)
        output, commitment, figures = self._reconstructed(2 * true[:, None] - 1, part, generator)
        error = losses.mask_error(output[:, 0].float(), true).mean()
        return error + COMMITMENT * commitment, {"mask": error.detach(), **figures}

    def _reconstructed(
        self, given: Float[Tensor, "b c h w"], part: Part, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Figures]:
        tokenizer, codebook = self.tokenizer, self.tokenizer.codebook
        vectors = tokenizer.encode(given)
        flat = vectors.detach().flatten(0, 1).float()
        dead = 0
        if part.step < self.revived_until:
            dead = codebook.revive(flat, generator)
        numbers = codebook.nearest(vectors)
        codes = codebook.look_up(numbers)
        output = tokenizer.decode(losses.straight_through(vectors, codes.to(vectors.dtype)))
        commitment = losses.commitment(vectors.float(), codes)
        codebook.observe(flat, numbers.flatten())
        found = usage(numbers, tokenizer.config.codes)
        return output, commitment, {"used": found.share, "perplexity": found.perplexity, "dead": float(dead)}


def crops_of(truth: Truth, scenes: Tensor, places: Tensor, side: int) -> Float[Tensor, "n side side"]:
    """The masks of objects within their boxes."""
    return cropped(truth.masks(scenes, places), truth.objects.boxes[scenes, places], side)


def _flipped(t: Tensor, flipped: bool) -> Tensor:
    return t.flip(-1) if flipped else t


@dataclass(frozen=True)
class Labels:
    """The tokens of all scenes, as the tokenizers write them.

    Attributes:
        depth: of depth maps.
        objects: of objects, see `object_tokens`.
    """

    depth: Int[Tensor, "s n"]
    objects: Int[Tensor, "s m"]


@torch.no_grad()
def labels_of(truth: Truth, depth: Tokenizer, mask: Tokenizer, vocabulary: Any) -> Labels:
    """The right tokens of all scenes."""
    of_depth, of_objects = [], []
    every = torch.arange(len(truth), device=truth.ids.device)
    for which in every.split(BLOCK):
        of_depth.append(depth.tokenize(depth_input(*truth.depth(which), depth.range)))
        numbers = torch.zeros(
            len(which), vocabulary.objects, vocabulary.mask_tokens, dtype=torch.long, device=which.device
        )
        rows, places = torch.nonzero(truth.objects.there[which], as_tuple=True)
        crops = crops_of(truth, which[rows], places, mask.config.size)
        numbers[rows, places] = mask.tokenize(2 * crops[:, None] - 1)
        some = type(truth.objects)(
            *(getattr(truth.objects, name)[which] for name in ("boxes", "classes", "there", "order"))
        )
        of_objects.append(object_tokens(some, numbers, vocabulary))
    return Labels(torch.cat(of_depth), torch.cat(of_objects))


@dataclass
class SolverLoss:
    """Cross-entropy of the tokens and, if wanted, the loss of what their soft tokens are decoded to.

    Attributes:
        solver: the model.
        features: of all scenes.
        truth: of all scenes.
        labels: their tokens.
        depth: the frozen tokenizer of depth.
        mask: the frozen tokenizer of masks.
        batch: number of scenes of a step.
        auxiliary: whether the decoded output is compared with the truth: SiLog, and dice with MSE.
        mask_weight: of dice and MSE.
        tasks: what is learned.
    """

    solver: Solver
    features: Float[Tensor, "s n f"]
    truth: Truth
    labels: Labels
    depth: Tokenizer
    mask: Tokenizer
    batch: int = 64
    auxiliary: bool = True
    mask_weight: float = 5.0
    tasks: tuple[str, ...] = ("depth", "instances")

    def __call__(self, part: Part, generator: torch.Generator) -> tuple[Tensor, Figures]:
        which = torch.randint(len(self.truth), (self.batch,), generator=generator)
        which = which.to(self.features.device)
        features, figures, total = self.features[which], {}, torch.zeros((), device=self.features.device)
        with _dropout_of(generator, self.features.device):
            for name, loss in (("depth", self._depth), ("instances", self._instances)):
                if name in self.tasks:
                    value, found = loss(which, features)
                    total, figures = total + value, figures | found
        return total, figures

    def _depth(self, which: Tensor, features: Tensor) -> tuple[Tensor, Figures]:
        right = self.labels.depth[which]
        logits = self.solver(features, "depth", right)["depth"]
        total = tokens = losses.token_error(logits, right)
        figures: Figures = {"depth_tokens": tokens.detach()}
        if self.auxiliary:
            decoded = Decoded.of(self.depth.decode_soft(probabilities(logits, DEPTH_TAU)).float())
            metres, known = self.truth.depth(which)
            silog = losses.depth_silog(decoded, metres, known, self.depth.range)
            total, figures["silog"] = total + silog, silog.detach()
        return total, figures

    def _instances(self, which: Tensor, features: Tensor) -> tuple[Tensor, Figures]:
        vocabulary, right = self.solver.config.vocabulary, self.labels.objects[which]
        logits = self.solver(features, "instances", right)
        split = split_objects(right, vocabulary)
        errors = {
            "box": losses.token_error(logits["box"], split.box),
            "class": losses.token_error(logits["class"], split.name),
            "mask_tokens": losses.token_error(logits["mask"], split.mask),
        }
        total = errors["box"] + errors["class"] + MASK_TOKENS * errors["mask_tokens"]
        rows, places = torch.nonzero(self.truth.objects.there[which], as_tuple=True)
        if self.auxiliary and len(rows):
            p = probabilities(logits["mask"][rows, places], 1.0)
            true = crops_of(self.truth, which[rows], places, self.mask.config.size)
            error = losses.mask_error(self.mask.decode_soft(p)[:, 0].float(), true).mean()
            total, errors["mask"] = total + self.mask_weight * error, error
        return total, {name: value.detach() for name, value in errors.items()}


@contextmanager
def _dropout_of(generator: torch.Generator, device: torch.device) -> Iterator[None]:
    """Dropout by a step's own random numbers, so that a run that goes on drops what it would have dropped."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        yield
