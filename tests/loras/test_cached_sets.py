"""Caches never pair a picture with another's caption, and mend their files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dit_heads.loras.cache import CachedEncoder
from dit_heads.loras.sets.dataset import (
    Sample,
)
from tests.loras.sets.made import make_sets, pairs, reds

# --- caches ---


class Counted:
    """Encoders whose results name their input: the reds of a composite, the number of a caption."""

    def __init__(self) -> None:
        self.images = self.texts = 0

    def image(self, sample: Sample) -> dict[str, torch.Tensor]:
        self.images += 1
        return {"latents": torch.tensor([[reds(sample)]], dtype=torch.bfloat16)}

    def text(self, caption: str) -> dict[str, torch.Tensor]:
        self.texts += 1
        return {"prompt": torch.full((2, 3), float(caption.split()[1])), "pooled": torch.ones(())}


@settings(max_examples=20)
@given(
    seed=st.integers(0, 2**30),
    batch=st.integers(1, 5),
    warm=st.lists(st.integers(0, 30), max_size=6),
    steps=st.permutations(range(8)),
    flip=st.booleans(),
)
def test_latents_come_with_their_own_caption(sets, seed, batch, warm, steps, flip, tmp_path_factory):
    """Under any seed and order, with a cache that is cold, or warmed at other steps by another seed."""
    folder, counted = tmp_path_factory.mktemp("cache"), Counted()

    def encoders() -> tuple[CachedEncoder, CachedEncoder]:
        return CachedEncoder(counted.image, folder, {"vae": "a"}), CachedEncoder(
            counted.text, folder, {"t5": 1}
        )

    for at in warm:
        latents, text = encoders()
        for sample in pairs(sets, seed=seed + 1, flip=flip).batch_at(at, batch):
            latents(sample)
            text(sample.caption)
    latents, text = encoders()
    data = pairs(sets, seed=seed, flip=flip)
    for step in steps:
        for sample in data.batch_at(step, batch):
            number = int(sample.caption.split()[1])
            assert latents(sample)["latents"].flatten().tolist() == [10 * number, 10 * number + 1]
            assert (text(sample.caption)["prompt"] == number).all()
    assert counted.texts <= len(data) and counted.images <= len(data) * (1 + flip)


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> Path:
    return make_sets(tmp_path_factory.mktemp("sets"), count=6)


def test_a_warm_cache_gives_the_same_bits_and_decodes_nothing(sets, tmp_path, monkeypatch):
    sample, counted = pairs(sets)[2], Counted()
    cold = CachedEncoder(counted.image, tmp_path, {"vae": "a"})(sample)
    monkeypatch.setattr(Sample, "composite", None)
    warm = CachedEncoder(counted.image, tmp_path, {"vae": "a"})(sample)
    assert counted.images == 1 and warm.keys() == cold.keys() == {"latents"}
    assert torch.equal(warm["latents"], cold["latents"]) and warm["latents"].dtype == torch.bfloat16


def test_other_settings_are_other_entries(tmp_path):
    counted = Counted()
    for options in (
        {"max_length": 77},
        {"max_length": 256},
        {"max_length": 77},
        {"encoders": "b", "max_length": 77},
    ):
        CachedEncoder(counted.text, tmp_path, options)("set 1")
    assert counted.texts == 3
    CachedEncoder(counted.text, tmp_path, {"max_length": 77})("set 2")
    assert counted.texts == 4


def test_a_caption_that_reads_like_a_key_is_no_sample(sets, tmp_path):
    sample, counted = pairs(sets)[0], Counted()
    CachedEncoder(counted.image, tmp_path, {})(sample)
    by_caption = CachedEncoder(lambda caption: {"prompt": torch.zeros(1)}, tmp_path, {})(sample.key)
    assert by_caption.keys() == {"prompt"}


DAMAGE = {
    "cut": lambda data: data[:-3],
    "empty": lambda data: b"",
    "one bit": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
}


@pytest.mark.parametrize("kind", [*DAMAGE, "another's"])
def test_a_damaged_file_is_made_again(tmp_path, kind):
    counted = Counted()
    cache = CachedEncoder(counted.text, tmp_path, {})
    cache("set 7")
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    cache("set 8")
    other = next(p for p in tmp_path.iterdir() if p != path).read_bytes()
    path.write_bytes(DAMAGE[kind](whole) if kind in DAMAGE else other)
    with pytest.warns(UserWarning, match="is damaged .* made again"):
        assert (cache("set 7")["prompt"] == 7).all()
    assert (cache("set 7")["prompt"] == 7).all() and counted.texts == 3


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    cache = CachedEncoder(Counted().text, tmp_path, {})
    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space left"):
        cache("set 1")
    assert list(tmp_path.iterdir()) == []


def test_numbers_that_are_not_finite_are_not_kept(tmp_path):
    cache = CachedEncoder(lambda _: {"latents": torch.tensor([1.0, float("nan")])}, tmp_path, {})
    with pytest.raises(ValueError, match="expected finite numbers, got others in 'latents' of 'set 1'"):
        cache("set 1")
    assert list(tmp_path.iterdir()) == []


def test_tensors_that_share_memory_or_order_are_kept(tmp_path):
    both = torch.arange(6.0).view(2, 3)
    cache = CachedEncoder(lambda _: {"a": both[0], "b": both, "c": both.T}, tmp_path, {})
    cold, warm = cache("x"), cache("x")
    assert all(torch.equal(cold[n], warm[n]) for n in "abc") and torch.equal(warm["c"], both.T)
