"""The embedded FLUX: its inputs against the stock pipeline's own, its training and its distillation."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from transformers import CLIPTextModel

from dit_heads.embedded.nets import flux
from dit_heads.embedded.nets.clip import make_text_tower
from dit_heads.embedded.nets.corpus import Corpus
from dit_heads.embedded.nets.flux import DistilledLoss, FluxLoss, FluxStudent, FluxTexts
from dit_heads.embedded.nets.sd3 import make_t5
from dit_heads.embedded.nets.vae import LATENT_CHANNELS, make_vae
from dit_heads.embedded.world.captions import caption
from dit_heads.embedded.world.data import COVERAGE_CHANNELS, scene_of
from dit_heads.embedded.world.text import make_clip_tokenizer, make_t5_tokenizer
from dit_heads.families.flux import pack, unpack
from dit_heads.families.velocity import velocity_of
from dit_heads.training.loop import Part

SCENES = [scene_of("test", i) for i in range(6)]


@pytest.fixture
def student() -> FluxStudent:
    torch.manual_seed(0)
    return FluxStudent()


@pytest.fixture
def texts() -> FluxTexts:
    torch.manual_seed(1)
    config = make_text_tower(len(make_clip_tokenizer()), 2, "quick_gelu").config
    return FluxTexts(CLIPTextModel(config), make_t5(len(make_t5_tokenizer())))


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    g = torch.Generator().manual_seed(2)
    latents = torch.randn(len(SCENES), LATENT_CHANNELS, 16, 16, generator=g).half()
    cover = np.zeros((len(SCENES), 8, 8, COVERAGE_CHANNELS), np.uint8)
    return Corpus(latents, cover, SCENES, [], batch=2, stock=flux.STOCK)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_packing_is_the_pipelines_and_has_an_inverse():
    latents = torch.randn(2, LATENT_CHANNELS, 8, 12, generator=seeded())
    theirs = FluxPipeline._pack_latents(latents, 2, LATENT_CHANNELS, 8, 12)
    assert torch.equal(pack(latents), theirs)
    assert torch.equal(unpack(theirs, 8, 12), latents)
    assert torch.equal(FluxPipeline._unpack_latents(theirs, 64, 96, 8), latents)


def test_a_prediction_is_what_the_pipeline_asks_for(student: FluxStudent, texts: FluxTexts):
    """One step of one Euler step from pure noise is the velocity itself."""
    pipe: Any = flux.assemble_flux(student.transformer, make_vae(), texts.clip, texts.t5)
    pipe.set_progress_bar_config(disable=True)
    noise = torch.randn(1, LATENT_CHANNELS, 16, 16, generator=seeded())
    call = {
        "num_inference_steps": 1,
        "guidance_scale": 2.5,
        "max_sequence_length": 32,
        "output_type": "latent",
    }
    prompt = caption(SCENES[0])
    end = unpack(pipe(prompt, latents=pack(noise), **call).images, 16, 16)
    with torch.no_grad():
        found = velocity_of(student.transformer, *texts([prompt], 32), guidance=2.5)(noise, torch.ones(1))
    torch.testing.assert_close(noise - end, found, atol=1e-4, rtol=1e-4)
    assert pipe.default_sample_size == 16


def test_training_attention_is_the_stock_one(student: FluxStudent, texts: FluxTexts):
    stock = flux.make_transformer()
    stock.load_state_dict(student.transformer.state_dict())
    x, s, g = torch.randn(2, LATENT_CHANNELS, 16, 16, generator=seeded()), torch.rand(2), torch.ones(2)
    with torch.no_grad():
        said = texts([caption(scene) for scene in SCENES[:2]], 32)
        ours, theirs = (velocity_of(t, *said, guidance=g)(x, s) for t in (student.transformer, stock))
    torch.testing.assert_close(ours, theirs)


def test_a_training_step_reaches_the_transformer_but_no_text_encoder(
    student: FluxStudent, texts: FluxTexts, corpus: Corpus
):
    loss, figures = FluxLoss(student, texts, corpus, steps=10)(Part(0), seeded())
    assert loss.item() == pytest.approx(float(figures["flow"]) + float(figures["probe"]))
    loss.backward()
    blocks = (student.transformer.transformer_blocks[0], student.transformer.single_transformer_blocks[-1])
    assert all(p.grad is not None for block in blocks for p in block.parameters())
    assert not any(p.requires_grad for part in (texts.clip, texts.t5) for p in part.parameters())


def test_a_student_that_knows_cfg_already_has_nothing_to_learn(
    student: FluxStudent, texts: FluxTexts, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
):
    """At guidance 1 the target is the teacher's own prediction; elsewhere it is CFG."""
    teacher = copy.deepcopy(student.transformer)
    with torch.no_grad():
        far, _ = DistilledLoss(student, teacher, texts, corpus, steps=10)(Part(0), seeded())
        monkeypatch.setattr(flux, "STRONGEST", 1.0)
        near, _ = DistilledLoss(student, teacher, texts, corpus, steps=10)(Part(0), seeded())
    assert near.item() == pytest.approx(0, abs=1e-9) and far.item() > 1e-6
    assert not any(p.requires_grad for p in teacher.parameters())


def test_late_batches_have_the_pipelines_default_length(corpus: Corpus):
    lengths = {corpus.draw(seeded(k), stock_length=True).length for k in range(20)}
    assert flux.STOCK in lengths and flux.STOCK == 512
