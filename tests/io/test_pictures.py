import io
import os
import struct
import sys
import types
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dit_heads.errors import InputError
from dit_heads.io.formats import FORMATS, PNG
from dit_heads.io.pictures import (
    check_writable,
    decode,
    picture_in,
    read_image,
    read_settings,
    size_of,
    to_rgb,
    write_png,
)

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


# --- the one decoder ---

RAMP = np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000


def file_of(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format=form, **options)
    return file.getvalue()


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown a quarter turn clockwise
    return exif


def palette_with_a_hole() -> Image.Image:
    image = Image.new("P", (2, 1))
    image.putpalette([9, 9, 9, 200, 0, 0])
    image.putpixel((1, 0), 1)
    image.info["transparency"] = 0
    return image


HALF = Image.fromarray(np.array([[[255, 0, 0, 255], [0, 0, 0, 0], [0, 0, 0, 51]]], np.uint8))
PICTURES: dict[str, tuple[bytes, Any]] = {
    "turned by EXIF": (
        file_of(Image.fromarray(np.array([[[1] * 3, [2] * 3]], np.uint8)), exif=turned()),
        [[[1] * 3], [[2] * 3]],
    ),
    "alpha on white": (file_of(HALF), [[[255, 0, 0], [255] * 3, [204] * 3]]),
    "16 bits": (
        file_of(Image.fromarray(RAMP)),
        np.round(RAMP / 257).astype(np.uint8)[..., None].repeat(3, -1).tolist(),
    ),
    "16 bits with a transparent value": (
        file_of(Image.fromarray(np.array([[257, 514]], np.uint16)), transparency=514),
        [[[1] * 3, [255] * 3]],
    ),
    "CMYK": (file_of(Image.new("CMYK", (8, 8), (0, 0, 0, 255)), "JPEG"), [[[0, 0, 0]] * 8] * 8),
    "grey": (file_of(Image.new("L", (2, 1), 77)), [[[77] * 3] * 2]),
    "one bit": (file_of(Image.new("1", (1, 1), 1)), [[[255] * 3]]),
    "palette": (file_of(palette_with_a_hole(), transparency=0), [[[255] * 3, [200, 0, 0]]]),
    "grey and alpha": (file_of(Image.new("LA", (1, 1), (9, 0))), [[[255] * 3]]),
    "animated": (
        file_of(red((1, 1)), save_all=True, append_images=[Image.new("RGB", (1, 1))]),
        [[[200, 20, 20]]],
    ),
    "animated WebP": (
        file_of(red((1, 1)), "WEBP", save_all=True, append_images=[Image.new("RGB", (1, 1))], lossless=True),
        [[[200, 20, 20]]],
    ),
    "damaged EXIF": (file_of(red((1, 1)), exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"), [[[200, 20, 20]]]),
}


@pytest.mark.parametrize("kind", PICTURES)
@pytest.mark.filterwarnings("ignore:.*EXIF:UserWarning")  # Pillow's, of the damaged one
def test_a_picture_is_the_same_by_path_in_bytes_and_as_an_image(tmp_path, kind):
    data, expected = PICTURES[kind]
    (tmp_path / "p").write_bytes(data)
    with Image.open(tmp_path / "p") as opened:
        images = [read_image(tmp_path / "p"), decode(data), to_rgb(opened)]
    for image in images:
        assert image.mode == "RGB" and np.asarray(image).tolist() == expected
    assert size_of(data) == (len(expected), len(expected[0]))


@pytest.mark.parametrize(("mode", "value"), [("F", 0.5), ("I", 70000), ("I", -1)])
def test_pixels_of_an_unknown_range_are_refused(mode, value):
    with pytest.raises(InputError, match=r"floating-point|expected 0 to 65535"):
        to_rgb(Image.new(mode, (2, 2), value))


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (file_of(red(), "GIF"), "GIF"),
        (file_of(red(), "BMP"), "BMP"),
        (file_of(red(), "TIFF"), "TIFF"),
        (b"\0\0\0\x1cftypavif" + bytes(40), "AVIF"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html>", "web page"),
    ],
)
def test_another_format_is_named_with_the_file_and_what_is_read(tmp_path, data, name):
    (tmp_path / "p.jpg").write_bytes(data)
    with pytest.raises(InputError, match=rf"'.*p\.jpg' .* is a {name}, expected PNG, JPEG or WebP"):
        read_image(tmp_path / "p.jpg")


@pytest.mark.parametrize("name", ["p.png", "p.webp", "p.jpg"])
def test_no_message_shows_an_address(tmp_path, name):
    red((64, 64)).save(tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    for cut in (4, 20, len(whole) // 2, len(whole) - 30):
        (tmp_path / name).write_bytes(whole[:cut])
        with pytest.raises(InputError, match=name) as raised:
            read_image(tmp_path / name)
        assert " at 0x" not in str(raised.value)


HEIC = b"\0\0\0\x1cftypheic" + bytes(16)


def test_heic_without_its_library_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "photo.jpg").write_bytes(HEIC)
    with pytest.raises(InputError, match=r"photo\.jpg' is a HEIC picture, .* pip install pillow-heif"):
        read_image(tmp_path / "photo.jpg")


def test_heic_is_read_where_its_library_is_installed(tmp_path, monkeypatch):
    library: Any = types.ModuleType("pillow_heif")
    library.HeifImageFile = lambda file: red() if file.read() == HEIC else None
    monkeypatch.setitem(sys.modules, "pillow_heif", library)
    (tmp_path / "photo.heic").write_bytes(HEIC)
    assert read_image(tmp_path / "photo.heic") == red()


def test_heic_of_the_real_library():
    heif = pytest.importorskip("pillow_heif")
    file = io.BytesIO()
    heif.from_pillow(Image.new("RGB", (64, 32), (200, 20, 20))).save(file, quality=100)
    image = decode(file.getvalue())
    assert image.size == (64, 32) and np.abs(np.asarray(image).astype(int) - (200, 20, 20)).max() < 8


@pytest.mark.parametrize("after", [False, True])
def test_megabytes_of_text_in_a_png_are_read_past(after):
    """As programs store whole workflows, before the pixels or after them."""
    info = PngInfo()
    info.add_text("workflow", "x" * 3_000_000, zip=True)
    data = file_of(red(), pnginfo=info)
    if after:
        at = data.index(b"zTXt") - 4
        length = struct.unpack(">I", data[at : at + 4])[0] + 12
        end = len(data) - 12
        data = data[:at] + data[at + length : end] + data[at : at + length] + data[end:]
    assert decode(data) == red() and size_of(data) == (6, 8)


def test_a_picture_is_read_without_touching_what_threads_share(monkeypatch):
    monkeypatch.setattr(warnings, "catch_warnings", None)
    data, large = file_of(red()), png_header(12000, 12000)

    def refused(_: int) -> bool:
        with pytest.raises(InputError, match="is 12000 x 12000, expected at most 64000000 pixels"):
            decode(large)
        return decode(data) == red()

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(refused, range(40)))


def test_formats_are_told_apart_by_their_first_bytes():
    assert [kind.name for kind in FORMATS if kind.begins(PNG)] == ["PNG"]
    assert len({kind.name for kind in FORMATS}) == len(FORMATS)


def test_a_picture_of_a_name_is_found_whatever_its_ending(tmp_path):
    for name in ("a.PNG", "a.b.jpg", "a.txt", "[c].Jpeg", "d.png", "d.webp"):
        (tmp_path / name).touch()
    for stem, name in (("a", "a.PNG"), ("a.b", "a.b.jpg"), ("[c]", "[c].Jpeg")):
        assert picture_in(tmp_path, stem, "root") == tmp_path / name
    assert picture_in(tmp_path, "c", "root") is picture_in(tmp_path / "none", "a", "root") is None
    with pytest.raises(InputError, match=r"root: expected one d in .*, got d.png, d.webp"):
        picture_in(tmp_path, "d", "root")
