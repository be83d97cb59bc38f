"""Pictures and texts as unit vectors of a CLIP or a DINO, one at a time, to be compared."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image

from dit_heads.errors import InputError
from dit_heads.io.quiet import quiet_libraries
from dit_heads.objectives.clip import ClipSimilarity

Vector = Float[np.ndarray, " d"]


class ClipEmbedding:
    """The two towers of a CLIP.

    Args:
        clip: the CLIP.
        device: where it computes.
    """

    def __init__(self, clip: ClipSimilarity, device: torch.device | str = "cpu") -> None:
        self.clip, self.name, self.device = clip, clip.name, torch.device(device)

    @torch.no_grad()
    def picture(self, image: Image.Image) -> Vector:
        """The vector of an RGB picture."""
        pixels = torch.from_numpy(np.array(image, np.float32) / 255).permute(2, 0, 1)[None]
        return self.clip.image(pixels.to(self.device))[0].cpu().numpy()

    @torch.no_grad()
    def text(self, words: str) -> Vector:
        """The vector of a text, which is cut to the context of the CLIP."""
        return self.clip.embed_texts([words], self.device)[0].cpu().numpy()


class DinoEmbedding:
    """The class token of a vision transformer, after its last norm (DINO, arXiv 2104.14294).

    Args:
        model: a vision transformer of transformers.
        processor: its image processor.
        name: of the model.
        device: where it computes.
    """

    def __init__(self, model: Any, processor: Any, name: str, device: torch.device | str = "cpu") -> None:
        self.model, self.processor = model.eval().requires_grad_(False).to(device), processor
        self.name, self.device = name, torch.device(device)

    @torch.no_grad()
    def picture(self, image: Image.Image) -> Vector:
        """The vector of an RGB picture."""
        pixels = self.processor(images=image, return_tensors="pt").pixel_values.to(self.device)
        token = self.model(pixel_values=pixels).last_hidden_state[0, 0]
        return F.normalize(token.float(), dim=-1).cpu().numpy()


def load_dino(model: str, device: torch.device | str = "cpu") -> DinoEmbedding:
    """A DINO or DINOv2 in the format of transformers, with its own preparation of pictures.

    Args:
        model: folder or hub id.
        device: where it computes.

    Raises:
        InputError: it cannot be loaded.
    """
    from transformers import AutoImageProcessor, AutoModel

    try:
        with quiet_libraries():
            found = AutoModel.from_pretrained(model, use_safetensors=True, dtype=torch.float32)
            processor = AutoImageProcessor.from_pretrained(model)
    # Whatever a damaged folder makes transformers raise, the reason for the user is the same.
    except Exception as error:
        reason = str(error).strip().splitlines()[:1]
        raise InputError(f"dino: cannot load '{model}': {''.join(reason)}") from error
    return DinoEmbedding(found, processor, f"dino:{model}", device)
