"""The default model and the world that it was trained on; `load_embedded` gives a stock pipeline, and
`embedded_lora` a LoRA for it."""

from pathlib import Path
from typing import Any

from dit_heads.errors import InputError

WEIGHTS = Path(__file__).with_name("weights")
# T5 tokens that the embedded models read in most of their training. The 256 that SD3's pipeline pads to by
# default cost more than the picture itself.
TEXT_TOKENS = 64


def load_embedded(name: str = "sd3") -> Any:
    """A stock `StableDiffusion3Pipeline` ("sd3") or `FluxPipeline` ("flux") of the embedded model, fp32, on
    the CPU.

    Raises ValueError for another name."""
    if name == "sd3":
        from diffusers import StableDiffusion3Pipeline

        return StableDiffusion3Pipeline.from_pretrained(WEIGHTS / name, local_files_only=True)
    if name == "flux":
        from dit_heads.embedded.nets.flux import load_flux

        return load_flux(WEIGHTS)
    raise InputError(f"name: expected 'sd3' or 'flux', got {name!r}")


def embedded_lora(task: str) -> Path:
    """The file of an In-Context LoRA of the embedded SD3, for `pipe.load_lora_weights`: "sky" (a scene by
    day, at sunset and at night), "grounds" (a subject in three places) or "turntable" (solids from four
    sides).

    Its card lies beside it. Raises ValueError for another task."""
    found = {path.parent.name: path for path in sorted((WEIGHTS / "loras").glob("*/lora.safetensors"))}
    if task not in found:
        raise InputError(f"task: expected one of {', '.join(found)}, got {task!r}")
    return found[task]
