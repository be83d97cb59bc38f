"""Sets on disk: three forms, every bad file named, buckets, the order of batches, and caches that never pair
a picture with another's caption."""

from __future__ import annotations

import json
import os
import shutil
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dit_heads.loras.cache import CachedEncoder
from dit_heads.loras.sets.captions import markers
from dit_heads.loras.sets.dataset import (
    Sample,
    SetDataset,
    aspect_buckets,
    nearest_bucket,
)
from dit_heads.loras.sets.panels import split

PHOTOS = Path(os.environ.get("DIT_HEADS_PHOTOS", Path(__file__).parents[3] / "shared/photos"))
SQUARE = [(64, 64)]


def picture(path: Path, colour: tuple[int, int, int] = (9, 9, 9), size: tuple[int, int] = (64, 64)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def make_sets(root: Path, count: int = 2, panels: int = 2, size: tuple[int, int] = (64, 64)) -> Path:
    """Set k has panels of red 10 k, 10 k + 1, ... and the caption "set k"."""
    for k in range(count):
        for p in range(panels):
            picture(root / f"set{k:02d}" / f"{p + 1}.png", (10 * k + p, 0, 0), size)
        (root / f"set{k:02d}" / "caption.txt").write_text(f"set {k}\n")
    return root


def pairs(root: Path, **options: Any) -> SetDataset:
    return SetDataset(root, **{"rows": 1, "columns": 2, "buckets": SQUARE} | options)


def reds(sample: Sample) -> list[int]:
    """The red of each panel's middle."""
    middles = [p.getpixel((p.width // 2, p.height // 2)) for p in split(sample.composite(), sample.grid)]
    return [middle[0] for middle in middles if isinstance(middle, tuple)]


# --- the three forms ---


def test_a_folder_of_sets(tmp_path):
    data = pairs(make_sets(tmp_path))
    assert [(s.source, s.caption, reds(s)) for s in data.samples] == [
        ("set00", "set 0", [0, 1]),
        ("set01", "set 1", [10, 11]),
    ]
    assert len(data) == 2 and data[1].caption == "set 1"


def test_panels_come_in_the_order_of_their_numbers(tmp_path):
    for p in (10, 9, 2, 1):
        picture(tmp_path / "set" / f"{p}.png", (p, 0, 0))
    (tmp_path / "set/caption.txt").write_text("four")
    assert reds(pairs(tmp_path, rows=2)[0]) == [1, 2, 9, 10]


def test_captions_of_sets_in_one_file(tmp_path):
    make_sets(tmp_path)
    (tmp_path / "set01/caption.txt").unlink()
    (tmp_path / "captions.jsonl").write_text('{"set": "set01", "caption": "from \u2028 the list"}\n')
    assert [s.caption for s in pairs(tmp_path).samples] == ["set 0", "from \u2028 the list"]


def test_ready_composites_are_cut_into_their_panels(tmp_path):
    for name, red in (("b", 50), ("a", 20)):
        image = Image.new("RGB", (130, 70), (red, 0, 0))
        image.paste((red + 1, 0, 0), (65, 0, 130, 70))
        image.save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(f"composite {name}")
    data = pairs(tmp_path)
    assert [(s.source, s.caption, reds(s)) for s in data.samples] == [
        ("a.png", "composite a", [20, 21]),
        ("b.png", "composite b", [50, 51]),
    ]
    assert data[0].composite().size == (128, 64)


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_hugging_face_folder_of_composites(tmp_path, kind):
    picture(tmp_path / "images/a.png", (30, 0, 0), (128, 64))
    rows = {
        "jsonl": '{"file_name": "images/a.png", "text": "a, \\"b\\""}\n',
        "csv": 'file_name,text\nimages/a.png,"a, ""b"""\n',
    }
    (tmp_path / f"metadata.{kind}").write_text(rows[kind])
    data = pairs(tmp_path)
    assert [(s.source, s.caption, reds(s)) for s in data.samples] == [
        (f"metadata.{kind}, entry 1", 'a, "b"', [30, 30])
    ]


@pytest.mark.parametrize("column", ["file_names", "images_file_names"])
def test_a_hugging_face_folder_of_sets(tmp_path, column):
    for p in range(2):
        picture(tmp_path / f"{p}.png", (p, 0, 0))
    row = {column: ["1.png", "0.png"], "caption": "backwards"}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row))
    assert [(s.caption, reds(s)) for s in pairs(tmp_path).samples] == [("backwards", [1, 0])]


def test_what_is_no_data_set_is_refused(tmp_path):
    with pytest.raises(ValueError, match="data: expected a folder"):
        pairs(tmp_path / "absent")
    with pytest.raises(ValueError, match="got neither"):
        pairs(tmp_path)
    make_sets(tmp_path)
    picture(tmp_path / "loose.png")
    with pytest.raises(ValueError, match="got both"):
        pairs(tmp_path)


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_a_list_that_is_not_utf8_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"file_name,text\na.png,\xff\xfe\n")
    with pytest.raises(ValueError, match=f"cannot read '.*{name}'"):
        pairs(tmp_path)


# --- what is wrong ---


def png_of(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims any size and has no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b""))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(64 * 2**20 + 1)


SPOILED = {
    "no picture": (lambda s: (s / "2.png").write_text("text"), "2.png: is not a picture that can be read"),
    "damaged": (lambda s: (s / "2.png").write_bytes(png_of(64, 64)), "2.png: is not a picture that can be"),
    "tiny": (lambda s: picture(s / "2.png", size=(40, 90)), "2.png: a panel is 40 x 90 pixels, .* least 64"),
    "pixels": (lambda s: (s / "2.png").write_bytes(png_of(9000, 9000)), "2.png: is 9000 x 9000, .* pixels"),
    "bomb": (lambda s: (s / "2.png").write_bytes(png_of(60000, 60000)), "2.png: is not .*bomb"),
    "bytes": (lambda s: huge(s / "2.png"), "2.png: 67108865 bytes, expected at most 67108864"),
    "folder": (lambda s: ((s / "2.png").unlink(), (s / "2.png").mkdir()), "2.png: there is no such file"),
    "no caption": (lambda s: (s / "caption.txt").unlink(), "no caption"),
    "empty caption": (lambda s: (s / "caption.txt").write_text(" \n"), "no caption, or an empty one"),
    "not UTF-8": (lambda s: (s / "caption.txt").write_bytes(b"\xff"), "no caption, .* not UTF-8"),
    "too few": (lambda s: (s / "2.png").unlink(), r"expected 2 pictures \(1 x 2\), got 1"),
    "too many": (lambda s: picture(s / "3.png"), r"expected 2 pictures \(1 x 2\), got 3"),
    "markers": (
        lambda s: (s / "caption.txt").write_text("[SCENE-1] a [SCENE-2] b [SCENE-3] c"),
        "the caption has markers of 3 panels, expected 2",
    ),
}


@pytest.mark.parametrize("kind", SPOILED)
def test_a_bad_set_is_named_and_left_out_or_stops(tmp_path, kind):
    spoil, message = SPOILED[kind]
    make_sets(tmp_path, count=3)
    spoil(tmp_path / "set01")
    with pytest.raises(ValueError, match=rf"1 problem in (?s:.*)\n  set01: {message}"):
        pairs(tmp_path)
    with pytest.warns(UserWarning, match=rf"sets left out of (?s:.*)\n  set01: {message}"):
        data = pairs(tmp_path, on_error="skip")
    assert [s.source for s in data.samples] == ["set00", "set02"]


def test_every_problem_is_listed_at_once(tmp_path):
    make_sets(tmp_path, count=4)
    for name in ("set00/1.png", "set00/2.png", "set02/2.png"):
        (tmp_path / name).write_text("no picture")
    (tmp_path / "set03/caption.txt").unlink()
    with pytest.raises(ValueError) as raised:
        pairs(tmp_path)
    first, *lines = str(raised.value).splitlines()
    assert first.startswith("data: 4 problems")
    assert [line.split(": ")[:2] for line in lines] == [
        ["  set00", "1.png"],
        ["  set00", "2.png"],
        ["  set02", "2.png"],
        ["  set03", "no caption, or an empty one, or one that is not UTF-8"],
    ]


def test_nothing_left_is_an_error(tmp_path):
    make_sets(tmp_path, count=1)
    (tmp_path / "set00/caption.txt").unlink()
    with pytest.raises(ValueError, match=r"no set is left in (?s:.*)set00: no caption"):
        pairs(tmp_path, on_error="skip")
    (tmp_path / "metadata.jsonl").write_text("\n")
    with pytest.raises(ValueError, match=r"no set is left in '.*'$"):
        pairs(tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        "not JSON",
        "[1]",
        '{"file_name": "../secret.png", "text": "a"}',
        '{"file_name": "/secret.png", "text": "a"}',
        '{"file_names": "a.png", "text": "a"}',
        '{"profile_names": ["a.png", "a.png"], "text": "a"}',
    ],
)
def test_a_bad_entry_of_a_list_is_named(tmp_path, line):
    picture(tmp_path / "a.png", size=(128, 64))
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "fine"}\n' + line)
    with pytest.raises(ValueError, match=r"1 problem .*\n  metadata.jsonl, entry 2: expected file_name"):
        pairs(tmp_path)


@pytest.mark.parametrize(
    "line", ['{"set": "set9", "caption": "a"}', '{"set": "set00", "caption": "b"}', '{"set": []}', "?"]
)
def test_a_caption_of_no_set_or_a_second_one_is_named(tmp_path, line):
    make_sets(tmp_path)
    (tmp_path / "captions.jsonl").write_text('{"set": "set00", "caption": "a"}\n' + line)
    with pytest.raises(ValueError, match=r"1 problem .*\n  captions.jsonl, entry 2: expected"):
        pairs(tmp_path)


def test_a_file_that_is_missing_is_named(tmp_path):
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a"}')
    with pytest.raises(ValueError, match=r"entry 1: a\.png: there is no such file"):
        pairs(tmp_path)


def test_a_ready_composite_is_named_once(tmp_path):
    (tmp_path / "a.png").write_text("no picture")
    (tmp_path / "a.txt").write_text("caption")
    with pytest.raises(ValueError, match=r"\n  a\.png: is not a picture"):
        pairs(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": 0}, "rows: expected a whole number"),
        ({"buckets": []}, "buckets: expected at least one"),
        ({"buckets": [(64, 60)]}, "buckets: expected multiples of 16 .* got 60"),
        ({"fit": "squash"}, "fit: expected crop or pad, got 'squash'"),
        ({"on_error": "warn"}, "on_error: expected stop or skip, got 'warn'"),
        ({"seed": -1}, "seed: expected a whole number of at least 0, got -1"),
        ({"min_side": 0}, "min_side: expected a whole number of at least 1, got 0"),
    ],
)
def test_wrong_options_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        pairs(make_sets(tmp_path), **options)


# --- pictures ---


def test_exif_orientation_is_honoured(tmp_path):
    make_sets(tmp_path, count=1)
    image = Image.new("RGB", (128, 64), (0, 0, 0))
    image.paste((200, 0, 0), (0, 0, 64, 64))  # the left half; turned clockwise it is the upper one
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "set00/1.png", exif=exif)
    data = pairs(tmp_path, buckets=[(128, 64)])
    panel = split(data[0].composite(), data[0].grid)[0]
    assert panel.getpixel((32, 20)) == (200, 0, 0) and panel.getpixel((32, 108)) == (0, 0, 0)


def test_alpha_and_grey_become_rgb_on_white(tmp_path):
    make_sets(tmp_path, count=1)
    Image.new("RGBA", (64, 64), (0, 0, 0, 0)).save(tmp_path / "set00/1.png")
    Image.new("L", (64, 64), 77).save(tmp_path / "set00/2.png")
    first, second = split((sample := pairs(tmp_path)[0]).composite(), sample.grid)
    assert (first.getpixel((5, 5)), second.getpixel((5, 5))) == ((255, 255, 255), (77, 77, 77))


def test_a_file_that_changes_later_is_noticed(tmp_path):
    sample = pairs(make_sets(tmp_path))[1]
    picture(tmp_path / "set01/1.png", (99, 0, 0))
    with pytest.raises(ValueError, match="'set01' has changed since it was read first"):
        sample.composite()


def test_keys_tell_apart_whatever_changes_the_pixels(tmp_path):
    make_sets(tmp_path / "a", count=3, size=(96, 64))
    make_sets(tmp_path / "b", count=3, size=(96, 64))
    keys = [s.key for s in pairs(tmp_path / "a").samples]
    assert keys == [s.key for s in pairs(tmp_path / "b").samples]  # content, not where it lies
    for options in ({"fit": "pad"}, {"buckets": [(64, 80)]}, {"rows": 2, "columns": 1}):
        keys += [s.key for s in pairs(tmp_path / "a", **options).samples]
    flipped = pairs(tmp_path / "a", flip=True)
    keys += {s.key for step in range(40) for s in flipped.batch_at(step, 1) if s.flip}
    assert len(set(keys)) == len(keys) == 15


# --- buckets ---


def test_aspect_buckets_by_hand():
    assert aspect_buckets(4096, step=16) == ((80, 48), (64, 64), (48, 80))
    cells = aspect_buckets(512 * 512)
    assert (512, 512) in cells and all(h % 64 == w % 64 == 0 and h * w <= 512 * 512 for h, w in cells)
    assert all(max(h / w, w / h) <= 2 for h, w in cells)
    with pytest.raises(ValueError, match="area: expected at least 4096 pixels for steps of 64, got 4000"):
        aspect_buckets(4000)
    with pytest.raises(ValueError, match="step: expected multiples of 16"):
        aspect_buckets(4096, step=20)


def test_the_nearest_bucket_by_hand():
    cells = [(64, 64), (64, 128), (128, 64), (32, 64)]
    assert nearest_bucket([(100, 100)], cells) == (64, 64)
    assert nearest_bucket([(10, 30)], cells) == (64, 128)  # as near as 32 x 64, and larger
    assert nearest_bucket([(200, 100), (100, 200)], cells) == (64, 64)
    assert nearest_bucket([(300, 100), (100, 100)], cells) == (128, 64)  # mean ratio: the root of 3
    assert nearest_bucket([(100, 100)], list(reversed(cells))) == (64, 64)


def test_sets_go_to_their_buckets(tmp_path):
    for name, size in (("a", (64, 64)), ("b", (90, 200)), ("c", (70, 75))):
        for p in range(2):
            picture(tmp_path / name / f"{p}.png", size=size)
        (tmp_path / name / "caption.txt").write_text(name)
    data = pairs(tmp_path, buckets=[(64, 64), (128, 64)])
    assert data.buckets == {(64, 64): (0, 2), (128, 64): (1,)}
    assert data[1].composite().size == (128, 128) and data[2].composite().size == (128, 64)


def test_a_ready_composite_is_sorted_by_the_shape_of_its_panels(tmp_path):
    picture(tmp_path / "a.png", size=(128, 128))
    (tmp_path / "a.txt").write_text("two tall panels")
    assert pairs(tmp_path, buckets=[(64, 64), (128, 64)]).buckets == {(128, 64): (0,)}


# --- order ---


def test_the_order_is_a_function_of_seed_and_step(tmp_path):
    data = pairs(make_sets(tmp_path, count=7), flip=True, seed=3)
    batches = [data.batch_at(step, 3) for step in range(12)]
    np.random.seed(0)
    again = pairs(tmp_path, flip=True, seed=3)
    assert [again.batch_at(step, 3) for step in reversed(range(12))] == batches[::-1]
    other = pairs(tmp_path, flip=True, seed=4)
    assert [other.batch_at(step, 3) for step in range(12)] != batches


def test_processes_share_a_batch_by_slicing_it(tmp_path):
    data = pairs(make_sets(tmp_path, count=7))
    for step in range(10):
        whole = data.batch_at(step, 4)
        ranks = [data.batch_at(step, 4)[rank::2] for rank in range(2)]
        assert [len(rank) for rank in ranks] == [2, 2]
        assert [ranks[k % 2][k // 2] for k in range(4)] == whole


# --- flips ---


def test_flips_are_off_unless_asked(tmp_path):
    data = pairs(make_sets(tmp_path))
    assert not any(s.flip for step in range(50) for s in data.batch_at(step, 2))


def test_a_flip_mirrors_every_panel_in_its_place(tmp_path):
    for p, red in enumerate((40, 80)):
        image = Image.new("RGB", (64, 64), (red, 0, 0))
        image.paste((0, 0, 255), (0, 0, 20, 64))  # blue at the left
        (tmp_path / "set").mkdir(exist_ok=True)
        image.save(tmp_path / f"set/{p}.png")
    (tmp_path / "set/caption.txt").write_text("two")
    data = pairs(tmp_path, flip=True)
    drawn = [data.batch_at(step, 1)[0] for step in range(60)]
    assert 15 < sum(s.flip for s in drawn) < 45
    for sample in (next(s for s in drawn if s.flip), next(s for s in drawn if not s.flip)):
        blue = [
            p.getpixel((5 if not sample.flip else 58, 30)) for p in split(sample.composite(), sample.grid)
        ]
        assert blue == [(0, 0, 255)] * 2 and reds(sample) == [40, 80]


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


# --- real photographs ---


@pytest.mark.skipif(not (PHOTOS / "subjects").is_dir(), reason="no photographs beside the checkout")
def test_real_photographs_make_composites_without_a_warning(tmp_path):
    for subject in sorted((PHOTOS / "subjects").iterdir()):
        (tmp_path / subject.name).mkdir()
        for p, photo in enumerate(sorted(subject.glob("*.jpg"))[:4]):
            shutil.copy(photo, tmp_path / subject.name / f"{p}.jpg")
        panels = " ".join(f"{marker} a photo of it" for marker in markers(2, 2))
        (tmp_path / subject.name / "caption.txt").write_text(f"Four photos of a {subject.name}. {panels}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = SetDataset(tmp_path, rows=2, columns=2, buckets=aspect_buckets(128 * 128, step=16))
        composite = data[0].composite()
    assert len(data) == 8 and data.buckets.keys() == {(128, 128)}
    assert composite.size == (256, 256) and np.asarray(composite).std() > 20
