"""The embedded models and the world that they were trained on.

`load_embedded` returns a stock pipeline, and `embedded_lora` the file of a LoRA for it.
"""

from pathlib import Path
from typing import Any

from dit_heads.errors import InputError

WEIGHTS = Path(__file__).with_name("weights")
# The number of T5 tokens in most of the embedded models' training. The 256 tokens of SD3's default call take
# longer than the picture itself.
TEXT_TOKENS = 64


def load_embedded(name: str = "sd3") -> Any:
    """A stock pipeline of an embedded model, in fp32 on the CPU.

    Args:
        name: "sd3" for a `StableDiffusion3Pipeline`, "flux" for a `FluxPipeline`.

    Raises:
        InputError: for any other name.
    """
    if name == "sd3":
        from diffusers import StableDiffusion3Pipeline

        return StableDiffusion3Pipeline.from_pretrained(WEIGHTS / name, local_files_only=True)
    if name == "flux":
        from dit_heads.embedded.nets.flux import load_flux

        return load_flux(WEIGHTS)
    raise InputError(f"name: expected 'sd3' or 'flux', got {name!r}")


def embedded_lora(task: str) -> Path:
    """The file of a LoRA for the embedded SD3.

    Args:
        task: an In-Context LoRA for `pipe.load_lora_weights`: "sky" (a scene by day, at sunset and at night),
            "grounds" (a subject in three places) or "turntable" (solids from four sides); or "see", which
            answers questions about a picture, for `with_instruct_lora`.

    Returns:
        The path of the file. Its model card is in the same folder.

    Raises:
        InputError: for any other task.
    """
    found = {path.parent.name: path for path in sorted((WEIGHTS / "loras").glob("*/lora.safetensors"))}
    if task not in found:
        raise InputError(f"task: expected one of {', '.join(found)}, got {task!r}")
    return found[task]


def embedded_soft_tokens(model: str = "sd3") -> Path:
    """The folder of weights with which an embedded model sees by soft tokens, for `with_soft_tokens`.

    Args:
        model: the name of the model, as `load_embedded` takes it.

    Raises:
        InputError: there are none for the model.
    """
    folder = WEIGHTS / "soft_tokens" / model
    if not (folder / "solver.safetensors").is_file():
        there = ", ".join(sorted(path.parent.name for path in folder.parent.glob("*/solver.safetensors")))
        raise InputError(f"model: expected one with soft tokens ({there or 'none has'}), got {model!r}")
    return folder
