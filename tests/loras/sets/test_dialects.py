"""Data sets as other tools and systems write them are read, or what is wrong with them is named."""

import json
import time
from pathlib import Path

import pytest
from PIL import Image

from dit_heads.errors import InputError
from dit_heads.loras.sets.captions import check_caption
from dit_heads.loras.sets.folders import read_sets
from tests.loras.sets.made import make_sets, pairs, picture, reds

PAIR = "[LEFT] a [RIGHT] b"


def captions(root: Path) -> list[str]:
    return [sample.caption for sample in pairs(root).samples]


@pytest.mark.parametrize("name", ["Caption.TXT", "caption.Txt"])
def test_the_case_of_a_captions_name_does_not_matter(tmp_path, name):
    make_sets(tmp_path, count=1)
    (tmp_path / "set00/caption.txt").rename(tmp_path / "set00" / name)
    assert captions(tmp_path) == ["set 0"]


@pytest.mark.parametrize("name", ["a.txt", "A.TXT", "a.png.txt", "a.caption"])
def test_a_caption_beside_a_composite_may_be_named_as_trainers_do(tmp_path, name):
    picture(tmp_path / "a.png", size=(128, 64))
    (tmp_path / name).write_text("two")
    assert captions(tmp_path) == ["two"]


def test_utf16_that_says_so_is_read(tmp_path):
    make_sets(tmp_path, count=1)
    (tmp_path / "set00/caption.txt").write_text("größer", "utf-16")
    assert captions(tmp_path) == ["größer"]


@pytest.mark.parametrize("key", ["text", "caption", "prompt"])
def test_a_list_may_name_its_captions_in_three_ways(tmp_path, key):
    picture(tmp_path / "images/a.png", size=(128, 64))
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "images\\a.png", key: "two"}))
    assert captions(tmp_path) == ["two"]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16"])
def test_csv_is_read_as_spreadsheets_write_it(tmp_path, delimiter, encoding):
    picture(tmp_path / "a.png", size=(128, 64))
    rows = f'file_name{delimiter}text\r\na.png{delimiter}"zwei größere, rote; Würfel"\r\n'
    (tmp_path / "metadata.csv").write_bytes(rows.encode(encoding))
    assert captions(tmp_path) == ["zwei größere, rote; Würfel"]


@pytest.mark.parametrize("name", ["..\\a.png", "C:\\a.png", "\\\\server\\a.png", "x\\..\\..\\a.png", ""])
def test_paths_that_leave_the_folder_are_refused_in_either_spelling(tmp_path, name):
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": name, "text": "two"}))
    with pytest.raises(InputError, match="entry 1: expected file_name or file_names, inside the folder"):
        pairs(tmp_path)


def test_what_was_looked_for_is_named(tmp_path):
    make_sets(tmp_path, count=1)
    (tmp_path / "set00/caption.txt").unlink()
    with pytest.raises(InputError, match=r"set00: no caption: looked for caption\.txt$"):
        pairs(tmp_path)
    (tmp_path / "captions.jsonl").write_text("")
    with pytest.raises(InputError, match=r"looked for caption\.txt and 'set00' in captions\.jsonl$"):
        pairs(tmp_path)


@pytest.mark.parametrize(("suffix", "name"), [("gif", "GIF"), ("bmp", "BMP"), ("tiff", "TIFF")])
def test_a_panel_in_a_format_that_is_not_read_is_named(tmp_path, suffix, name):
    make_sets(tmp_path, count=1)
    (tmp_path / "set00/2.png").unlink()
    Image.new("RGB", (64, 64)).save(tmp_path / f"set00/2.{suffix}")
    with pytest.raises(
        InputError, match=rf"set00: 2\.{suffix}: is not a picture .* it is a {name}, expected"
    ):
        pairs(tmp_path)


def test_panels_named_by_words_come_in_the_captions_order(tmp_path):
    for red, name in ((1, "night"), (2, "day")):
        picture(tmp_path / "set" / f"{name}.png", (red, 0, 0))
    caption = tmp_path / "set/caption.txt"
    caption.write_text("[LEFT] a hill by day [RIGHT] a hill at night")
    assert reds(pairs(tmp_path)[0]) == [2, 1]
    caption.write_text("a hill by day and at night")
    with pytest.raises(InputError, match=r"set: the names day\.png, night\.png do not say the order"):
        pairs(tmp_path)


def test_a_run_among_the_sets_is_no_set(tmp_path):
    make_sets(tmp_path)
    for run in ("run", "runs/first"):
        (tmp_path / run / "cache").mkdir(parents=True)
        (tmp_path / run / "config.json").write_text("{}")
    assert [one.source for one in read_sets(tmp_path)] == ["set00", "set01"]


def test_five_thousand_captions_in_one_file_are_found_in_a_moment(tmp_path):
    """Half a second; quadratic, it was 14."""
    rows = []
    for k in range(5000):
        (tmp_path / f"set{k}").mkdir()
        rows.append(json.dumps({"set": f"set{k}", "caption": f"set {k}"}))
    (tmp_path / "captions.jsonl").write_text("\n".join(rows))
    begun = time.process_time()
    assert [one.caption for one in read_sets(tmp_path)][4321] == "set 4321"
    assert time.process_time() - begun < 4


# --- captions that can be generated again ---


@pytest.mark.parametrize(
    ("caption", "message"),
    [
        (
            "[TOP] a [BOTTOM] b",
            r"expected 2, .* behind .*\[LEFT\] \[RIGHT\]; got 2, behind \[TOP\] \[BOTTOM\]",
        ),
        ("[LEFT] a [SCENE-2] b", r"got 2, behind \[LEFT\] \[SCENE-2\]"),
        ("[RIGHT] a [LEFT] b", r"got 2, behind \[RIGHT\] \[LEFT\]"),
        ("[left] a [right] b", r"the caption has \[left\], expected markers in capitals: \[LEFT\]"),
        ("[LEFT] a [RIGHT]", r"expected words behind each marker, got none behind \[RIGHT\]"),
    ],
)
def test_what_the_pipeline_could_not_generate_is_not_trained(tmp_path, caption, message):
    make_sets(tmp_path, count=1)
    (tmp_path / "set00/caption.txt").write_text(caption)
    with pytest.raises(InputError, match=message):
        pairs(tmp_path)
    with pytest.raises(InputError, match=message):
        check_caption(caption, 1, 2)


@pytest.mark.parametrize("caption", [PAIR, "[SCENE-1] a [SCENE-2] b", "[IMAGE1] a [IMAGE2] b", "two hills"])
def test_every_family_of_markers_is_trained_and_none_at_all(tmp_path, caption):
    make_sets(tmp_path, count=1)
    (tmp_path / "set00/caption.txt").write_text(caption)
    assert captions(tmp_path) == [caption]
    assert (check_caption(caption, 1, 2) is None) == ("[" not in caption)


# --- warnings with numbers ---


@pytest.mark.parametrize(
    ("size", "options", "message"),
    [
        (
            (64, 64),
            {"buckets": [(128, 128)]},
            "set00: 64 x 64 pixels are enlarged 2.0 times for .* 128 x 128",
        ),
        ((64, 4000), {}, "set00: of 64 x 4000 pixels a panel of 64 x 64 shows 2 %"),
        ((64, 4000), {"fit": "pad"}, "set00: 64 x 4000 pixels fill 2 % of a panel of 64 x 64"),
    ],
)
def test_panels_that_lose_detail_are_warned_of(tmp_path, size, options, message):
    make_sets(tmp_path, count=1, size=size)
    with pytest.warns(UserWarning, match=rf"data: panels lose detail:\n  {message}"):
        pairs(tmp_path, **options)


def test_mirrored_panels_whose_captions_say_left_or_right_are_warned_of(tmp_path):
    make_sets(tmp_path)
    (tmp_path / "set01/caption.txt").write_text("[LEFT] a cube, [RIGHT] the cube on the left-hand side")
    with pytest.warns(UserWarning, match="flip: 1 captions say left or right, .* contradict: set01"):
        pairs(tmp_path, flip=True)
    (tmp_path / "set01/caption.txt").write_text(PAIR)
    pairs(tmp_path, flip=True)  # markers stay in their places, as panels do
