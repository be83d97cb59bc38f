"""When encoders work and what is kept: on disk, in memory, not at all; compared once, shared by processes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dit_heads.loras import base, cache
from dit_heads.loras.base import Encoders
from dit_heads.loras.cache import CachedEncoder, Policy


class Counting:
    """Captions that are numbers, as 100 float32 each: 400 bytes."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, caption: str) -> dict[str, torch.Tensor]:
        self.asked.append(caption)
        return {"text": torch.full((100,), float(caption))}


def numbers(encoder: CachedEncoder, *captions: str) -> list[float]:
    return [encoder(caption)["text"][99].item() for caption in captions]


@pytest.mark.parametrize("policy", ["all", "lazy"])
def test_an_item_is_encoded_once_and_stays_on_disk(tmp_path: Path, policy: Policy):
    counting = Counting()
    for _ in range(2):
        assert numbers(CachedEncoder(counting, tmp_path, {}, policy), "1", "2", "1") == [1, 2, 1]
    assert counting.asked == ["1", "2"] and len(list(tmp_path.iterdir())) == 2


def test_nothing_is_kept_on_disk_if_the_cache_is_off(tmp_path: Path):
    counting = Counting()
    encoder = CachedEncoder(counting, tmp_path / "none", {}, "off")
    assert numbers(encoder, "1", "1") == [1, 1]
    assert counting.asked == ["1", "1"] and not (tmp_path / "none").exists()


def test_the_latest_items_stay_in_memory_up_to_its_size(tmp_path: Path):
    counting = Counting()
    encoder = CachedEncoder(counting, tmp_path, {}, "off", memory=1000)  # two items
    assert numbers(encoder, "1", "2", "1", "3", "1", "2") == [1, 2, 1, 3, 1, 2]
    assert counting.asked == ["1", "2", "3", "2"]  # 2 was the one that was used longest ago
    small = CachedEncoder(counting, tmp_path, {}, "off", memory=399)
    assert numbers(small, "7", "7") == [7, 7] and counting.asked[4:] == ["7", "7"]


def test_memory_serves_the_same_bits_as_the_file_does(tmp_path: Path):
    counting = Counting()
    remembering = CachedEncoder(counting, tmp_path, {}, memory=1000)
    first, again = remembering("5"), remembering("5")
    read = CachedEncoder(counting, tmp_path, {})("5")
    assert torch.equal(first["text"], again["text"]) and torch.equal(first["text"], read["text"])
    again.clear()  # a result is the caller's own
    assert remembering("5").keys() == {"text"} and counting.asked == ["5"]


def test_a_checksum_is_compared_at_the_first_reading_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    CachedEncoder(Counting(), tmp_path, {})("5")
    computed: list[object] = []
    checksum = cache._checksum
    monkeypatch.setattr(cache, "_checksum", lambda tensors: computed.append(1) or checksum(tensors))
    encoder = CachedEncoder(Counting(), tmp_path, {})
    assert numbers(encoder, "5", "5", "5") == [5, 5, 5]
    assert len(computed) == 1


def test_a_file_of_the_first_version_is_read(tmp_path: Path):
    """Its checksum was another one."""
    counting = Counting()
    CachedEncoder(counting, tmp_path, {})("5")
    (path,) = tmp_path.iterdir()
    save_file(load_file(path), path, {"key": path.stem, "checksum": "0123"})
    assert numbers(CachedEncoder(counting, tmp_path, {}), "5") == [5] and counting.asked == ["5"]


def test_what_is_missing_is_encoded_in_one_go(tmp_path: Path):
    counting = Counting()
    batches: list[Sequence[str]] = []

    def all_of(captions: Sequence[str]) -> list[dict[str, torch.Tensor]]:
        batches.append(captions)
        return [counting(caption) for caption in captions]

    encoder = CachedEncoder(counting, tmp_path, {}, memory=1000, encode_all=all_of)
    alone = encoder("2")
    for _ in range(2):
        found = encoder.each(["3", "2", "1", "3", "4"])
        assert [one["text"][0].item() for one in found] == [3, 2, 1, 3, 4]
        assert torch.equal(found[1]["text"], alone["text"])
    assert batches == [["3", "1", "4"]] and counting.asked == ["2", "3", "1", "4"]
    assert numbers(CachedEncoder(counting, tmp_path, {}), "4", "1") == [4, 1] and len(counting.asked) == 4
    assert encoder.each([]) == [] and len(batches) == 1


def test_with_the_cache_off_items_that_come_together_are_always_encoded_together(tmp_path: Path):
    batches: list[Sequence[str]] = []
    encoder = CachedEncoder(
        Counting(),
        tmp_path,
        {},
        "off",
        memory=1000,
        encode_all=lambda captions: batches.append(captions) or list(map(Counting(), captions)),
    )
    for _ in range(2):
        encoder.each(["1", "2", "1"])
    assert batches == [["1", "2"], ["1", "2"]] and not list(tmp_path.iterdir())


@pytest.mark.parametrize(("policy", "encoded"), [("all", ["2", "4"]), ("lazy", []), ("off", [])])
def test_processes_encode_their_shares_before_training_or_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: Policy, encoded: list[str]
):
    counting, waited = Counting(), []
    monkeypatch.setattr(base, "wait_for_all", waited.append)
    second = SimpleNamespace(process_index=1, num_processes=2, is_main_process=False)
    texts: Any = CachedEncoder(counting, tmp_path, {}, policy)
    Encoders(None, texts, texts, 8, second).fill(["1", "2", "3", "4", "5"], [])
    assert counting.asked == encoded and waited == [second]
