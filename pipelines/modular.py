"""Head guidance for Modular Diffusers: a guider for its SD3 pipelines."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from diffusers.configuration_utils import register_to_config
from diffusers.guiders import BaseGuidance
from diffusers.guiders.guider_utils import GuiderOutput
from torch import Tensor, nn

from dit_heads.errors import InputError, finite_number
from dit_heads.families import layout_of
from dit_heads.guidance.branch import BranchRunner
from dit_heads.guidance.perturb import Perturbation
from dit_heads.guidance.perturbed_heads import PerturbedHeads
from dit_heads.guidance.runs import frames
from dit_heads.heads import HeadSet


class HeadPerturbationGuidance(BaseGuidance):
    """CFG + head guidance: uncond + s (cond - uncond) + w (cond - perturbed), arXiv 2506.10978.

    A guider sees single predictions, so the perturbed one takes another full pass. `HeadGuidance` on an
    ordinary pipeline shares the blocks before the first perturbed one.

    Args:
        heads: text that `HeadSet.parse` reads.
        head_guidance_scale: scale w of head guidance; 0 turns it off.
        softness: softness u, from 0 to 1.
        perturbation: as in `HeadGuidance`.
        region: as in `HeadGuidance`.
        temperature: as in `HeadGuidance`.
        head_guidance_start: step i of N is guided by heads if start <= i / N < stop.
        head_guidance_stop: see `head_guidance_start`.
        guidance_scale: scale s of CFG; 1 turns it off.
        start: step i of N uses CFG if start <= i / N < stop.
        stop: see `start`.
        enabled: whether there is any guidance.

    Raises:
        InputError: for values out of range, and for heads that cannot be read.
    """

    _input_predictions = ["pred_cond", "pred_uncond", "pred_perturbed"]  # noqa: RUF012 (as in diffusers)

    @register_to_config
    def __init__(
        self,
        *,  # diffusers takes positional arguments for defaults when it makes a copy
        heads: str,
        head_guidance_scale: float = 3.0,
        softness: float = 1.0,
        perturbation: str = "identity",
        region: str = "joint",
        temperature: float | None = None,
        head_guidance_start: float = 0.0,
        head_guidance_stop: float = 1.0,
        guidance_scale: float = 7.0,
        start: float = 0.0,
        stop: float = 1.0,
        enabled: bool = True,
    ) -> None:
        super().__init__(start, stop, enabled)
        if not 0 <= head_guidance_start < head_guidance_stop <= 1:
            raise InputError(
                "head_guidance_start, head_guidance_stop: expected 0 <= start < stop <= 1, "
                f"got {head_guidance_start} and {head_guidance_stop}"
            )
        finite_number("head_guidance_scale", head_guidance_scale)
        self.heads, self.softness = HeadSet.parse(heads), softness
        self.perturbation = Perturbation(perturbation, region, temperature)
        self.head_guidance_scale, self.guidance_scale = head_guidance_scale, guidance_scale
        self.head_guidance_start, self.head_guidance_stop = head_guidance_start, head_guidance_stop
        self._undo = ExitStack()
        self._gave_up = False  # whether a perturbed prediction was mistaken for an interrupted one

    def set_state(self, *args: Any, **kwargs: Any) -> None:
        self._undo.close()  # leftovers of an interrupted step
        super().set_state(*args, **kwargs)

    def prepare_models(self, denoiser: nn.Module) -> None:
        self._undo.close()
        self._gave_up = False
        self._count_prepared += 1
        if self._predictions()[self._count_prepared - 1] == "pred_perturbed":
            self._perturb(denoiser)

    def cleanup_models(self, denoiser: nn.Module) -> None:
        """End a prediction.

        Args:
            denoiser: the transformer.

        Raises:
            InputError: if the transformer was called from elsewhere, so that its heads were not perturbed.
        """
        self._undo.close()
        if self._gave_up:
            raise InputError(
                "guider: its model was called by something other than what had called `prepare_models`, so "
                "its heads were not perturbed"
            )

    def prepare_inputs(self, data: Any) -> list[Any]:
        return [self._prepare_batch(data, int(name == "pred_uncond"), name) for name in self._predictions()]

    def prepare_inputs_from_block_state(self, data: Any, input_fields: dict[str, Any]) -> list[Any]:
        return [
            self._prepare_batch_from_block_state(input_fields, data, int(name == "pred_uncond"), name)
            for name in self._predictions()
        ]

    def forward(
        self, pred_cond: Tensor, pred_uncond: Tensor | None = None, pred_perturbed: Tensor | None = None
    ) -> GuiderOutput:
        pred = pred_cond
        if pred_uncond is not None:
            pred = pred_uncond + self.guidance_scale * (pred_cond - pred_uncond)
        if pred_perturbed is not None:
            pred = pred + self.head_guidance_scale * (pred_cond - pred_perturbed)
        return GuiderOutput(pred=pred, pred_cond=pred_cond, pred_uncond=pred_uncond)

    @property
    def is_conditional(self) -> bool:
        return self._predictions()[max(0, self._count_prepared - 1)] != "pred_uncond"

    @property
    def num_conditions(self) -> int:
        return len(self._predictions())

    def _predictions(self) -> list[str]:
        """The predictions of this step, in order."""
        cfg = self._enabled and self.guidance_scale != 1 and self._within(self._start, self._stop)
        by_heads = self._enabled and self.head_guidance_scale != 0 and self.softness != 0
        by_heads = by_heads and self._within(self.head_guidance_start, self.head_guidance_stop)
        return ["pred_cond", *["pred_uncond"] * cfg, *["pred_perturbed"] * by_heads]

    def _within(self, start: float, stop: float) -> bool:
        return self._num_inference_steps is None or start <= self._step / self._num_inference_steps < stop

    def _perturb(self, denoiser: nn.Module) -> None:
        layout = layout_of(denoiser)
        heads = PerturbedHeads.of(layout, self.heads, self.softness)
        runner = BranchRunner(denoiser, layout, heads.blocks, self.perturbation)
        self._undo.callback(runner.remove)
        # The frame that has prepared the model and is about to call it.
        denoising = [next(frame for frame in frames() if frame.f_locals.get("self") is not self)]
        self._undo.callback(denoising.clear)

        def perturbed(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if denoising[0] not in frames():  # it was interrupted before it could clean up
                self._undo.close()
                self._gave_up = True
                return None
            arguments = runner.arguments(args, kwargs)
            weights = heads.weights(arguments[layout.family.arguments.latents])
            return (), runner.perturbed(arguments, weights)

        self._undo.callback(denoiser.register_forward_pre_hook(perturbed, with_kwargs=True).remove)
