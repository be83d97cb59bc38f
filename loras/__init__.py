"""In-Context LoRA: sets of pictures joined into panels, training on them, and LoRA files; imports the core,
never the reverse. Exports are imported on first use."""

from typing import TYPE_CHECKING

from dit_heads._lazy import lazy_exports

if TYPE_CHECKING:
    from dit_heads.loras.sets.captions import JointCaption
    from dit_heads.loras.sets.dataset import SetDataset
    from dit_heads.loras.sets.grid import Grid
    from dit_heads.loras.sets.panels import join, split
    from dit_heads.loras.weights.compose import compose, set_scales
    from dit_heads.loras.weights.files import add_lora, load_lora, lora_of, save_lora, write_lora
    from dit_heads.loras.weights.formats import read_lora
    from dit_heads.loras.weights.low_rank import Lora, LowRank

__all__ = [
    "Grid",
    "JointCaption",
    "Lora",
    "LowRank",
    "SetDataset",
    "add_lora",
    "compose",
    "join",
    "load_lora",
    "lora_of",
    "read_lora",
    "save_lora",
    "set_scales",
    "split",
    "write_lora",
]

_HOME = {
    "Grid": "dit_heads.loras.sets.grid",
    "JointCaption": "dit_heads.loras.sets.captions",
    "Lora": "dit_heads.loras.weights.low_rank",
    "LowRank": "dit_heads.loras.weights.low_rank",
    "SetDataset": "dit_heads.loras.sets.dataset",
    "add_lora": "dit_heads.loras.weights.files",
    "compose": "dit_heads.loras.weights.compose",
    "join": "dit_heads.loras.sets.panels",
    "load_lora": "dit_heads.loras.weights.files",
    "lora_of": "dit_heads.loras.weights.files",
    "read_lora": "dit_heads.loras.weights.formats",
    "save_lora": "dit_heads.loras.weights.files",
    "set_scales": "dit_heads.loras.weights.compose",
    "split": "dit_heads.loras.sets.panels",
    "write_lora": "dit_heads.loras.weights.files",
}
__getattr__, __dir__ = lazy_exports(globals(), _HOME)
