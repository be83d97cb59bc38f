"""How FLUX's T5 learns to read: what the queries are asked, and that a few steps teach it something."""

import numpy as np
import pytest
import torch

from dit_heads.embedded.nets.judge import labels
from dit_heads.embedded.nets.reader import Reader, ReaderLoss, reading
from dit_heads.embedded.nets.sd3 import make_t5, make_t5_tokenizer
from dit_heads.embedded.world.captions import caption, scenes_caption
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


def test_each_panel_of_a_joint_caption_is_asked_for_its_own_scene(reader):
    ids = torch.randint(3, 200, (2, 40), generator=torch.Generator().manual_seed(0))
    tokens = reader.t5(input_ids=ids).last_hidden_state
    three, one = reader(tokens, panels=3), reader(tokens)
    assert three["shape"].shape[:2] == (6, 3) and three["sky"].shape[0] == 6
    for name, logits in one.items():
        torch.testing.assert_close(three[name][::3], logits)  # as of a picture
        assert not torch.equal(three[name][1::3], logits)


def test_tokens_of_single_captions_are_kept_close_to_those_of_the_anchor(reader):
    loss = ReaderLoss(reader, make_t5_tokenizer(), SCENES, batch=4, anchor=make_t5(len(make_t5_tokenizer())))
    kinds = [loss(Part(0), torch.Generator().manual_seed(k))[1] for k in range(8)]
    assert {("distance" in figures) for figures in kinds} == {True, False}
    for figures in kinds:
        assert ("distance" in figures) is ("single_shape" in figures) is ("joint_shape" not in figures)


def test_reading_counts_the_solids_of_every_panel(reader):
    tokenizer, rng = make_t5_tokenizer(), np.random.default_rng(0)
    texts = [scenes_caption(SCENES[:2], 1, 2, rng), scenes_caption(SCENES[2:], 1, 2, rng)]
    assert 0 <= reading(reader, tokenizer, SCENES, texts, panels=2) <= 0.2  # it has learned nothing yet


@pytest.mark.slow
def test_a_few_captions_can_be_learned_with_the_order_of_their_solids(reader, tmp_path):
    tokenizer, captions = make_t5_tokenizer(), [caption(scene) for scene in SCENES]
    assert (labels(SCENES)["shape"] >= 0).sum() > len(SCENES)  # several solids in some
    before = reading(reader, tokenizer, SCENES, captions)
    config = FitConfig(60, 2e-3, "muon", warmup=5, ema=0.5, precision="no")
    fit(reader, ReaderLoss(reader, tokenizer, SCENES, batch=8), config, tmp_path)
    assert before < 0.5 < reading(reader, tokenizer, SCENES, captions)
