"""The corpus of the embedded transformers: what a batch of pictures or of composites holds."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dit_heads.embedded.nets import corpus as module
from dit_heads.embedded.nets.corpus import LONG, MEDIUM, SHORT, STOCK, Corpus, Draw, encode_latents
from dit_heads.embedded.nets.vae import LATENT_CHANNELS, make_vae, to_tensor
from dit_heads.embedded.world.captions import GRIDS
from dit_heads.embedded.world.data import COVERAGE_CHANNELS, scene_of
from dit_heads.embedded.world.text import make_t5_tokenizer

COUNT = 12
SCENES = [scene_of("test", i) for i in range(COUNT)]
T5 = make_t5_tokenizer()


def numbered(count: int, height: int, width: int) -> Tensor:
    """Latents that hold their own index everywhere."""
    index = torch.arange(float(count)).view(-1, 1, 1, 1)
    return index.expand(count, LATENT_CHANNELS, height, width).half()


def corpus(batch: int = 8, *, composites: bool = False, **draws: Any) -> Corpus:
    cover = np.arange(COUNT, dtype=np.uint8)[:, None, None, None].repeat(8, 1).repeat(8, 2)
    panels = [np.arange(3 * r * c).reshape(3, r * c) % COUNT for r, c in GRIDS]
    sheets = [(numbered(3, 16 * r, 16 * c), p.tolist()) for (r, c), p in zip(GRIDS, panels, strict=True)]
    cover = cover.repeat(COVERAGE_CHANNELS, 3)
    return Corpus(numbered(COUNT, 16, 16), cover, SCENES, sheets if composites else [], batch, **draws)


def draws(source: Corpus, count: int, *, stock_length: bool = False) -> list[Draw]:
    generators = [torch.Generator().manual_seed(k) for k in range(count)]
    return [source.draw(g, stock_length=stock_length) for g in generators]


def is_composite(draw: Draw) -> bool:
    return draw.latents.shape[2:] != (16, 16)


def test_pictures_keep_their_captions_and_coverage():
    for batch in draws(corpus(), 40):
        which = batch.latents[:, 0, 0, 0].long().tolist()
        assert batch.latents.shape[1:] == (LATENT_CHANNELS, 16, 16) and batch.latents.dtype == torch.float32
        assert batch.coverage.shape == (len(which), 64, COVERAGE_CHANNELS)
        assert (batch.coverage[:, 0, 0] * 255).round().int().tolist() == which
        for index, text in zip(which, batch.captions, strict=True):
            named = [f"{s.colour} {s.shape}" for s in SCENES[index].solids]
            assert text == "" or all(name in text for name in named)


def test_a_tenth_of_the_captions_is_dropped():
    said = [c for b in draws(corpus(batch=16), 150) for c in b.captions]
    assert sum(c == "" for c in said) / len(said) == pytest.approx(0.1, abs=0.02)


def test_t5_reads_a_share_of_the_captions_alone():
    batches = draws(corpus(batch=16, clip_dropout=0.25), 150)
    pairs = [pair for b in batches for pair in zip(b.captions, b.clip_captions, strict=True) if pair[0]]
    assert {heard for said, heard in pairs if heard != said} == {""}
    assert sum(heard == "" for _, heard in pairs) / len(pairs) == pytest.approx(0.25, abs=0.03)
    assert all(b.captions == b.clip_captions for b in draws(corpus(batch=16), 10))


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
    assert any(is_composite(b) for b in drawn)
    for batch in drawn:
        assert max(map(len, T5(batch.captions).input_ids)) <= batch.length


def test_composites_come_with_the_captions_and_the_coverage_of_their_panels():
    sheets = [b for b in draws(corpus(batch=16, composites=True), 600) if is_composite(b)]
    assert len(sheets) / 600 == pytest.approx(0.1, abs=0.04)
    assert {tuple(b.latents.shape[2:]) for b in sheets} == {(16 * r, 16 * c) for r, c in GRIDS}
    for batch in sheets:
        rows, columns = batch.latents.shape[2] // 16, batch.latents.shape[3] // 16
        cells = (batch.coverage[..., 0] * 255).round().int().unflatten(1, (8 * rows, 8 * columns))
        for k, text in enumerate(batch.captions):
            sheet = int(batch.latents[k, 0, 0, 0])
            panels = [(sheet * rows * columns + i) % COUNT for i in range(rows * columns)]
            assert cells[k, ::8, ::8].flatten().tolist() == panels
            parts = re.split(r" \[[A-Z0-9-]+\] ", text)[1:]
            assert text == "" or len(parts) == len(panels)
            for part, panel in zip(parts, panels, strict=bool(text)):
                assert all(f"{s.colour} {s.shape}" in part for s in SCENES[panel].solids)


def test_half_of_the_batches_may_be_composites_of_as_many_tokens():
    drawn = draws(corpus(batch=32, composites=True, panels=0.5), 300)
    sheets = [b for b in drawn if is_composite(b)]
    assert len(sheets) / 300 == pytest.approx(0.5, abs=0.1)
    pair = next(b for b in sheets if b.latents.shape[2:] == (16, 32))
    assert len(pair.latents) == 32 * (64 + SHORT) // (128 + MEDIUM)


@pytest.mark.parametrize("grid", GRIDS)
def test_composites_show_their_panels_in_reading_order(
    grid: tuple[int, int], monkeypatch: pytest.MonkeyPatch
):
    images = np.arange(COUNT, dtype=np.uint8)[:, None, None, None].repeat(128, 1).repeat(128, 2).repeat(3, 3)
    monkeypatch.setattr(module, "encode_latents", lambda vae, sheets, batch: torch.from_numpy(sheets.copy()))
    sheets, panels = module.make_composites(make_vae(), images, grid, count=2)
    assert sheets.shape == (2, 128 * grid[0], 128 * grid[1], 3)
    assert sheets[:, ::128, ::128, 0].flatten(1).tolist() == panels
    assert module.make_composites(make_vae(), images, grid, count=2)[1] == panels


def test_latents_are_normalised_by_the_vaes_config():
    torch.manual_seed(0)
    vae: Any = make_vae()
    vae.register_to_config(shift_factor=0.25, scaling_factor=3.0)
    images = np.random.default_rng(0).integers(256, size=(3, 16, 16, 3), dtype=np.uint8)
    found = encode_latents(vae, images, batch=2)
    with torch.no_grad():
        mean = vae.encode(to_tensor(images)).latent_dist.mean
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.float(), (mean - 0.25) * 3, atol=2e-3, rtol=2e-3)
