"""Head guidance: lead a pipeline's prediction away from the one with chosen attention heads perturbed.

`prediction + scale * (conditional - perturbed)`, arXiv 2506.10978. The difference is added to what the
transformer returns, to both halves of classifier-free guidance (CFG) alike, so the pipeline's own
arithmetic gives CFG + head guidance exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from dit_heads.errors import InputError
from dit_heads.families import layout_of
from dit_heads.guidance.attached import AttachedGuidance, check_attachable
from dit_heads.guidance.checks import check_conditional, check_not_compiled, transformer_of
from dit_heads.guidance.options import Conditional, GuidanceOptions
from dit_heads.guidance.perturb import Perturbation
from dit_heads.guidance.perturbed_heads import PerturbedHeads, Softness
from dit_heads.guidance.runs import Plan, Report
from dit_heads.heads import HeadSet


class HeadGuidance:
    """Guide a pipeline by attention heads, while attached.

    >>> with HeadGuidance(pipe, "L1H10, L7", scale=3.0, softness=0.5):   # doctest: +SKIP
    ...     image = pipe("a cat").images[0]

    The thread that attaches is the one that runs. Gradients are exact as long as `backward` is called while
    attached.

    Args:
        pipe: a diffusers pipeline of a supported family, or its transformer with `conditional`.
        heads: a HeadSet or its text; a list of them gives each picture (conditional row) its own.
        scale: w of arXiv 2506.10978; 0 is off.
        softness: u in [0, 1], how far heads are perturbed: one number for all, or a mapping of heads to
            numbers; 0 is off.
        perturbation, region, temperature: what is done to heads, and for which tokens; see `Perturbation`.
        start, stop: step i of the N steps of a run is guided if start <= i / N < stop.
        rescale: share in [0, 1] of the guided prediction that is brought back to the standard deviation of
            the conditional one (arXiv 2305.08891, eq. 15 and 16), so that a large scale does not burn
            colours.
        every: the perturbed branch is evaluated at every n-th guided step. Its difference serves in between.
        trunk: "shared" forks at the first perturbed block, "two_pass" runs the transformer again. "auto"
            shares unless an attention processor after the fork is unknown to this package.
        conditional: for a bare transformer, which rows of a batch are conditional: a slice, or a function
            from the size of a batch to a slice. The batch consists of tiles of that many rows, and every
            tile gets the same difference.

    Raises:
        InputError: for anything that could not be honoured, here, at `attach` and in a run.
    """

    def __init__(
        self,
        pipe: Any,
        heads: HeadSet | str | Sequence[HeadSet | str],
        *,
        scale: float = 3.0,
        softness: Softness = 1.0,
        perturbation: str = "identity",
        region: str = "joint",
        temperature: float | None = None,
        start: float = 0.0,
        stop: float = 1.0,
        rescale: float = 0.0,
        every: int = 1,
        trunk: str = "auto",
        conditional: Conditional | None = None,
    ) -> None:
        bare = isinstance(pipe, nn.Module)
        self.pipe: Any = None if bare else pipe
        self.transformer: nn.Module = pipe if bare else transformer_of(pipe)
        plan = Plan(start, stop, every)
        check_conditional(bare, conditional, start, stop, every)
        check_not_compiled(self.transformer)
        self.layout = layout_of(self.transformer)
        self.options = GuidanceOptions(
            PerturbedHeads.of(self.layout, heads, softness),
            Perturbation(perturbation, region, temperature),
            plan,
            scale,
            rescale,
            trunk,
            conditional,
        )
        self._attached: AttachedGuidance | None = None

    @property
    def report(self) -> Report:
        """What the last run did, or what the current one has done so far."""
        run = self._attached.runs.last if self._attached is not None else None
        if run is not None:
            return run.report()
        return Report(0, "none", "scale or softness is 0" if self.options.add_nothing else "no run yet")

    def attach(self) -> HeadGuidance:
        """Add the hooks. With a scale or softness of 0 there are none, and pictures are the unguided ones bit
        for bit.

        Returns:
            This object.

        Raises:
            InputError: if the model is guided already, compiled, or under a block cache.
        """
        check_attachable(self.transformer, self.layout)
        self._attached = None
        if not self.options.add_nothing:
            self._attached = AttachedGuidance(self.pipe, self.transformer, self.layout, self.options)
        return self

    def detach(self) -> None:
        """Put the model and the pipeline back exactly as they were. Does nothing if not attached.

        Raises:
            InputError: inside a call of the transformer.
        """
        if self._attached is not None:
            self._attached.detach()

    def __enter__(self) -> HeadGuidance:
        return self.attach()

    def __exit__(self, *_: object) -> None:
        self.detach()

    def __deepcopy__(self, memo: object) -> HeadGuidance:
        raise InputError("pipe: a model under head guidance cannot be copied; detach first")
