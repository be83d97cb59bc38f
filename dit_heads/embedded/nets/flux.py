"""The embedded FLUX: FLUX.1's architecture at a sixteenth of its width, on the latents and texts of SD3.

It is trained with its guidance embedding at 1. Then classifier-free guidance is distilled into that embedding
(arXiv 2210.03142, stage one), as FLUX.1-dev was distilled from a model that needed two calls per step.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
)
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, T5EncoderModel

from dit_heads.embedded.nets.clip import WIDTH as CLIP_WIDTH
from dit_heads.embedded.nets.clip import tokenize
from dit_heads.embedded.nets.corpus import Corpus, Draw
from dit_heads.embedded.nets.sd3 import (
    SHIFT,
    WIDTH,
    Probed,
    ProbedLoss,
)
from dit_heads.embedded.nets.vae import LATENT_CHANNELS
from dit_heads.embedded.world.text import make_clip_tokenizer, make_t5_tokenizer
from dit_heads.families.flux import ExplicitFluxAttention
from dit_heads.families.velocity import Velocity, velocity_of
from dit_heads.training.flow import logit_normal_sigmas
from dit_heads.training.loop import Part

DOUBLE, SINGLE, HEADS, HEAD_WIDTH = 4, 8, 12, 16
STOCK = 512  # T5 tokens, the pipeline's default
STRONGEST = 6.0  # distilled guidance scales range from 1 to this


def make_transformer() -> FluxTransformer2DModel:
    """4 double-stream and 8 single-stream blocks of 12 heads, with a guidance embedding."""
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=4 * LATENT_CHANNELS,
        num_layers=DOUBLE,
        num_single_layers=SINGLE,
        attention_head_dim=HEAD_WIDTH,
        num_attention_heads=HEADS,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=CLIP_WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),  # pyright: ignore[reportArgumentType]
    )


class FluxStudent(Probed):
    """The FLUX transformer in training, with a probe at its first single-stream block."""

    def __init__(self) -> None:
        transformer = make_transformer()
        super().__init__(transformer, transformer.single_transformer_blocks[0], ExplicitFluxAttention())


class FluxTexts:
    """Text embeddings by SD3's T5 and its first CLIP tower, both frozen."""

    def __init__(self, clip: CLIPTextModel, t5: T5EncoderModel) -> None:
        self.clip, self.t5 = clip.eval().requires_grad_(False), t5.eval().requires_grad_(False)
        self.clip_tokenizer, self.t5_tokenizer = make_clip_tokenizer(), make_t5_tokenizer()

    @torch.no_grad()
    def __call__(self, captions: list[str], length: int) -> tuple[Tensor, Tensor]:
        """Text tokens [B, length, 192] and pooled vectors [B, 96]."""
        clip_ids = tokenize(self.clip_tokenizer, captions).to(self.clip.device)
        pooled = self.clip(input_ids=clip_ids).pooler_output
        ids = tokenize(self.t5_tokenizer, captions, length).to(self.t5.device)
        return self.t5(input_ids=ids).last_hidden_state, pooled


class FluxLoss(ProbedLoss):
    """`ProbedLoss` of a `FluxStudent` and `FluxTexts`, with the guidance embedding at 1."""

    def velocity(self, batch: Draw) -> Velocity:
        text, pooled = self.texts(batch.captions, batch.length)
        return velocity_of(self.student.transformer, text, pooled)


class DistilledLoss:
    """Distance to a teacher's CFG: u + g (c - u), g from 1 to `STRONGEST` (arXiv 2210.03142, eq. 2)."""

    def __init__(
        self, student: FluxStudent, teacher: Any, texts: FluxTexts, corpus: Corpus, steps: int
    ) -> None:
        self.student, self.texts, self.corpus, self.steps = student, texts, corpus, steps
        self.teacher = teacher.eval().requires_grad_(False)

    def __call__(self, part: Part, generator: torch.Generator) -> tuple[Tensor, dict[str, float | Tensor]]:
        device = self.student.transformer.device
        batch = self.corpus.draw(generator, stock_length=part.step / self.steps > 0.9).to(device)
        count = len(batch.latents)
        conditional = self.texts(batch.captions, batch.length)
        unconditional = self.texts([""] * count, batch.length)
        sigmas = logit_normal_sigmas(count, generator, shift=SHIFT).to(device)
        noise = torch.randn(batch.latents.shape, generator=generator).to(device)
        g = 1 + (STRONGEST - 1) * torch.rand(count, generator=generator).to(device)
        s = sigmas[:, None, None, None]
        x = (1 - s) * batch.latents + s * noise
        with torch.no_grad():
            both = conditional, unconditional
            c, u = (velocity_of(self.teacher, *texts)(x, sigmas) for texts in both)
            target = u + g[:, None, None, None] * (c - u)
        found = velocity_of(self.student.transformer, *conditional, guidance=g)(x, sigmas)
        self.student.take_seen()
        loss = (found.float() - target.float()).pow(2).mean()
        return loss, {"distance": loss.detach()}


def assemble_flux(
    transformer: FluxTransformer2DModel, vae: AutoencoderKL, clip: CLIPTextModel, t5: T5EncoderModel
) -> FluxPipeline:
    """A stock pipeline of the given parts that generates 128 x 128 pixels by default."""
    pipe = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        vae=vae,
        text_encoder=clip,
        tokenizer=make_clip_tokenizer(),
        text_encoder_2=t5,
        tokenizer_2=make_t5_tokenizer(),
        transformer=transformer,
    )
    pipe.default_sample_size = 16
    return pipe


def load_clip_text(folder: Path) -> CLIPTextModel:
    """SD3's first text tower without its projection, as FLUX's pipeline needs it."""
    whole = CLIPTextModelWithProjection.from_pretrained(folder / "sd3/text_encoder", local_files_only=True)
    tower = CLIPTextModel(whole.config)
    # Older versions of transformers wrap it in one more module.
    getattr(tower, "text_model", tower).load_state_dict(whole.text_model.state_dict())
    return tower.eval()


def load_t5(folder: Path) -> T5EncoderModel:
    """The T5 of the embedded SD3."""
    return T5EncoderModel.from_pretrained(folder / "sd3/text_encoder_3", local_files_only=True)


def load_flux(folder: Path) -> FluxPipeline:
    """The pipeline of exported weights. All parts but the transformer are those of SD3."""
    transformer = FluxTransformer2DModel.from_pretrained(folder / "flux/transformer", local_files_only=True)
    vae = AutoencoderKL.from_pretrained(folder / "sd3/vae", local_files_only=True)
    return assemble_flux(transformer, vae, load_clip_text(folder), load_t5(folder))
