"""In-Context LoRA: panels that count, validation, and each sample's own latents and caption."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from dit_heads.families.velocity import velocity_of
from dit_heads.loras.base import Encoders
from dit_heads.loras.cache import CachedEncoder
from dit_heads.loras.config import LossConfig, TrainConfig, WatchConfig
from dit_heads.loras.sets.dataset import Sample, SetDataset
from dit_heads.loras.sets.panels import split
from dit_heads.loras.tasks import EMPTY_CAPTION
from dit_heads.loras.tasks.in_context import InContext
from dit_heads.loras.tasks.loss import VALIDATION_SIGMAS, FlowLoss
from dit_heads.training.flow import flow_matching_loss
from dit_heads.training.generators import keyed_generator
from dit_heads.training.loop import Part
from tests.loras.tasks.losses import (
    UNUSED,
    Fixture,
    asked,
    embedding_of,
    encoders,
    latents_of,
    make_sets,
)
from tests.saved import tiny_pipeline

# --- what counts ---


def test_the_error_of_a_panel_of_weight_zero_does_not_count(base: Fixture):
    """By hand: the mean error of the right panel alone, and its gradient."""
    loss = replace(base, config=LossConfig(panel_weights=(0, 2), caption_dropout=0)).make()
    model, outputs = loss.transformer, []

    def keep(_: object, __: object, output: tuple[Tensor]) -> None:
        output[0].retain_grad()
        outputs.append(output[0])

    with_hook = model.register_forward_hook(keep)
    value, _ = loss(Part(2), UNUSED)
    value.backward()
    with_hook.remove()
    assert not outputs[0].grad[..., :4].any() and outputs[0].grad[..., 4:].all()  # 4 latents are 32 pixels
    ours = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    samples = base.data(base.sets).batch_at(2, 4)
    generators = [keyed_generator(0, "set", 2, place) for place in range(4)]
    sigmas, noise = [], []
    for g in generators:
        torch.rand((), generator=g)  # whether the caption is dropped
        sigmas.append(torch.randn(1, generator=g).sigmoid())
        noise.append(torch.randn(4, 4, 8, generator=g))
    s, e = torch.cat(sigmas), torch.stack(noise)
    x = torch.stack([latents_of(sample)["latents"] for sample in samples])
    said = [embedding_of(sample.caption) for sample in samples]
    level = s[:, None, None, None]
    predicted = model(
        hidden_states=(1 - level) * x + level * e,
        timestep=1000 * s,
        encoder_hidden_states=torch.stack([text["text"] for text in said]),
        pooled_projections=torch.stack([text["pooled"] for text in said]),
        return_dict=False,
    )[0]
    by_hand = (predicted - (e - x))[..., 4:].square().mean()
    assert_close(value, by_hand)
    by_hand.backward()
    theirs = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["sd3", "flux"])
@pytest.mark.parametrize("weights", [(), (0.0, 1.0)])
def test_validation_is_the_mean_over_levels_and_always_the_same(
    base: Fixture, kind: str, weights: tuple[float, ...]
):
    fixture = replace(base, kind=kind, config=LossConfig(panel_weights=weights))
    loss, data = fixture.make(), base.data(base.sets)
    found = loss.validation()
    torch.manual_seed(5)
    assert loss.validation() == fixture.make().validation() == found
    assert not any(p.grad is not None for p in loss.transformer.parameters())
    errors = []
    for number, sample in enumerate(data.samples):
        text, x = embedding_of(sample.caption), latents_of(sample)["latents"][None]
        for level in VALIDATION_SIGMAS:
            noise = torch.randn(
                x.shape[1:], generator=keyed_generator(0, "validation", number, int(1000 * level))
            )
            velocity = velocity_of(loss.transformer, text["text"][None], text["pooled"][None])
            right = lambda x_s, s, v=velocity: v(x_s, s)[..., 4:]  # noqa: E731
            if weights:
                s = torch.tensor([level])
                seen = right((1 - level) * x + level * noise, s)
                errors.append((seen - (noise - x)[..., 4:]).square().mean().item())
            else:
                errors.append(flow_matching_loss(velocity, x, torch.tensor([level]), noise[None]).item())
    assert found == pytest.approx(sum(errors) / len(errors), rel=1e-5)


# --- pairs ---


class Pairs:
    """Encoders whose results name their input: number of the set, red of the right panel, mirrored or not."""

    def __init__(self) -> None:
        self.count = 0

    def picture(self, sample: Sample) -> dict[str, Tensor]:
        self.count += 1
        image = split(sample.composite(), sample.grid)[1]
        red, _, blue = image.getpixel((2, image.height // 2))  # pyright: ignore[reportGeneralTypeIssues]
        shape = sample.grid.height // 8, sample.grid.width // 8
        return {"latents": torch.tensor([red, blue == 0]).view(2, 1, 1).expand(2, *shape).float()}

    def text(self, caption: str) -> dict[str, Tensor]:
        self.count += 1
        number = float(caption.removeprefix("set ")) if caption else -1.0
        return {"text": torch.full((3, 2), number), "pooled": torch.full((2,), number)}


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**30),
    batch=st.sampled_from([1, 2, 3, 4, 6]),
    split_in=st.sampled_from([1, 2, 3]),
    steps=st.permutations(range(8)),
    warm=st.booleans(),
    flip=st.booleans(),
    dropout=st.sampled_from([0.0, 0.5]),
)
def test_each_sample_has_its_own_latents_and_caption(
    sets, tmp_path_factory, seed, batch, split_in, steps, warm, flip, dropout
):
    """Shuffled over epochs and buckets, mirrored or not, read from a cache that is cold or warm."""
    folder, pairs = tmp_path_factory.mktemp("cache"), Pairs()
    data = SetDataset(sets, rows=1, columns=2, buckets=[(64, 64), (128, 64)], flip=flip, seed=seed)
    latents, texts = CachedEncoder(pairs.picture, folder, {}), CachedEncoder(pairs.text, folder, {})
    chosen = LossConfig(caption_dropout=dropout, shift=1.0)
    loss = FlowLoss(
        torch.nn.Linear(1, 1),
        InContext(TrainConfig(loss=chosen), data, encoders=encoders(latents, texts)),
        chosen,
        batch_size=batch * split_in,
        seed=seed,
        scheduler=None,
    )
    if warm:
        for item in (*data.views(), EMPTY_CAPTION, *(sample.caption for sample in data.samples)):
            (latents if isinstance(item, Sample) else texts)(item)
    encoded = pairs.count
    for step in steps:
        for k in range(split_in):
            with pytest.MonkeyPatch.context() as patch:
                (found,) = asked(loss, Part(step, k, split_in), patch)
            samples = data.batch_at(step, batch * split_in)[k::split_in]
            own = torch.tensor([float(sample.caption.removeprefix("set ")) for sample in samples])
            said = found.pooled[:, 0]
            assert torch.equal(said, own) or (dropout and ((said == own) | (said == -1)).all())
            assert (found.text == said[:, None, None]).all()
            assert (found.latents[:, 0] == 10 * own[:, None, None] + 1).all()
            assert [bool(row) for row in found.latents[:, 1, 0, 0]] == [sample.flip for sample in samples]
    assert pairs.count == encoded if warm else pairs.count <= 6 * (1 + flip) + 7


# --- what is told ---


def test_words_that_are_cut_are_told_with_their_set(tmp_path: Path):
    long = "a red cube beside a blue ball on grass at night"
    make_sets(tmp_path / "sets", 3)
    for k in (1, 2):
        (tmp_path / f"sets/set{k}/caption.txt").write_text(f"{long}, {k}")
    data = SetDataset(tmp_path / "sets", rows=1, columns=2, buckets=[(64, 64), (128, 64)])
    config = TrainConfig(watch=WatchConfig(prompts=("a cube", long)))
    off = CachedEncoder(embedding_of, tmp_path, {}, "off")
    process = SimpleNamespace(process_index=0, num_processes=1, is_main_process=True)
    with pytest.warns(UserWarning) as warned:
        InContext(config, data).prepare(Encoders(tiny_pipeline(), off, off, 32, process))
    said = [str(one.message).split(":")[0] for one in warned]
    assert said == ["caption of set1", "caption of set2", "prompts"]
