"""The embedded objective: how well a picture matches its caption, according to the embedded CLIP."""

from typing import Any

import torch

from dit_heads.embedded import WEIGHTS
from dit_heads.objectives import ClipSimilarity, ImageTower


def embedded_clip() -> ClipSimilarity:
    """Cosine similarity in the embedded CLIP, which was trained on the blocks world."""
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionModelWithProjection

    options: dict[str, Any] = {"use_safetensors": True, "local_files_only": True, "dtype": torch.float32}
    text = CLIPTextModelWithProjection.from_pretrained(WEIGHTS / "sd3" / "text_encoder", **options)
    vision = CLIPVisionModelWithProjection.from_pretrained(WEIGHTS / "clip", **options)
    tokenizer = CLIPTokenizer.from_pretrained(WEIGHTS / "sd3" / "tokenizer", local_files_only=True)
    return ClipSimilarity(text, ImageTower(vision, (0.5,) * 3, (0.5,) * 3), tokenizer, name="clip")
