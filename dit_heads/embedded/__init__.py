"""The default model and the world that it was trained on; `load_embedded` gives a stock pipeline."""

from pathlib import Path
from typing import Any

WEIGHTS = Path(__file__).with_name("weights")


def load_embedded(name: str = "sd3") -> Any:
    """A stock `StableDiffusion3Pipeline` ("sd3") of the embedded model, fp32, on the CPU.

    Raises ValueError for another name."""
    from diffusers import StableDiffusion3Pipeline

    classes = {"sd3": StableDiffusion3Pipeline}
    if name not in classes:
        raise ValueError(f"name: expected one of {', '.join(classes)}, got {name!r}")
    return classes[name].from_pretrained(WEIGHTS / name, local_files_only=True)
