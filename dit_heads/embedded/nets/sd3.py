"""The embedded text-to-image model: SD3's architecture at an eighth of its width."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from jaxtyping import Float
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection, T5Config, T5EncoderModel

from dit_heads.embedded.nets.clip import WIDTH as CLIP_WIDTH
from dit_heads.embedded.nets.clip import tokenize
from dit_heads.embedded.nets.corpus import Corpus, Draw
from dit_heads.embedded.nets.vae import LATENT_CHANNELS
from dit_heads.embedded.world.data import COVERAGE_CHANNELS
from dit_heads.embedded.world.scenes import SHAPES
from dit_heads.embedded.world.text import make_clip_tokenizer, make_t5_tokenizer
from dit_heads.families.sd3 import ExplicitJointAttention
from dit_heads.families.velocity import Velocity, velocity_of
from dit_heads.training.flow import flow_matching_loss, logit_normal_sigmas
from dit_heads.training.loop import Part

BLOCKS, HEADS, HEAD_WIDTH = 8, 12, 16
WIDTH = HEADS * HEAD_WIDTH
SHIFT = 2.0  # shift of the noise schedule, in training and in the pipeline's scheduler
VISIBLE = 0.6  # noise level below which the places of solids can be seen


def make_transformer() -> SD3Transformer2DModel:
    """A transformer with 8 blocks of 12 heads. Its position table covers 384 x 384 pixels."""
    return SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=BLOCKS,
        attention_head_dim=HEAD_WIDTH,
        num_attention_heads=HEADS,
        joint_attention_dim=WIDTH,
        caption_projection_dim=WIDTH,
        pooled_projection_dim=2 * CLIP_WIDTH,
        pos_embed_max_size=24,
    )


def make_t5(vocab_size: int) -> T5EncoderModel:
    """A T5 as wide as both CLIPs together, since the pipeline pads CLIP's tokens to T5's width."""
    config = T5Config(
        vocab_size=vocab_size,
        d_model=WIDTH,
        d_kv=32,
        num_heads=6,
        d_ff=384,
        num_layers=2,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        relative_attention_num_buckets=32,
        pad_token_id=0,
        eos_token_id=1,
    )
    return T5EncoderModel(config)


class Probed(nn.Module):
    """A transformer in training, with a linear probe of the attributes that image tokens show.

    The probe is representation alignment (arXiv 2410.06940) with the renderer's ground truth as the
    representation. It is dropped after training.

    Args:
        transformer: the transformer.
        block: the block whose output is probed.
        attention: attention processor to use on a CPU.
    """

    def __init__(self, transformer: Any, block: nn.Module, attention: Any) -> None:
        super().__init__()
        self.transformer = transformer
        if not torch.cuda.is_available():
            transformer.set_attn_processor(attention)
        self.probe = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, COVERAGE_CHANNELS))
        self._seen: Tensor | None = None
        block.register_forward_hook(self._keep)

    def _keep(self, block: nn.Module, args: object, output: tuple[Tensor, Tensor]) -> None:
        self._seen = output[1]  # (text, image)

    def take_seen(self) -> Float[Tensor, "b n d"]:
        """The image tokens of the probed block in the last forward pass. Each pass yields them once."""
        seen, self._seen = self._seen, None
        assert seen is not None, "the transformer has not run"
        return seen


class Student(Probed):
    """The SD3 transformer in training, with a probe at its middle block."""

    def __init__(self) -> None:
        transformer = make_transformer()
        super().__init__(transformer, transformer.transformer_blocks[BLOCKS // 2], ExplicitJointAttention())


class TextEncoders:
    """Text embeddings by both CLIP towers and T5, all frozen, combined as SD3's pipeline does."""

    def __init__(
        self, text: CLIPTextModelWithProjection, text_2: CLIPTextModelWithProjection, t5: T5EncoderModel
    ) -> None:
        self.towers = (text.eval().requires_grad_(False), text_2.eval().requires_grad_(False))
        self.t5 = t5.eval().requires_grad_(False)
        self.clip_tokenizer, self.t5_tokenizer = make_clip_tokenizer(), make_t5_tokenizer()

    @torch.no_grad()
    def __call__(self, captions: list[str], length: int, clip_captions: list[str]) -> tuple[Tensor, Tensor]:
        """Text tokens [B, 32 + length, 192] and pooled vectors [B, 192] of captions for T5 and for CLIP."""
        ids = tokenize(self.clip_tokenizer, clip_captions).to(self.t5.device)
        outs = [tower(input_ids=ids, output_hidden_states=True) for tower in self.towers]
        clip = torch.cat([o.hidden_states[-2] for o in outs], -1)
        pooled = torch.cat([o.text_embeds for o in outs], -1)
        t5_ids = tokenize(self.t5_tokenizer, captions, length).to(self.t5.device)
        return torch.cat([clip, self.t5(input_ids=t5_ids).last_hidden_state], 1), pooled


class ProbedLoss:
    """The flow-matching loss of a model's velocity, and in the first part of training the loss of its probe.

    Args:
        student: the model with its probe.
        texts: the text encoders.
        corpus: the training data.
        steps: number of steps of the run.
        shift: shift of the noise levels in training. For composites it is larger.
        objects: additional weight of errors on solids at noise levels where their places can be seen. Most of
            a picture is ground, whose grain cannot be learned.
        probed: whether to use the probe. A trained model no longer needs it.
        long: fraction of the run, at its end, in which every other batch of single pictures has the default
            text length of the pipeline.
    """

    def __init__(
        self,
        student: Any,
        texts: Any,
        corpus: Corpus,
        steps: int,
        *,
        shift: float = SHIFT,
        objects: float = 0.0,
        probed: bool = True,
        long: float = 0.1,
    ) -> None:
        self.student, self.texts, self.corpus, self.steps = student, texts, corpus, steps
        self.shift, self.objects, self.probed, self.long = shift, objects, probed, long

    def velocity(self, batch: Draw) -> Velocity:
        """The student's prediction as a function of latents [B, C, h, w] and noise levels [B]."""
        raise NotImplementedError

    def __call__(self, part: Part, generator: torch.Generator) -> tuple[Tensor, dict[str, float | Tensor]]:
        done = part.step / self.steps
        device = self.student.transformer.device
        batch = self.corpus.draw(generator, stock_length=done > 1 - self.long).to(device)
        velocity = self.velocity(batch)
        # Larger pictures need more noise to be hidden (arXiv 2403.03206, eq. 23).
        shift = self.shift * self._panels(batch) ** 0.5
        sigmas = logit_normal_sigmas(len(batch.latents), generator, shift=shift).to(device)
        noise = torch.randn(batch.latents.shape, generator=generator).to(device)
        loss = flow_matching_loss(velocity, batch.latents, sigmas, noise, self._weight(batch, sigmas))
        seen = self.student.take_seen()
        kind = "" if self._panels(batch) == 1 else "_composites"
        figures: dict[str, float | Tensor] = {"flow" + kind: loss.detach()}
        weight = max(0.0, 1 - done / 0.7) if self.probed else 0.0
        if weight > 0:
            probe = F.binary_cross_entropy_with_logits(self.student.probe(seen).float(), batch.coverage)
            figures["probe" + kind] = probe.detach()
            loss = loss + weight * probe
        return loss, figures

    def _panels(self, batch: Draw) -> int:
        return batch.latents[0, 0].numel() // self.corpus.latents[0, 0].numel()

    def _weight(self, batch: Draw, sigmas: Tensor) -> Tensor | None:
        """Weights of errors [B, 1, h, w]: 1, and more on solids at noise levels below `VISIBLE`.

        At higher levels, the weight would teach the model where solids usually are instead of the caption.
        """
        if not self.objects:
            return None
        height, width = batch.latents.shape[2] // 2, batch.latents.shape[3] // 2
        solid = batch.coverage[..., : len(SHAPES)].sum(-1).unflatten(1, (1, height, width))
        solid = solid.repeat_interleave(2, -1).repeat_interleave(2, -2)
        return 1 + self.objects * solid * (sigmas < VISIBLE)[:, None, None, None]


class Sd3Loss(ProbedLoss):
    """`ProbedLoss` of a `Student` and `TextEncoders`."""

    def velocity(self, batch: Draw) -> Velocity:
        text, pooled = self.texts(batch.captions, batch.length, batch.clip_captions)
        return velocity_of(self.student.transformer, text, pooled)


def assemble(
    transformer: SD3Transformer2DModel,
    vae: AutoencoderKL,
    text: CLIPTextModelWithProjection,
    text_2: CLIPTextModelWithProjection,
    t5: T5EncoderModel,
) -> StableDiffusion3Pipeline:
    """A stock pipeline of the given parts."""
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        vae=vae,
        text_encoder=text,
        tokenizer=make_clip_tokenizer(),
        text_encoder_2=text_2,
        tokenizer_2=make_clip_tokenizer(),
        text_encoder_3=t5,
        tokenizer_3=make_t5_tokenizer(),
    )
