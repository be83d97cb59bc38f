"""The embedded CLIP: SD3's two text towers trained against one image tower, in stock transformers classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from dit_heads.embedded.nets.vae import to_tensor
from dit_heads.embedded.world.captions import caption, varied_caption
from dit_heads.embedded.world.scenes import Scene
from dit_heads.embedded.world.text import CLIP_LENGTH
from dit_heads.training.loop import Part

WIDTH = 96


def make_text_tower(vocab_size: int, layers: int, activation: str) -> CLIPTextModelWithProjection:
    """A text tower with random weights. SD3 reads `hidden_states[-2]`, so it has at least two layers. The
    pooled token is the first end of text (id 1)."""
    config = CLIPTextConfig(
        vocab_size=vocab_size,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=CLIP_LENGTH,
        hidden_act=activation,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return CLIPTextModelWithProjection(config)


def make_image_tower() -> CLIPVisionModelWithProjection:
    """An image tower with random weights: pictures [B, 3, 128, 128] -> `image_embeds` [B, 96]."""
    config = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        projection_dim=WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=128,
        patch_size=16,
    )
    return CLIPVisionModelWithProjection(config)


class Clip(nn.Module):
    """Both text towers and the image tower. `scale` [2]: log inverse temperatures of the text towers."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.text = make_text_tower(vocab_size, 2, "quick_gelu")
        self.text_2 = make_text_tower(vocab_size, 3, "gelu")
        self.image = make_image_tower()
        self.scale = nn.Parameter(torch.full((2,), 2.66))

    def embed_images(self, pixels: Float[Tensor, "b 3 128 128"]) -> Float[Tensor, "b 96"]:
        """Unit vectors of pictures in [-1, 1]."""
        return F.normalize(self.image(pixel_values=pixels).image_embeds.float(), dim=-1)

    def embed_texts(
        self, ids: Int[Tensor, "b n"]
    ) -> tuple[Float[Tensor, "b 96"], Float[Tensor, "b 96"]]:
        """Unit vectors of texts, given as token ids, by each text tower."""
        embeds = (tower(input_ids=ids).text_embeds.float() for tower in (self.text, self.text_2))
        first, second = (F.normalize(e, dim=-1) for e in embeds)
        return first, second


class ClipLoss:
    """Symmetric cross-entropy over a batch (arXiv 2103.00020), averaged over the two text towers."""

    def __init__(
        self,
        clip: Clip,
        tokenizer: CLIPTokenizer,
        images: NDArray[np.uint8],
        scenes: Sequence[Scene],
        batch: int = 128,
    ) -> None:
        self.clip, self.tokenizer, self.batch = clip, tokenizer, batch
        self.images, self.scenes = images, scenes

    def __call__(self, part: Part, generator: torch.Generator) -> tuple[Tensor, dict[str, float | Tensor]]:
        which = torch.randint(len(self.images), (self.batch,), generator=generator).numpy()
        rng = np.random.default_rng(int(which[0]) * 1_000_003 + part.step)
        scenes = [self.scenes[i] for i in which]
        captions = [caption(s) if rng.random() < 0.6 else varied_caption(s, rng) for s in scenes]
        pixels = to_tensor(self.images[which])
        strength = 0.1 * torch.rand(1, generator=generator)
        pixels = pixels + strength * torch.randn(pixels.shape, generator=generator)
        device = self.clip.scale.device
        pictures = self.clip.embed_images(pixels.to(device))
        target = torch.arange(self.batch, device=device)
        loss, hits = torch.zeros((), device=device), torch.zeros((), device=device)
        for k, texts in enumerate(self.clip.embed_texts(tokenize(self.tokenizer, captions).to(device))):
            logits = self.clip.scale[k].exp().clamp(max=100) * pictures @ texts.T
            loss = loss + 0.25 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))
            hits = (logits.argmax(-1) == target).float().mean()
        return loss, {"right": hits}


def tokenize(tokenizer: Any, texts: Sequence[str], length: int = CLIP_LENGTH) -> Int[Tensor, "b n"]:
    """Token ids of texts, padded or truncated to a length, by CLIP's or T5's tokenizer."""
    return tokenizer(
        list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    ).input_ids


@torch.no_grad()
def retrieval(
    clip: Clip, tokenizer: CLIPTokenizer, images: NDArray[np.uint8], scenes: Sequence[Scene]
) -> list[float]:
    """Share of pictures whose own canonical caption scores highest among all, for each text tower."""
    parts = [clip.embed_images(to_tensor(images[i : i + 50])) for i in range(0, len(images), 50)]
    pictures = torch.cat(parts)
    texts = clip.embed_texts(tokenize(tokenizer, [caption(s) for s in scenes]))
    own = torch.arange(len(images))
    return [((pictures @ t.T).argmax(-1) == own).float().mean().item() for t in texts]
