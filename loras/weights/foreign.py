"""Files that are no LoRA of a transformer's linear modules: how their keys give them away, and what to do."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

CONVERT = "load it with pipe.load_lora_weights and write it with dit_heads.loras.save_lora"


@dataclass(frozen=True)
class Foreign:
    """A kind of file.

    Attributes:
        name: What a message calls it.
        keys: A regular expression that its keys contain.
        advice: What to do with it.
    """

    name: str
    keys: re.Pattern[str]
    advice: str


FOREIGN = (
    Foreign(
        "a LoRA of XLabs",
        re.compile(r"\.processor\.(qkv|proj)_lora[12]?\."),
        f"for FLUX, {CONVERT}",
    ),
    Foreign("a LoKr", re.compile(r"\.lokr_"), "its Kronecker products have no low rank: train a plain LoRA"),
    Foreign("a LoHa", re.compile(r"\.hada_w"), "its Hadamard products have no low rank: train a plain LoRA"),
    Foreign("an OFT", re.compile(r"\.oft_|\.oft\."), "it multiplies weights: train a plain LoRA"),
    Foreign(
        "a LoRA of SD 1.5 or SDXL",
        re.compile(r"^(lora_unet_(input|output|down|up|mid(dle)?)_blocks?_|unet\.)"),
        "load it into a pipeline of that model",
    ),
    Foreign(
        "a LoRA with embeddings (OneTrainer's bundle_emb)",
        re.compile(r"^bundle_emb\."),
        "its prompts need them; for the rest, save the file without the keys that begin with 'bundle_emb.'",
    ),
)
WHOLE = Foreign(
    "a whole checkpoint",
    re.compile(r"(blocks[._]\d+|diffusion_model)[._].*\.(weight|bias)$"),
    "load it with from_single_file, and give LoRAs their own files",
)
_LORA = re.compile(r"lora|\.alpha$")


def foreign_kind(keys: Sequence[str]) -> Foreign | None:
    """The kind of a file by its keys, None for one that may be a LoRA or is not known."""
    if kind := next((kind for kind in FOREIGN if _any(kind.keys, keys)), None):
        return kind
    return WHOLE if _any(WHOLE.keys, keys) and not _any(_LORA, keys) else None


def _any(pattern: re.Pattern[str], keys: Iterable[str]) -> bool:
    return any(pattern.search(key) for key in keys)
