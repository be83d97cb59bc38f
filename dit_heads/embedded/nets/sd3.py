"""The embedded text-to-image model: SD3's architecture at an eighth of its width."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection, T5Config, T5EncoderModel

from dit_heads.embedded.nets.clip import WIDTH as CLIP_WIDTH
from dit_heads.embedded.nets.clip import tokenize
from dit_heads.embedded.nets.vae import LATENT_CHANNELS, to_tensor
from dit_heads.embedded.world.captions import GRIDS, caption, described, joint_caption, varied_caption
from dit_heads.embedded.world.data import COVERAGE_CHANNELS
from dit_heads.embedded.world.scenes import SHAPES, Scene
from dit_heads.embedded.world.text import make_clip_tokenizer, make_t5_tokenizer
from dit_heads.families.latents import normalised
from dit_heads.families.sd3 import ExplicitJointAttention
from dit_heads.families.velocity import Velocity, velocity_of
from dit_heads.training.flow import flow_matching_loss, logit_normal_sigmas
from dit_heads.training.loop import Part

BLOCKS, HEADS, HEAD_WIDTH = 8, 12, 16
WIDTH = HEADS * HEAD_WIDTH
SHIFT = 2.0  # of the noise schedule, in training and in the pipeline's scheduler
VISIBLE = 0.6  # the noise level below which a picture shows where its solids are
SHORT, MEDIUM, LONG, STOCK = 32, 64, 128, 256  # T5 tokens; the last is the pipeline's default


def make_transformer() -> SD3Transformer2DModel:
    """8 blocks of 12 heads; the position table holds 24 x 24 patches, 384 x 384 pixels."""
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
    """Its width is the sum of both CLIP widths, as the pipeline pads CLIP's tokens up to it."""
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
    """A transformer in training, and a linear probe of what the image tokens of a middle block show.

    The probe is representation alignment (arXiv 2410.06940) with the renderer's own truth as the
    representation. It is thrown away after training. `attention` is a processor for CPUs."""

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

    def take_seen(self) -> Tensor:
        """The image tokens [B, tokens, 192] of the probed block in the last forward pass, once."""
        seen, self._seen = self._seen, None
        assert seen is not None, "the transformer has not run"
        return seen


class Student(Probed):
    """The SD3 transformer in training, probed at its middle block."""

    def __init__(self) -> None:
        transformer = make_transformer()
        super().__init__(transformer, transformer.transformer_blocks[BLOCKS // 2], ExplicitJointAttention())


@dataclass(frozen=True)
class Batch:
    """What one training step sees; `coverage` is None for composites."""

    latents: Tensor  # [B, C, h, w], normalised
    captions: list[str]
    length: int  # T5 tokens
    coverage: Tensor | None  # [B, tokens, 19]
    heard: list[str]  # what CLIP reads

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        coverage = None if self.coverage is None else self.coverage.to(device)
        return replace(self, latents=self.latents.to(device), coverage=coverage)


class Corpus:
    """Latents, coverage and captions of single pictures, and composites of unrelated panels."""

    def __init__(
        self,
        latents: Tensor,
        coverage: NDArray[np.uint8],
        scenes: Sequence[Scene],
        composites: Sequence[tuple[Tensor, list[list[int]]]],
        batch: int,
        stock: int = STOCK,
        dots: float = 1.0,
        panels: float = 0.1,
        deaf: float = 0.0,
    ) -> None:
        """`latents` [N, C, 16, 16]; `composites` has an entry for each of `GRIDS`: latents [n, C, h, w] and
        the scenes of each one's panels. `stock`: T5 tokens of the pipeline's default. `dots`: how much more
        often a scene with a dotted solid is drawn. `panels`: share of batches that are composites. `deaf`:
        share of captions that T5 reads and CLIP does not."""
        self.latents, self.coverage, self.scenes, self.batch = latents, coverage, scenes, batch
        self.composites, self.stock, self.panels, self.deaf = composites, stock, panels, deaf
        dotted = [any(solid.texture == "dotted" for solid in scene.solids) for scene in scenes]
        odds = np.where(dotted, dots, 1.0)
        self.odds = odds / odds.sum()

    def draw(self, generator: torch.Generator, *, stock_length: bool) -> Batch:
        """A batch of single pictures or of composites, a tenth of them without a caption; `stock_length` pads
        every other batch to the pipeline's default."""
        kind = torch.rand(2, generator=generator).tolist()
        rng = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator)))
        if kind[0] < self.panels and self.composites:
            return self._composites(rng)
        length = self._length(kind[1], stock_length)
        which = rng.choice(len(self.scenes), size=self._count(length), p=self.odds)
        said = [self._say(self.scenes[i], length, rng) for i in which]
        return self._batch(self.latents[which], said, length, self._cover(which), rng)

    def _batch(
        self,
        latents: Tensor,
        said: list[str],
        length: int,
        coverage: Tensor | None,
        rng: np.random.Generator,
    ) -> Batch:
        said = _drop(said, rng, 0.1)
        return Batch(latents.float(), said, length, coverage, _drop(said, rng, self.deaf))

    def _length(self, draw: float, stock_length: bool) -> int:
        """T5 is called without a mask, so it must learn that padding of any length says nothing."""
        if stock_length and draw < 0.5:
            return self.stock
        return LONG if draw > 0.93 else (MEDIUM if draw > 0.83 else SHORT)

    def _count(self, length: int) -> int:
        """Fewer pictures of longer texts: about as many tokens a step."""
        image = self.latents.shape[-2] * self.latents.shape[-1] // 4
        return max(4, self.batch * (image + SHORT) // (image + length))

    def _say(self, scene: Scene, length: int, rng: np.random.Generator) -> str:
        if length >= LONG and rng.random() < 0.5:
            return described(scene, rng)
        said = varied_caption(scene, rng)
        return said if len(said.split()) < length - 8 else caption(scene)

    def _cover(self, which: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(self.coverage[which]).flatten(1, 2).float() / 255

    def _composites(self, rng: np.random.Generator) -> Batch:
        k = int(rng.integers(len(self.composites)))
        (latents, panels), (rows, columns) = self.composites[k], GRIDS[k]
        which = rng.integers(len(panels), size=max(4, self.batch // (2 * rows * columns)))
        panel_captions = [[caption(self.scenes[i]) for i in panels[w]] for w in which]
        said = [joint_caption(each, rows, columns, rng) for each in panel_captions]
        longest = max(len(s.replace(",", " ,").replace(".", " .").split()) for s in said) + 1
        return self._batch(latents[which], said, -(-longest // 32) * 32, None, rng)


def _drop(captions: list[str], rng: np.random.Generator, share: float) -> list[str]:
    return ["" if rng.random() < share else c for c in captions]


class TextEncoders:
    """Both CLIP towers and T5, frozen, in the layout that SD3's pipeline makes of them."""

    def __init__(
        self, text: CLIPTextModelWithProjection, text_2: CLIPTextModelWithProjection, t5: T5EncoderModel
    ) -> None:
        self.towers = (text.eval().requires_grad_(False), text_2.eval().requires_grad_(False))
        self.t5 = t5.eval().requires_grad_(False)
        self.clip_tokenizer, self.t5_tokenizer = make_clip_tokenizer(), make_t5_tokenizer()

    @torch.no_grad()
    def __call__(self, captions: list[str], length: int, heard: list[str]) -> tuple[Tensor, Tensor]:
        """Joint text tokens [B, 32 + length, 192] and the pooled vector [B, 192]; CLIP reads `heard`."""
        ids = tokenize(self.clip_tokenizer, heard).to(self.t5.device)
        outs = [tower(input_ids=ids, output_hidden_states=True) for tower in self.towers]
        clip = torch.cat([o.hidden_states[-2] for o in outs], -1)
        pooled = torch.cat([o.text_embeds for o in outs], -1)
        t5_ids = tokenize(self.t5_tokenizer, captions, length).to(self.t5.device)
        return torch.cat([clip, self.t5(input_ids=t5_ids).last_hidden_state], 1), pooled


class ProbedLoss:
    """The flow-matching loss, and in the first part of training the probe's, of a model's `velocity`.

    `shift` moves the noise levels of training; `objects` is how much more errors on solids weigh once noise
    lets see where they are (most of a picture is ground, whose grain cannot be learned); `probed=False`
    leaves the probe out, for a model that has learned what it teaches."""

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
    ) -> None:
        self.student, self.texts, self.corpus, self.steps = student, texts, corpus, steps
        self.shift, self.objects, self.probed = shift, objects, probed

    def velocity(self, batch: Batch) -> Velocity:
        """The student's prediction for a batch, from latents [B, C, h, w] and noise levels [B]."""
        raise NotImplementedError

    def __call__(self, part: Part, generator: torch.Generator) -> tuple[Tensor, dict[str, float | Tensor]]:
        done = part.step / self.steps
        device = self.student.transformer.device
        batch = self.corpus.draw(generator, stock_length=done > 0.9).to(device)
        velocity = self.velocity(batch)
        sigmas = logit_normal_sigmas(len(batch.latents), generator, shift=self.shift).to(device)
        noise = torch.randn(batch.latents.shape, generator=generator).to(device)
        loss = flow_matching_loss(velocity, batch.latents, sigmas, noise, self._weight(batch, sigmas))
        seen = self.student.take_seen()
        figures: dict[str, float | Tensor] = {"flow": loss.detach()}
        weight = max(0.0, 1 - done / 0.7) if self.probed else 0.0
        if batch.coverage is not None and weight > 0:
            probe = F.binary_cross_entropy_with_logits(self.student.probe(seen).float(), batch.coverage)
            figures["probe"] = probe.detach()
            loss = loss + weight * probe
        return loss, figures

    def _weight(self, batch: Batch, sigmas: Tensor) -> Tensor | None:
        """[B, 1, h, w]: 1, and more on solids below `VISIBLE` noise. Above it the weight would tell the model
        where solids are likely to be, which is not what the caption says."""
        if not self.objects or batch.coverage is None:
            return None
        height, width = batch.latents.shape[2] // 2, batch.latents.shape[3] // 2
        solid = batch.coverage[..., : len(SHAPES)].sum(-1).unflatten(1, (1, height, width))
        solid = solid.repeat_interleave(2, -1).repeat_interleave(2, -2)
        return 1 + self.objects * solid * (sigmas < VISIBLE)[:, None, None, None]


class Sd3Loss(ProbedLoss):
    """`ProbedLoss` of a `Student` and `TextEncoders`."""

    def velocity(self, batch: Batch) -> Velocity:
        text, pooled = self.texts(batch.captions, batch.length, batch.heard)
        return velocity_of(self.student.transformer, text, pooled)


@torch.no_grad()
def encode_latents(vae: AutoencoderKL, images: NDArray[np.uint8], batch: int = 8) -> Tensor:
    """Normalised latents [N, C, h, w] in fp16 of uint8 pictures, by the posterior's mean. Small batches fit
    the cache of a CPU: 8 is 1.7 times as fast as 64."""
    parts = []
    for i in range(0, len(images), batch):
        x = to_tensor(images[i : i + batch]).to(vae.device, vae.dtype)
        x = x.contiguous(memory_format=torch.channels_last)
        mean = vae.encode(x).latent_dist.mean  # pyright: ignore[reportAttributeAccessIssue]
        parts.append(normalised(vae, mean.float()).half().cpu())
    return torch.cat(parts)


def make_composites(
    vae: AutoencoderKL, images: NDArray[np.uint8], per_grid: int, seed: int = 0
) -> list[tuple[Tensor, list[list[int]]]]:
    """`per_grid` composites of random, unrelated panels for every grid shape, encoded whole."""
    rng = np.random.default_rng(seed)
    out = []
    for rows, columns in GRIDS:
        panels = rng.integers(len(images), size=(per_grid, rows * columns))
        sheets = images[panels].reshape(per_grid, rows, columns, 128, 128, 3).transpose(0, 1, 3, 2, 4, 5)
        sheets = sheets.reshape(per_grid, rows * 128, columns * 128, 3)
        out.append((encode_latents(vae, sheets, batch=2), panels.tolist()))
    return out


def assemble(
    transformer: SD3Transformer2DModel,
    vae: AutoencoderKL,
    text: CLIPTextModelWithProjection,
    text_2: CLIPTextModelWithProjection,
    t5: T5EncoderModel,
) -> StableDiffusion3Pipeline:
    """A stock pipeline of the embedded parts."""
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
