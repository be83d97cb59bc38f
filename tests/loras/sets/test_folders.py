"""Sets on disk: three forms, and every bad file named."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from tests.loras.sets.made import make_sets, pairs, picture, reds

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


@pytest.mark.parametrize(
    ("name", "text"),
    [("metadata.jsonl", b"\xff\xfe"), ("metadata.csv", "赤い立方体と青い球がある".encode("shift-jis"))],
)
def test_a_list_that_is_not_utf8_is_refused(tmp_path, name, text):
    (tmp_path / name).write_bytes(b"file_name,text\na.png," + text + b"\n")
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
    "bomb": (lambda s: (s / "2.png").write_bytes(png_of(60000, 60000)), "2.png: is 60000 x 60000, .* pixels"),
    "bytes": (lambda s: huge(s / "2.png"), "2.png: has 67108865 bytes, expected at most 67108864"),
    "folder": (lambda s: ((s / "2.png").unlink(), (s / "2.png").mkdir()), "2.png: there is no such file"),
    "no caption": (lambda s: (s / "caption.txt").unlink(), "no caption"),
    "empty caption": (lambda s: (s / "caption.txt").write_text(" \n"), "an empty caption in caption.txt"),
    "not UTF-8": (lambda s: (s / "caption.txt").write_bytes(b"\xff"), "a caption that is not UTF-8 in cap"),
    "too few": (lambda s: (s / "2.png").unlink(), r"expected 2 pictures, got 1 \(1.png\)"),
    "too many": (lambda s: picture(s / "3.png"), r"expected 2 pictures, got 3 \(1.png, 2.png"),
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
        ["  set03", "no caption"],
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
