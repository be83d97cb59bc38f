import os
import struct
import zlib

import pytest
from PIL import Image

from dit_heads.io.pictures import check_writable, read_image, read_settings, write_png

SETTINGS = {"prompt": 'a "red" cube, größer ☃', "seed": 2**62, "scale": 2.5, "heads": None}


def red(size=(8, 6)):
    return Image.new("RGB", size, (200, 20, 20))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims any size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


def test_settings_come_back_as_they_were_written(tmp_path):
    path = tmp_path / "deep" / "picture.png"
    write_png(red(), path, SETTINGS)
    assert read_settings(path) == SETTINGS
    assert read_image(path).getpixel((3, 3)) == (200, 20, 20)


def test_a_picture_says_that_it_is_generated(tmp_path):
    write_png(red(), tmp_path / "p.png", SETTINGS)
    with Image.open(tmp_path / "p.png") as image:
        assert image.info["Source"] == "AI-generated"


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "p.png"
    write_png(red(), path, SETTINGS)
    before = path.read_bytes()

    def disk_full(self, file, **_):
        file.write(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(Image.Image, "save", disk_full)
    with pytest.raises(OSError, match="no space"):
        write_png(red(), path, {})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["p.png"]


def test_settings_that_json_cannot_hold_are_refused(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_png(red(), tmp_path / "p.png", {"scale": float("nan")})
    assert os.listdir(tmp_path) == []


def test_a_file_in_place_of_a_folder_is_found_before_writing(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file, not a folder"):
        check_writable(tmp_path / "file" / "deep" / "p.png")
    with pytest.raises(ValueError, match="got the folder"):
        check_writable(tmp_path)
    check_writable(tmp_path / "new" / "p.png")
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("text", [None, "a cat, Steps: 20", "[1, 2]", '{"open'])
def test_a_picture_without_our_settings_is_refused(tmp_path, text):
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    if text is not None:
        info.add_text("parameters", text)
    red().save(tmp_path / "p.png", pnginfo=info)
    with pytest.raises(ValueError, match="parameters"):
        read_settings(tmp_path / "p.png")


def test_what_is_no_picture_is_refused(tmp_path):
    (tmp_path / "p.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match="cannot identify"):
        read_image(tmp_path / "p.png")
    with pytest.raises(ValueError, match="no file"):
        read_image(tmp_path / "absent.png")


@pytest.mark.parametrize("side", [9000, 14000, 60000])
def test_a_picture_of_too_many_pixels_is_refused_before_decoding(tmp_path, side):
    (tmp_path / "p.png").write_bytes(png_header(side, side))
    with pytest.raises(ValueError, match="pixels"):
        read_image(tmp_path / "p.png")


def test_a_file_of_too_many_bytes_is_refused(tmp_path):
    red().save(tmp_path / "p.png")
    with pytest.raises(ValueError, match="expected at most 10"):
        read_image(tmp_path / "p.png", max_bytes=10)


def test_a_damaged_picture_is_refused(tmp_path):
    (tmp_path / "p.png").write_bytes(png_header(16, 16))
    with pytest.raises(ValueError, match="damaged"):
        read_image(tmp_path / "p.png")
