"""Pipelines: drop-in classes with head guidance, a guider for Modular Diffusers, and In-Context LoRA sets.

Exports are imported on first use.
"""

from typing import TYPE_CHECKING

from dit_heads._lazy import lazy_exports

if TYPE_CHECKING:
    from dit_heads.pipelines.guided import (
        FluxHeadsImg2ImgPipeline,
        FluxHeadsInpaintPipeline,
        FluxHeadsPipeline,
        StableDiffusion3HeadsImg2ImgPipeline,
        StableDiffusion3HeadsInpaintPipeline,
        StableDiffusion3HeadsPipeline,
    )
    from dit_heads.pipelines.in_context import InContextPipeline, InContextPipelineOutput
    from dit_heads.pipelines.modular import HeadPerturbationGuidance

__all__ = [
    "FluxHeadsImg2ImgPipeline",
    "FluxHeadsInpaintPipeline",
    "FluxHeadsPipeline",
    "HeadPerturbationGuidance",
    "InContextPipeline",
    "InContextPipelineOutput",
    "StableDiffusion3HeadsImg2ImgPipeline",
    "StableDiffusion3HeadsInpaintPipeline",
    "StableDiffusion3HeadsPipeline",
]

_HOME = dict.fromkeys(__all__, "dit_heads.pipelines.guided") | {
    "HeadPerturbationGuidance": "dit_heads.pipelines.modular",
    "InContextPipeline": "dit_heads.pipelines.in_context",
    "InContextPipelineOutput": "dit_heads.pipelines.in_context",
}
__getattr__, __dir__ = lazy_exports(globals(), _HOME)
