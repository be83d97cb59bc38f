"""The loss of sets: its randomness by seed, step and place; panels, dropped captions, prior, validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.testing import assert_close

from dit_heads.families.velocity import velocity_of
from dit_heads.loras.base import Encoders
from dit_heads.loras.cache import CachedEncoder
from dit_heads.loras.config import LossConfig, TrainConfig
from dit_heads.loras.sets.dataset import Sample, SetDataset
from dit_heads.loras.sets.panels import split
from dit_heads.loras.tasks import EMPTY_CAPTION
from dit_heads.loras.tasks.in_context import InContext
from dit_heads.loras.tasks.loss import VALIDATION_SIGMAS, FlowLoss
from dit_heads.training.batch import Batch
from dit_heads.training.flow import flow_matching_loss
from dit_heads.training.generators import keyed_generator
from dit_heads.training.loop import Part
from tests import tiny

UNUSED = torch.Generator()


def make_sets(root: Path, count: int, *, shift: int = 0) -> Path:
    """Set k has two panels whose red is 10 k and 10 k + 1, blue at the left, and the caption "set k"; odd
    ones are tall. `shift` is added to k."""
    for k in range(shift, count + shift):
        for p in range(2):
            image = Image.new("RGB", (64, 128 if k % 2 else 64), (10 * k + p, 0, 0))
            image.paste((10 * k + p, 0, 255), (0, 0, 20, 128))
            (root / f"set{k}").mkdir(parents=True, exist_ok=True)
            image.save(root / f"set{k}/{p}.png")
        (root / f"set{k}/caption.txt").write_text(f"set {k}")
    return root


@dataclass
class Fixture:
    """A loss of some sets; noise of a set's number stands for its latents and its caption's embedding."""

    folder: Path
    sets: Path
    config: LossConfig = field(default_factory=LossConfig)
    kind: str = "sd3"
    batch_size: int = 4
    seed: int = 0
    shift: float | None = 1.0
    prior: Path | None = None
    buckets: Sequence[tuple[int, int]] = ((32, 32),)
    flip: bool = False

    def data(self, root: Path) -> SetDataset:
        return SetDataset(root, rows=1, columns=2, buckets=self.buckets, flip=self.flip, seed=self.seed)

    def make(self) -> FlowLoss:
        task = InContext(
            TrainConfig(loss=self.config, seed=self.seed),
            self.data(self.sets),
            held_out=self.data(self.sets),
            kept=self.prior and self.data(self.prior),
            encoders=encoders(
                CachedEncoder(latents_of, self.folder, {}, memory=2**24),
                CachedEncoder(embedding_of, self.folder, {}, memory=2**24),
            ),
        )
        return FlowLoss(
            tiny.flux(torch.float32) if self.kind == "flux" else tiny.sd3(dtype=torch.float32),
            task,
            replace(self.config, shift=self.shift),
            batch_size=self.batch_size,
            seed=self.seed,
            scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True).config,
        )


def encoders(latents: CachedEncoder, texts: CachedEncoder) -> Encoders:
    return Encoders(None, latents, texts, tiny.TEXT, None)


def numbers(*key: object, shape: Sequence[int]) -> Tensor:
    return torch.randn(*shape, generator=keyed_generator(*key))


def latents_of(sample: Sample) -> dict[str, Tensor]:
    height, width = sample.grid.height // 8, sample.grid.width // 8
    return {"latents": numbers(sample.caption, sample.flip, shape=(4, height, width))}


def embedding_of(caption: str) -> dict[str, Tensor]:
    both = numbers(caption, shape=(tiny.TEXT + 1, 16))
    return {"text": both[1:], "pooled": both[0, :12]}


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sets(tmp_path_factory.mktemp("sets"), 6)


@pytest.fixture
def base(sets: Path, tmp_path: Path) -> Fixture:
    return Fixture(tmp_path / "cache", sets)


def asked(loss: FlowLoss, part: Part, monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    """The batches of a part, which the model does not see."""
    seen: list[Batch] = []
    with monkeypatch.context() as patch:
        patch.setattr(Batch, "loss", lambda batch, _: seen.append(batch) or torch.zeros(()))
        loss(part, UNUSED)
    return seen


def gradients(loss: FlowLoss, step: int, count: int) -> tuple[Tensor, dict[str, Tensor]]:
    """The mean of the parts' losses, and its gradients."""
    loss.transformer.zero_grad()
    mean = torch.zeros(())
    for k in range(count):
        value = loss(Part(step, k, count), UNUSED)[0] / count
        value.backward()
        mean = mean + value.detach()
    found = {n: p.grad.clone() for n, p in loss.transformer.named_parameters() if p.grad is not None}
    return mean, found


# --- randomness ---


@pytest.mark.parametrize("kind", ["sd3", "flux"])
@pytest.mark.parametrize("weights", [(), (1.0, 3.0)])
def test_parts_averaged_are_the_whole_batch(base: Fixture, sets: Path, kind: str, weights: tuple[float, ...]):
    config = LossConfig(panel_weights=weights, caption_dropout=0.3, prior_weight=0.5)
    loss = replace(base, kind=kind, config=config, prior=sets).make()
    whole, expected = gradients(loss, 3, 1)
    for count in (2, 4):
        value, found = gradients(loss, 3, count)
        assert_close(value, whole, rtol=1e-5, atol=1e-6)
        assert found.keys() == expected.keys()
        for name in found:
            assert (found[name] - expected[name]).norm() <= 5e-4 * expected[name].norm()


def test_what_a_sample_gets_does_not_depend_on_how_the_batch_is_shared(base: Fixture, monkeypatch: Any):
    loss = base.make()
    (whole,) = asked(loss, Part(7), monkeypatch)
    parts = [asked(loss, Part(7, k, 2), monkeypatch)[0] for k in range(2)]
    for name in ("latents", "text", "pooled", "sigmas", "noise"):
        expected = getattr(whole, name)
        for k in range(2):
            assert torch.equal(getattr(parts[k], name), expected[k::2])
    assert len(whole.sigmas.unique()) == 4 and len(whole.noise.unique()) == whole.noise.numel()
    torch.manual_seed(3)
    (again,) = asked(base.make(), Part(7), monkeypatch)
    assert torch.equal(again.noise, whole.noise) and torch.equal(again.sigmas, whole.sigmas)
    for other, step in ((loss, 8), (replace(base, seed=1).make(), 7)):
        (another,) = asked(other, Part(step), monkeypatch)
        assert not torch.isin(another.sigmas, whole.sigmas).any()


def test_the_prior_has_noise_of_its_own(base: Fixture, sets: Path, monkeypatch: Any):
    ours, prior = asked(replace(base, prior=sets).make(), Part(0), monkeypatch)
    assert not torch.isin(prior.sigmas, ours.sigmas).any() and not torch.equal(prior.noise, ours.noise)


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


def test_captions_are_dropped_as_often_as_asked(base: Fixture, monkeypatch: Any):
    loss = replace(base, batch_size=10, config=LossConfig(caption_dropout=0.25)).make()
    unsaid = embedding_of(EMPTY_CAPTION)
    batches = [batch for step in range(60) for batch in asked(loss, Part(step), monkeypatch)]
    dropped = torch.cat([(batch.text == unsaid["text"]).all((1, 2)) for batch in batches])
    assert dropped.float().mean().item() == pytest.approx(0.25, abs=0.05)  # 0.018 is one sigma
    pooled = torch.cat([(batch.pooled == unsaid["pooled"]).all(1) for batch in batches])
    assert torch.equal(dropped, pooled)


def test_prior_preservation_is_a_weighted_sum(base: Fixture, tmp_path: Path):
    prior = make_sets(tmp_path / "prior", 3, shift=10)
    config = LossConfig(prior_weight=0.3, panel_weights=(1, 0))
    total, figures = replace(base, config=config, prior=prior).make()(Part(1), UNUSED)
    alone, none = replace(base, config=config).make()(Part(1), UNUSED)
    assert none == {} and figures.keys() == {"sets", "prior"}
    assert_close(figures["sets"], alone.detach())
    assert_close(total.detach(), figures["sets"] + 0.3 * figures["prior"])
    unweighted = replace(base, config=LossConfig(), prior=prior).make()(Part(1), UNUSED)[1]
    assert_close(figures["prior"], unweighted["prior"])  # panel weights are those of sets


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


# --- noise levels ---


@pytest.mark.parametrize("timesteps", ["logit_normal", "uniform", "mode"])
def test_noise_levels_are_drawn_as_asked(base: Fixture, timesteps: Any, monkeypatch: Any):
    config = LossConfig(timesteps=timesteps, timestep_mean=0.5, timestep_std=2.0, mode_scale=0.0)
    loss = replace(base, batch_size=50, config=config).make()
    sigmas = torch.cat([asked(loss, Part(step), monkeypatch)[0].sigmas for step in range(40)])
    if timesteps == "logit_normal":
        assert torch.logit(sigmas.double()).mean().item() == pytest.approx(0.5, abs=0.15)
        assert torch.logit(sigmas.double()).std().item() == pytest.approx(2.0, abs=0.1)
    else:  # without a scale, the mode draw is uniform too
        below = [(sigmas < q).float().mean().item() for q in (0.25, 0.5)]
        assert below == pytest.approx([0.25, 0.5], abs=0.04)


@pytest.mark.filterwarnings("ignore:data. panels lose detail:UserWarning")  # they are small, the grid is not
def test_the_shift_is_a_number_or_the_schedulers_by_resolution(base: Fixture, monkeypatch: Any):
    config = LossConfig(timesteps="uniform")
    (plain,) = asked(replace(base, config=config).make(), Part(0), monkeypatch)
    odds = lambda sigmas: sigmas / (1 - sigmas)  # noqa: E731
    (moved,) = asked(replace(base, config=config, shift=3.0).make(), Part(0), monkeypatch)
    assert_close(odds(moved.sigmas), 3 * odds(plain.sigmas), rtol=1e-4, atol=0)
    fixture = replace(base, config=config, shift=None, buckets=((128, 160),), batch_size=1)
    (flux,) = asked(fixture.make(), Part(0), monkeypatch)
    (plain,) = asked(replace(fixture, shift=1.0).make(), Part(0), monkeypatch)
    factor = torch.tensor(calculate_shift(8 * 20)).exp()  # tokens of 128 x 320 pixels
    assert_close(odds(flux.sigmas), factor * odds(plain.sigmas), rtol=1e-4, atol=0)


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
