"""How FLUX's T5 learns to read: what the queries are asked, and that a few steps teach it something."""

import pytest
import torch

from dit_heads.embedded.nets.judge import labels
from dit_heads.embedded.nets.reader import Reader, ReaderLoss, reading
from dit_heads.embedded.nets.sd3 import make_t5, make_t5_tokenizer
from dit_heads.embedded.world.captions import caption
from dit_heads.embedded.world.data import scene_of
from dit_heads.training.loop import FitConfig, Part, fit

SCENES = [scene_of("test", i) for i in range(4)]


@pytest.fixture
def reader() -> Reader:
    torch.manual_seed(0)
    return Reader(make_t5(len(make_t5_tokenizer())))


def test_a_step_reaches_the_t5_and_depends_on_its_generator_alone(reader):
    loss = ReaderLoss(reader, make_t5_tokenizer(), SCENES, batch=4)
    first, _ = loss(Part(0), torch.Generator().manual_seed(1))
    again, _ = loss(Part(0), torch.Generator().manual_seed(1))
    assert first.item() == again.item() and first.item() > 0
    first.backward()
    used = reader.t5.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight
    assert used.grad is not None and used.grad.abs().max() > 0


def test_a_few_captions_can_be_learned_with_the_order_of_their_solids(reader, tmp_path):
    tokenizer, captions = make_t5_tokenizer(), [caption(scene) for scene in SCENES]
    assert (labels(SCENES)["shape"] >= 0).sum() > len(SCENES)  # several solids in some
    before = reading(reader, tokenizer, SCENES, captions)
    config = FitConfig(60, 2e-3, "muon", warmup=5, ema=0.5, precision="no")
    fit(reader, ReaderLoss(reader, tokenizer, SCENES, batch=8), config, tmp_path)
    assert before < 0.5 < reading(reader, tokenizer, SCENES, captions)
