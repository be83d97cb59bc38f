"""A small random CLIP, and objectives as users write them."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

from dit_heads.embedded.world.text import make_clip_tokenizer

SIZE, LENGTH, SCALE = 32, 20, 1.7
TOKENIZER = make_clip_tokenizer()
PROMPTS = ["a large red cube on grass", "a small blue sphere", "two cones at night"]
MEAN, STD = [0.5, 0.4, 0.3], [0.3, 0.3, 0.4]


def tiny_clip() -> CLIPModel:
    """A random CLIP with a learned temperature that its config does not tell."""
    tower = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": len(TOKENIZER), "max_position_embeddings": LENGTH, "bos_token_id": 0}
    config = CLIPConfig(
        text_config=tower | text | {"eos_token_id": 1},
        vision_config=tower | {"image_size": SIZE, "patch_size": 8},
        projection_dim=12,
    )
    torch.manual_seed(0)
    model = CLIPModel(config).eval()
    torch.nn.init.constant_(model.logit_scale, SCALE)
    # Random biases, or all pictures' vectors would be nearly alike.
    for weight in model.parameters():
        if weight.ndim:
            torch.nn.init.normal_(weight, std=0.3)
    return model


def saved_clip(folder: Path) -> str:
    """The random CLIP with its tokenizer and its image processor, in a folder of transformers' format."""
    tiny_clip().save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    sizes: dict[str, Any] = {"size": {"shortest_edge": SIZE}, "crop_size": {"height": SIZE, "width": SIZE}}
    CLIPImageProcessorPil(**sizes, image_mean=MEAN, image_std=STD).save_pretrained(folder)
    return str(folder)


def brightness(images: Tensor, prompts) -> Tensor:
    return images.mean((1, 2, 3))


def redness(images: Tensor, prompts) -> Tensor:
    return images[:, 0].mean((1, 2))


class Constant:
    def __init__(self, value: float, name: str | None = None) -> None:
        self.value = value
        if name is not None:
            self.name = name

    def __call__(self, images: Tensor, prompts) -> Tensor:
        return torch.full((len(images),), self.value)


NAMED = Constant(2.0, "two")
NAMELESS = Constant(2.0)
NUMBER = 3
