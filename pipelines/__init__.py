"""Pipelines: drop-in classes with head guidance, a guider for Modular Diffusers, In-Context LoRA sets, and
instructions.

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
    from dit_heads.pipelines.instruct import (
        InstructPipeline,
        InstructPipelineOutput,
        with_instruct_lora,
    )
    from dit_heads.pipelines.modular import HeadPerturbationGuidance
    from dit_heads.pipelines.multimodal import MultimodalInstructPipeline, with_multimodal_lora
    from dit_heads.pipelines.soft_tokens import SoftTokenOutput, SoftTokenPipeline, with_soft_tokens
    from dit_heads.pipelines.vision_output import VisionOutput

__all__ = [
    "FluxHeadsImg2ImgPipeline",
    "FluxHeadsInpaintPipeline",
    "FluxHeadsPipeline",
    "HeadPerturbationGuidance",
    "InContextPipeline",
    "InContextPipelineOutput",
    "InstructPipeline",
    "InstructPipelineOutput",
    "MultimodalInstructPipeline",
    "SoftTokenOutput",
    "SoftTokenPipeline",
    "StableDiffusion3HeadsImg2ImgPipeline",
    "StableDiffusion3HeadsInpaintPipeline",
    "StableDiffusion3HeadsPipeline",
    "VisionOutput",
    "with_instruct_lora",
    "with_multimodal_lora",
    "with_soft_tokens",
]

_HOME = dict.fromkeys(__all__, "dit_heads.pipelines.guided") | {
    "HeadPerturbationGuidance": "dit_heads.pipelines.modular",
    "InContextPipeline": "dit_heads.pipelines.in_context",
    "InContextPipelineOutput": "dit_heads.pipelines.in_context",
    "InstructPipeline": "dit_heads.pipelines.instruct",
    "InstructPipelineOutput": "dit_heads.pipelines.instruct",
    "MultimodalInstructPipeline": "dit_heads.pipelines.multimodal",
    "SoftTokenOutput": "dit_heads.pipelines.soft_tokens",
    "SoftTokenPipeline": "dit_heads.pipelines.soft_tokens",
    "VisionOutput": "dit_heads.pipelines.vision_output",
    "with_instruct_lora": "dit_heads.pipelines.instruct",
    "with_multimodal_lora": "dit_heads.pipelines.multimodal",
    "with_soft_tokens": "dit_heads.pipelines.soft_tokens",
}
__getattr__, __dir__ = lazy_exports(globals(), _HOME)
