"""The default model and the world that it was trained on; `load_embedded` gives a stock pipeline."""

from pathlib import Path
from typing import Any

WEIGHTS = Path(__file__).with_name("weights")


def load_embedded(name: str = "sd3") -> Any:
    """A stock `StableDiffusion3Pipeline` ("sd3") or `FluxPipeline` ("flux") of the embedded model, fp32, on
    the CPU.

    Raises ValueError for another name."""
    if name == "sd3":
        from diffusers import StableDiffusion3Pipeline

        return StableDiffusion3Pipeline.from_pretrained(WEIGHTS / name, local_files_only=True)
    if name == "flux":
        from dit_heads.embedded.flux import load_flux

        return load_flux(WEIGHTS)
    raise ValueError(f"name: expected 'sd3' or 'flux', got {name!r}")
