"""The embedded SD3: a training step on a tiny corpus, and its text input against the stock pipeline's own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dit_heads.embedded.nets import sd3
from dit_heads.embedded.nets.clip import make_text_tower
from dit_heads.embedded.nets.sd3 import (
    LONG,
    MEDIUM,
    SHORT,
    STOCK,
    Batch,
    Corpus,
    Sd3Loss,
    Student,
    TextEncoders,
)
from dit_heads.embedded.nets.vae import LATENT_CHANNELS, make_vae, to_tensor
from dit_heads.embedded.world.captions import GRIDS, caption
from dit_heads.embedded.world.data import COVERAGE_CHANNELS, scene_of
from dit_heads.embedded.world.text import make_clip_tokenizer, make_t5_tokenizer
from dit_heads.training.loop import Part

COUNT = 12
SCENES = [scene_of("test", i) for i in range(COUNT)]
T5 = make_t5_tokenizer()


def numbered(count: int, height: int, width: int) -> Tensor:
    """Latents that hold their own index everywhere."""
    index = torch.arange(float(count)).view(-1, 1, 1, 1)
    return index.expand(count, LATENT_CHANNELS, height, width).half()


def corpus(batch: int = 8, *, composites: bool = False, deaf: float = 0.0) -> Corpus:
    cover = np.arange(COUNT, dtype=np.uint8)[:, None, None, None].repeat(8, 1).repeat(8, 2)
    panels = [np.arange(3 * r * c).reshape(3, r * c) % COUNT for r, c in GRIDS]
    sheets = [(numbered(3, 16 * r, 16 * c), p.tolist()) for (r, c), p in zip(GRIDS, panels, strict=True)]
    cover = cover.repeat(COVERAGE_CHANNELS, 3)
    return Corpus(numbered(COUNT, 16, 16), cover, SCENES, sheets if composites else [], batch, deaf=deaf)


def draws(source: Corpus, count: int, *, stock_length: bool = False) -> list[Batch]:
    generators = [torch.Generator().manual_seed(k) for k in range(count)]
    return [source.draw(g, stock_length=stock_length) for g in generators]


@pytest.fixture(scope="module")
def student() -> Student:
    torch.manual_seed(0)
    return Student()


@pytest.fixture(scope="module")
def texts() -> TextEncoders:
    torch.manual_seed(1)
    size = len(make_clip_tokenizer())
    towers = make_text_tower(size, 2, "quick_gelu"), make_text_tower(size, 3, "gelu")
    return TextEncoders(*towers, sd3.make_t5(len(T5)))


@pytest.fixture(scope="module")
def pipe(student: Student, texts: TextEncoders) -> Any:
    torch.manual_seed(2)
    vae: Any = make_vae()
    vae.register_to_config(shift_factor=0.1, scaling_factor=2.0)
    made: Any = sd3.assemble(student.transformer, vae, *texts.towers, texts.t5)
    made.set_progress_bar_config(disable=True)
    return made


def test_a_training_step_reaches_all_that_is_trained_and_no_more(student: Student, texts: TextEncoders):
    loss, figures = Sd3Loss(student, texts, corpus(batch=2), steps=10)(
        Part(0), torch.Generator().manual_seed(0)
    )
    assert loss.shape == () and loss.item() == pytest.approx(float(figures["flow"]) + float(figures["probe"]))
    loss.backward()
    for part in (student.transformer.transformer_blocks[0], student.probe):
        assert all(p.grad is not None for p in part.parameters())
    assert not any(p.requires_grad for part in (*texts.towers, texts.t5) for p in part.parameters())
    student.zero_grad()


def test_the_probe_fades_and_composites_have_none(student: Student, texts: TextEncoders):
    def figures(source: Corpus, step: int, seed: int = 0) -> dict[str, Any]:
        with torch.no_grad():
            loss, found = Sd3Loss(student, texts, source, steps=100)(
                Part(step), torch.Generator().manual_seed(seed)
            )
        return {k: float(v) for k, v in {**found, "loss": loss}.items()}

    half = figures(corpus(batch=2), 35)
    assert half["loss"] - half["flow"] == pytest.approx(half["probe"] / 2, abs=1e-5)
    assert "probe" not in figures(corpus(batch=2), 70)
    sheets = corpus(batch=2, composites=True)
    seed = next(k for k, b in enumerate(draws(sheets, 40)) if b.coverage is None)
    assert "probe" not in figures(sheets, 0, seed)
    with pytest.raises(AssertionError, match="the transformer has not run"):
        student.take_seen()


def test_a_warm_run_has_no_probe_and_may_look_at_lower_noise(
    student: Student, texts: TextEncoders, monkeypatch: pytest.MonkeyPatch
):
    seen: list[float] = []
    drawn = sd3.logit_normal_sigmas

    def sigmas(count: int, generator: torch.Generator, *, shift: float) -> torch.Tensor:
        seen.append(shift)
        return drawn(count, generator, shift=shift)

    monkeypatch.setattr(sd3, "logit_normal_sigmas", sigmas)
    with torch.no_grad():
        loss = Sd3Loss(student, texts, corpus(batch=2), steps=10, shift=1.0, probed=False)
        value, figures = loss(Part(0), torch.Generator().manual_seed(0))
    assert set(figures) == {"flow"} and value == figures["flow"] and seen == [1.0]


def test_errors_on_solids_weigh_more_where_noise_lets_see_them(student: Student, texts: TextEncoders):
    source = corpus(batch=2)
    coverage = torch.zeros(2, 64, COVERAGE_CHANNELS)
    coverage[:, 9, 2] = 0.5  # half of the token in row 1, column 1, is on a solid
    batch = Batch(torch.zeros(2, LATENT_CHANNELS, 16, 16), ["", ""], SHORT, coverage, ["", ""])
    loss = Sd3Loss(student, texts, source, steps=10, objects=4.0)
    weight = loss._weight(batch, torch.tensor([0.3, 0.8]))
    expected = torch.ones(2, 1, 16, 16)
    expected[0, 0, 2:4, 2:4] = 3
    assert weight is not None and torch.equal(weight, expected)
    assert Sd3Loss(student, texts, source, steps=10)._weight(batch, torch.tensor([0.3, 0.8])) is None


def test_text_input_is_the_pipelines(pipe: Any, texts: TextEncoders):
    said = [caption(SCENES[0]), "", caption(SCENES[1])]
    with torch.no_grad():
        mine = texts(said, MEDIUM, said)
        theirs = pipe.encode_prompt(
            said, None, None, do_classifier_free_guidance=False, max_sequence_length=MEDIUM
        )
    assert mine[0].shape == (3, 32 + MEDIUM, sd3.WIDTH)
    torch.testing.assert_close(mine[0], theirs[0])
    torch.testing.assert_close(mine[1], theirs[2])


def test_the_pipeline_paints(pipe: Any):
    call = {"num_inference_steps": 1, "max_sequence_length": SHORT, "output_type": "pt"}
    pictures = pipe([caption(SCENES[0])], generator=torch.Generator().manual_seed(0), **call).images
    assert pictures.shape == (1, 3, 128, 128) and pictures.isfinite().all()
    assert pipe.scheduler.config.shift == sd3.SHIFT


def test_the_position_table_holds_every_grid_and_ends_at_384_pixels(student: Student):
    sides = [(16 * r, 16 * c) for r, c in GRIDS]
    assert (32, 48) in sides  # 256 x 384 pixels
    for height, width in [*sides, (48, 48)]:
        seen = student.transformer.pos_embed(torch.zeros(1, LATENT_CHANNELS, height, width))
        assert seen.shape == (1, height * width // 4, sd3.WIDTH)
    with pytest.raises(ValueError, match="cannot be greater"):
        student.transformer.pos_embed(torch.zeros(1, LATENT_CHANNELS, 16, 50))


def test_pictures_keep_their_captions_and_coverage():
    for batch in draws(corpus(), 40):
        which = batch.latents[:, 0, 0, 0].long().tolist()
        assert batch.latents.shape[1:] == (LATENT_CHANNELS, 16, 16) and batch.latents.dtype == torch.float32
        assert batch.coverage is not None and batch.coverage.shape == (len(which), 64, COVERAGE_CHANNELS)
        assert (batch.coverage[:, 0, 0] * 255).round().int().tolist() == which
        for index, text in zip(which, batch.captions, strict=True):
            named = [f"{s.colour} {s.shape}" for s in SCENES[index].solids]
            assert text == "" or all(name in text for name in named)


def test_a_tenth_of_the_captions_is_dropped():
    said = [c for b in draws(corpus(batch=16), 150) for c in b.captions]
    assert sum(c == "" for c in said) / len(said) == pytest.approx(0.1, abs=0.02)


def test_t5_reads_a_share_of_the_captions_alone():
    batches = draws(corpus(batch=16, deaf=0.25), 150)
    pairs = [pair for b in batches for pair in zip(b.captions, b.heard, strict=True) if pair[0]]
    assert {heard for said, heard in pairs if heard != said} == {""}
    assert sum(heard == "" for _, heard in pairs) / len(pairs) == pytest.approx(0.25, abs=0.03)
    assert all(b.captions == b.heard for b in draws(corpus(batch=16), 10))


def test_text_lengths_and_batch_sizes():
    drawn = draws(corpus(), 200)
    shares = {n: sum(b.length == n for b in drawn) / 200 for n in (SHORT, MEDIUM, LONG, STOCK)}
    assert shares[SHORT] == pytest.approx(0.83, abs=0.08) and shares[STOCK] == 0
    assert shares[MEDIUM] > 0.03 and shares[LONG] > 0.02
    late = draws(corpus(), 200, stock_length=True)
    assert sum(b.length == STOCK for b in late) / 200 == pytest.approx(0.5, abs=0.1)
    sizes = {SHORT: 8, MEDIUM: 6, LONG: 4, STOCK: 4}  # about 8 x (64 + 32) tokens, and 4 pictures at least
    assert all(len(b.latents) == sizes[b.length] for b in drawn + late)


def test_no_caption_is_cut():
    drawn = draws(corpus(composites=True), 200) + draws(corpus(), 50, stock_length=True)
    assert any(b.coverage is None for b in drawn)
    for batch in drawn:
        assert max(map(len, T5(batch.captions).input_ids)) <= batch.length


def test_composites_come_with_the_captions_of_their_panels():
    sheets = [b for b in draws(corpus(batch=16, composites=True), 300) if b.coverage is None]
    assert len(sheets) / 300 == pytest.approx(0.1, abs=0.05)
    assert {tuple(b.latents.shape[2:]) for b in sheets} == {(16 * r, 16 * c) for r, c in GRIDS}
    for batch in sheets:
        rows, columns = batch.latents.shape[2] // 16, batch.latents.shape[3] // 16
        assert len(batch.latents) == max(4, 16 // (2 * rows * columns)) and batch.length % 32 == 0
        for sheet, text in zip(batch.latents[:, 0, 0, 0].int().tolist(), batch.captions, strict=True):
            panels = [SCENES[(sheet * rows * columns + k) % COUNT] for k in range(rows * columns)]
            found = [text.find(f"] {caption(p)}") for p in panels]
            assert text == "" or (min(found) > 0 and found == sorted(found))


def test_composites_show_their_panels_in_reading_order(monkeypatch: pytest.MonkeyPatch):
    images = np.arange(COUNT, dtype=np.uint8)[:, None, None, None].repeat(128, 1).repeat(128, 2).repeat(3, 3)
    monkeypatch.setattr(sd3, "encode_latents", lambda vae, sheets, batch: torch.from_numpy(sheets.copy()))
    made = sd3.make_composites(make_vae(), images, per_grid=2)
    for (sheets, panels), (rows, columns) in zip(made, GRIDS, strict=True):
        assert sheets.shape == (2, 128 * rows, 128 * columns, 3)
        assert sheets[:, ::128, ::128, 0].flatten(1).tolist() == panels


def test_latents_are_normalised_by_the_vaes_config():
    torch.manual_seed(0)
    vae: Any = make_vae()
    vae.register_to_config(shift_factor=0.25, scaling_factor=3.0)
    images = np.random.default_rng(0).integers(256, size=(3, 16, 16, 3), dtype=np.uint8)
    found = sd3.encode_latents(vae, images, batch=2)
    with torch.no_grad():
        mean = vae.encode(to_tensor(images)).latent_dist.mean
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.float(), (mean - 0.25) * 3, atol=2e-3, rtol=2e-3)


def test_the_loss_of_a_silent_transformer(texts: TextEncoders):
    """The flow loss is against noise minus latents: of constant latents k, mean((e - k)^2) is 1 + k^2."""
    transformer = sd3.make_transformer()
    for part in transformer.proj_out.parameters():
        torch.nn.init.zeros_(part)
    silent: Any = SimpleNamespace(transformer=transformer, take_seen=lambda: None)
    source = corpus(batch=8)
    loss, _ = Sd3Loss(silent, texts, source, steps=10)(Part(8), torch.Generator().manual_seed(3))
    drawn = source.draw(torch.Generator().manual_seed(3), stock_length=False)
    expected = 1 + drawn.latents[:, 0, 0, 0].square().mean().item()
    assert loss.item() == pytest.approx(expected, rel=0.03)


def test_training_attention_is_the_stock_one(student: Student):
    stock = sd3.make_transformer()
    stock.load_state_dict(student.transformer.state_dict())
    generator = torch.Generator().manual_seed(0)
    inputs = {
        "hidden_states": torch.randn(2, LATENT_CHANNELS, 16, 16, generator=generator),
        "encoder_hidden_states": torch.randn(2, 40, sd3.WIDTH, generator=generator),
        "pooled_projections": torch.randn(2, sd3.WIDTH, generator=generator),
        "timestep": torch.tensor([100.0, 900.0]),
    }
    with torch.no_grad():
        ours, theirs = (t(**inputs, return_dict=False)[0] for t in (student.transformer, stock))
    torch.testing.assert_close(ours, theirs)
