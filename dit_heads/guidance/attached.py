"""Head guidance while it is attached: hooks that add the difference to each call of a transformer."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from torch import nn

from dit_heads.errors import InputError
from dit_heads.families import HeadLayout
from dit_heads.guidance.branch import BranchRunner
from dit_heads.guidance.checks import check_rows, check_runs_hooks
from dit_heads.guidance.difference import added_to_every_tile, difference
from dit_heads.guidance.options import GuidanceOptions
from dit_heads.guidance.pipeline_runs import PipelineRuns, Runs


class AttachedGuidance:
    """A transformer under head guidance, from the making of this object until `detach`.

    Args:
        pipe: whose runs are guided; None guides every call of the bare transformer.
        transformer: the one of the pipeline.
        layout: of the transformer.
        options: how it is guided.

    Raises:
        InputError: for a model that is guided already, compiled, or under a cache, and for attention that
            cannot be guided as asked. The model is then as it was.
    """

    def __init__(
        self, pipe: Any, transformer: nn.Module, layout: HeadLayout, options: GuidanceOptions
    ) -> None:
        self._pipe, self._layout, self._options = pipe, layout, options
        with ExitStack() as undo:
            self._runner = runner = BranchRunner(
                transformer, layout, options.heads.blocks, options.perturbation, self._count
            )
            undo.callback(runner.remove)
            trunk = _trunk(options.trunk, runner, len(layout.blocks))
            undo.callback(transformer.register_forward_pre_hook(self._before, with_kwargs=True).remove)
            undo.callback(transformer.register_forward_hook(self._after, with_kwargs=True).remove)
            if pipe is None:
                self.runs = Runs(options.plan, *trunk)
            else:
                self.runs = PipelineRuns(pipe, runner.watch.check_untouched, options.plan, *trunk)
            undo.enter_context(self.runs.attached())
            self._undo = undo.pop_all()

    def detach(self) -> None:
        """Put the model and the pipeline back exactly as they were.

        Raises:
            InputError: inside a call of the transformer, whose copied rows would be left in what it returns.
        """
        run = self.runs.current
        if run is not None and run.is_in_call():
            raise InputError("detach: a call of the transformer is under way; detach when it has returned")
        self._undo.close()

    def __deepcopy__(self, memo: object) -> AttachedGuidance:
        raise InputError("pipe: a model under head guidance cannot be copied; detach first")

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Begin a call of the transformer; where it evaluates on a shared trunk, fork it."""
        run, runner = self.runs.current, self._runner
        if run is None:
            raise InputError(
                "pipe: its transformer was called by something other than a run of the pipeline object that "
                "head guidance is attached to (another pipeline that shares it?); detach first"
            )
        arguments = runner.arguments(args, kwargs)
        run.begin_call(lambda: self._layout.family.noise_level(arguments))
        runner.watch.check_untouched()
        if run.evaluates:
            run.batch = self._layout.batch(arguments)
            run.rows = self._conditional_rows(run.batch)
            if run.trunk == "shared":
                arguments = runner.forked(arguments, self._weights(arguments, run.rows), run.rows)
        return (), arguments

    def _after(self, _: nn.Module, __: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """End a call of the transformer: what it returns, with the difference of the step."""
        run = self.runs.current
        assert run is not None
        family, options = self._layout.family, self._options
        sample = family.prediction(output)
        if run.evaluates:
            if run.trunk == "shared":
                sample, perturbed = sample[: run.batch], sample[run.batch :]
            else:
                second = self._runner.second_pass(kwargs, self._weights(kwargs, run.rows), run.rows)
                perturbed = family.prediction(second)
            run.difference = difference(sample[run.rows], perturbed, options.scale, options.rescale)
        if run.difference is not None:
            output = family.with_prediction(output, added_to_every_tile(sample, run.difference))
        run.end_call()
        return output

    def _conditional_rows(self, batch: int) -> slice:
        conditional = self._options.conditional
        if conditional is None:
            return self._layout.family.conditional_rows(self._pipe, batch)
        return check_rows(conditional(batch) if callable(conditional) else conditional, batch)

    def _weights(self, arguments: dict[str, Any], rows: slice) -> Any:
        return self._options.heads.weights(arguments[self._layout.family.arguments.latents][rows])

    def _count(self, rows: int, perturbed: int) -> None:
        if self.runs.current is not None:
            self.runs.current.count(rows, perturbed)


def check_attachable(transformer: nn.Module, layout: HeadLayout) -> None:
    """Check that head guidance can be attached.

    Raises:
        InputError: for a model that is guided already, compiled, or under a cache.
    """
    for hook in transformer._forward_pre_hooks.values():
        if isinstance(getattr(hook, "__self__", None), AttachedGuidance):
            raise InputError(
                "pipe: its transformer is under head guidance already; join the heads in one set"
            )
    check_runs_hooks(transformer, layout)


def _trunk(requested: str, runner: BranchRunner, blocks: int) -> tuple[str, str]:
    """How the perturbed branch is evaluated, and why."""
    unknown = runner.watch.unlike_stock()
    if requested == "two_pass":
        return "two_pass", "as asked"
    if unknown is None:
        return "shared", f"forks at block {runner.fork} of {blocks}"
    if requested == "shared":
        raise InputError(
            f"trunk: expected stock attention processors after the fork to share it, {unknown}; use "
            "'two_pass' or 'auto'"
        )
    return "two_pass", f"{unknown}, which may look across the rows of a batch"
