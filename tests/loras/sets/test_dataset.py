"""Sets as samples: their pixels, buckets, and the order of batches."""

from __future__ import annotations

import shutil
import threading
import warnings

import numpy as np
import pytest
from PIL import Image

from dit_heads.loras.sets import examine
from dit_heads.loras.sets.dataset import SetDataset, nearest_bucket
from dit_heads.loras.sets.panels import split
from dit_heads.tasks.markers import markers
from tests.loras.sets.made import PHOTOS, make_sets, pairs, picture, reds


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


@pytest.mark.filterwarnings("ignore:data. panels lose detail:UserWarning")  # the other panel is small
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
        data = SetDataset(tmp_path, rows=2, columns=2, buckets=[(128, 128), (96, 160), (160, 96)])
        composite = data[0].composite()
    assert len(data) == 8 and data.buckets.keys() == {(128, 128)}
    assert composite.size == (256, 256) and np.asarray(composite).std() > 20


# --- how they are read ---


def test_sets_are_read_by_several_threads(tmp_path, monkeypatch):
    """Two files meet, each of which waits for the other."""
    both = threading.Barrier(2, timeout=20)
    monkeypatch.setattr(examine, "read_bytes", lambda path: (both.wait(), path.read_bytes())[1])
    assert [s.source for s in pairs(make_sets(tmp_path)).samples] == ["set00", "set01"]
