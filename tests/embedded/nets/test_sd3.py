"""The embedded SD3: a training step on a tiny corpus, and its text input against the stock pipeline's own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dit_heads.embedded.nets import sd3
from dit_heads.embedded.nets.clip import make_text_tower
from dit_heads.embedded.nets.corpus import MEDIUM, SHORT, Corpus, Draw
from dit_heads.embedded.nets.sd3 import Sd3Loss, Student, TextEncoders
from dit_heads.embedded.nets.vae import LATENT_CHANNELS, make_vae
from dit_heads.embedded.world.captions import GRIDS, caption
from dit_heads.embedded.world.data import COVERAGE_CHANNELS
from dit_heads.embedded.world.text import make_clip_tokenizer
from dit_heads.training.loop import Part
from tests.embedded.nets.test_corpus import SCENES, T5, corpus


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


def test_the_probe_fades(student: Student, texts: TextEncoders):
    def figures(source: Corpus, step: int) -> dict[str, Any]:
        with torch.no_grad():
            loss, found = Sd3Loss(student, texts, source, steps=100)(
                Part(step), torch.Generator().manual_seed(0)
            )
        return {k: float(v) for k, v in {**found, "loss": loss}.items()}

    sheets = corpus(batch=2, composites=True, panels=1.0)
    for source, kind in ((corpus(batch=2), ""), (sheets, "_composites")):
        half = figures(source, 35)
        assert half["loss"] - half["flow" + kind] == pytest.approx(half["probe" + kind] / 2, abs=1e-5)
        assert set(figures(source, 70)) == {"flow" + kind, "loss"}
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
    batch = Draw(torch.zeros(2, LATENT_CHANNELS, 16, 16), ["", ""], SHORT, coverage, ["", ""])
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
