"""Guidance towards a text and towards a source picture (InstructPix2Pix, arXiv 2211.09800, eq. 3):

    e = e(0, 0) + s_I (e(0, I) - e(0, 0)) + s_T (e(T, I) - e(0, I))

The CFG of a pipeline gives e(0, I) + s_T (e(T, I) - e(0, I)). So it is enough to add
(s_I - 1) (e(0, I) - e(0, 0)) to every prediction that it mixes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dit_heads.compat import is_compiled
from dit_heads.errors import InputError
from dit_heads.families import Call, layout_of, pipelines_of
from dit_heads.families.conditioning import conditioning_of, with_sources
from dit_heads.guidance.difference import added_to_every_tile
from dit_heads.guidance.pipeline_runs import StepOf
from dit_heads.guidance.runs import shadowed

Text = tuple[Float[Tensor, "n L D"], Float[Tensor, "n P"]]


class ImageGuidance:
    """Source pictures in every call of a pipeline's transformer, and guidance towards them.

    Head guidance on the same pipeline sees calls that hold the source already, and its own part of a
    prediction is added before ours: hooks that read come first, the hook that adds comes last.

    Args:
        pipe: the pipeline.
        sources: latents [n, C, h, w] with a row for each result. Only tokens hold more than one.
        kind: "channels" or "tokens".
        scale: s_I. 1 needs no further pass.
        text_scale: s_T where the pipeline makes no CFG of its own, else 1.
        null: the null text, for a pipeline that makes no negative prediction of its own in the first call of
            a step. Else it is taken from there.
    """

    def __init__(
        self,
        pipe: Any,
        sources: Sequence[Tensor],
        kind: str,
        *,
        scale: float,
        text_scale: float = 1.0,
        null: Text | None = None,
    ) -> None:
        self._pipe, self._transformer, self._sources = pipe, pipe.transformer, tuple(sources)
        self._layout, self._form = layout_of(pipe.transformer), pipelines_of(pipe.transformer)
        self._how = conditioning_of(pipe.transformer, kind)
        self._scale, self._text_scale, self._null = scale, text_scale, null
        self._thread = threading.get_ident()
        self._call: Call = {}  # the one under way, without the source
        self._added: Tensor | None = None  # what every call of this step gets

    @contextmanager
    def attached(self) -> Iterator[None]:
        """While this lasts, the transformer sees the source."""
        scheduler = self._pipe.scheduler
        if is_compiled(self._transformer):
            raise InputError("pipe: its transformer is compiled, which skips hooks; use the uncompiled one")
        hooks = self._transformer._forward_pre_hooks.values()
        if any(isinstance(getattr(hook, "__self__", None), ImageGuidance) for hook in hooks):
            raise InputError(
                "pipe: its transformer is answering another call of InstructPipeline, in a callback or in "
                "another thread; use a pipeline of its own for each"
            )
        with ExitStack() as undo:
            for register, hook, first in (
                (self._transformer.register_forward_pre_hook, self._before, True),
                (self._transformer.register_forward_hook, self._read, True),
                (self._transformer.register_forward_hook, self._after, False),
            ):
                undo.callback(register(hook, with_kwargs=True, prepend=first).remove)
            if self._guides:
                undo.enter_context(shadowed(scheduler, "step", StepOf(scheduler, self._end_step)))
            yield

    @property
    def _guides(self) -> bool:
        return self._scale != 1 or self._text_scale != 1

    def _end_step(self) -> None:
        self._added = None

    # --- hooks, in the order in which they run ---

    def _before(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if threading.get_ident() != self._thread:
            raise InputError(
                "pipe: its transformer was called in another thread while InstructPipeline shows it a picture"
            )
        self._call = kwargs
        return args, self._beside(kwargs, self._sources)

    def _read(self, _: nn.Module, __: tuple[Any, ...], ___: dict[str, Any], output: Any) -> None:
        """What guidance adds in this step, from the prediction as the transformer made it."""
        if self._guides and self._added is None:
            rows = slice(0, self._layout.batch(self._call))  # head guidance may have added others
            self._added = self._guidance(self._alone(output, self._call)[rows])

    def _after(self, _: nn.Module, __: tuple[Any, ...], ___: dict[str, Any], output: Any) -> Any:
        prediction = self._alone(output, self._call)
        if self._added is not None:
            prediction = added_to_every_tile(prediction, self._added)
        return self._layout.family.with_prediction(output, prediction)

    # --- predictions ---

    def _guidance(self, prediction: Float[Tensor, "b ..."]) -> Float[Tensor, "n ..."]:
        """(s_I - 1) (e(0, I) - e(0, 0)), and (s_T - 1) (e(T, I) - e(0, I)) where that is ours to add."""
        rows = self._layout.family.conditional_rows(self._pipe, len(prediction))
        one = self._layout.rows(self._call, rows)
        if negative := [row for row in range(len(prediction)) if row not in range(len(prediction))[rows]]:
            at = slice(negative[0], negative[-1] + 1)
            self._null = self._form.text_of(self._layout.rows(self._call, at))
            seen = prediction[at]
        else:
            seen = self._predicted(one, self._sources)
        exact = torch.promote_types(prediction.dtype, torch.float32)
        conditional, seen = prediction[rows].to(exact), seen.to(exact)
        added = (self._text_scale - 1) * (conditional - seen)
        if self._scale != 1:
            blind = self._predicted(one, [torch.zeros_like(each) for each in self._sources]).to(exact)
            added = added + (self._scale - 1) * (seen - blind)
        return added.to(prediction.dtype)

    def _predicted(self, call: Call, sources: Sequence[Tensor]) -> Float[Tensor, "n ..."]:
        """The prediction under the null text and sources. It is no step of a run, so hooks of the
        transformer itself must not see it; `forward` holds those of accelerate."""
        assert self._null is not None
        text, pooled = (new.to(old) for new, old in zip(self._null, self._form.text_of(call), strict=True))
        call = self._form.with_text(call, text, pooled)
        return self._alone(self._transformer.forward(**self._beside(call, sources)), call)

    def _beside(self, call: Call, sources: Sequence[Tensor]) -> dict[str, Any]:
        return with_sources(self._how, call, sources, call[self._layout.family.arguments.latents])

    def _alone(self, output: Any, call: Call) -> Tensor:
        return self._how.alone(self._layout.family.prediction(output), call)
