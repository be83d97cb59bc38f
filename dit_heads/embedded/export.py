"""The embedded weights: a diffusers folder `sd3/`, FLUX's transformer `flux/`, CLIP's image tower `clip/`,
the judge `judge/`."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTextModelWithProjection, CLIPVisionModelWithProjection, T5EncoderModel

from dit_heads.embedded import WEIGHTS
from dit_heads.embedded.nets.clip import Clip
from dit_heads.embedded.nets.flux import FluxStudent, load_flux
from dit_heads.embedded.nets.judge import Judge
from dit_heads.embedded.nets.sd3 import Student, assemble
from dit_heads.io.atomic import write_tensors

SHARD_SIZE = "15MB"  # keeps every file of weights below 16 MiB


def export_weights(
    student: Student,
    towers: Clip,
    t5: T5EncoderModel,
    vae: AutoencoderKL,
    judge: Judge,
    folder: Path = WEIGHTS,
) -> None:
    """Write transformer, VAE, image tower and judge in fp16, and the text encoders in fp32.

    transformers keeps the dtype of a file, and a plain `from_pretrained` must not mix fp16 encoders with an
    fp32 transformer. The models passed in are in fp16 afterwards.
    """
    pipe = assemble(student.transformer.half(), vae.half(), towers.text, towers.text_2, t5)
    _forget_shards(folder / "sd3")
    pipe.save_pretrained(folder / "sd3", safe_serialization=True, max_shard_size=SHARD_SIZE)
    towers.image.half().save_pretrained(folder / "clip")
    (folder / "judge").mkdir(exist_ok=True)
    halves = {k: v.half() for k, v in judge.state_dict().items()}
    write_tensors(folder / "judge" / "judge.safetensors", halves, {"format": "pt"})


def export_flux_weights(student: FluxStudent, folder: Path = WEIGHTS) -> None:
    """Write FLUX's transformer in fp16 and the index of its pipeline, whose other parts are those of SD3.

    The transformer passed in is in fp16 afterwards.
    """
    _forget_shards(folder / "flux")
    student.transformer.half().save_pretrained(folder / "flux" / "transformer", max_shard_size=SHARD_SIZE)
    load_flux(folder).save_config(folder / "flux")


def _forget_shards(folder: Path) -> None:
    """Delete the weights of an earlier export, which may have other file names."""
    for path in [*folder.rglob("*.safetensors"), *folder.rglob("*.safetensors.index.json")]:
        path.unlink()


# Folders of a trained module's parameters, by the prefix of their names.
_FOLDERS = {
    "sd3": {"transformer.": "sd3/transformer"},
    "vae": {"": "sd3/vae"},
    "clip": {"text.": "sd3/text_encoder", "text_2.": "sd3/text_encoder_2", "image.": "clip"},
    "judge": {"": "judge"},
    "flux": {"transformer.": "flux/transformer"},
    "t5": {"t5.": "sd3/text_encoder_3"},
}


def packaged(part: str, folder: Path = WEIGHTS) -> dict[str, Tensor]:
    """The embedded weights of sd3, t5, vae, clip, judge or flux, in fp32, by their names in training."""
    return {
        prefix + name: tensor.float()
        for prefix, place in _FOLDERS[part].items()
        for path in sorted((folder / place).glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def load_judge(folder: Path = WEIGHTS) -> Judge:
    """The trained judge, in fp32 and evaluation mode."""
    judge = Judge()
    judge.load_state_dict(packaged("judge", folder))
    return judge.eval()


def load_clip(folder: Path = WEIGHTS) -> tuple[CLIPTextModelWithProjection, CLIPVisionModelWithProjection]:
    """The trained CLIP in fp32: SD3's first text tower and the image tower."""
    text = CLIPTextModelWithProjection.from_pretrained(folder / "sd3" / "text_encoder")
    image = CLIPVisionModelWithProjection.from_pretrained(folder / "clip", dtype=torch.float32)
    return text.eval(), image.eval()  # pyright: ignore[reportAttributeAccessIssue]
