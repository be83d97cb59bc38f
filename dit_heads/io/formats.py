"""Picture formats by their first bytes. Errors name the formats that we do not read."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from dit_heads.errors import InputError

READABLE = "PNG, JPEG or WebP (or HEIC, where pillow-heif is installed)"
PICTURE_SUFFIXES = frozenset(
    {".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".heic", ".heif", ".avif", ".gif", ".bmp"}
    | {".tif", ".tiff", ".jxl", ".jp2", ".psd"}
)
"""File name endings of pictures, whether we read their format or not."""
PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Format:
    """A file format: a test of its first bytes, and the class that opens it (None: we do not read it)."""

    name: str
    begins: Callable[[bytes], bool]
    opener: Callable[[io.BytesIO], Image.Image] | None = None


def _starts(*prefixes: bytes) -> Callable[[bytes], bool]:
    return lambda head: head.startswith(prefixes)


def _box_of(*brands: bytes) -> Callable[[bytes], bool]:
    return lambda head: head[4:8] == b"ftyp" and head[8:12] in brands


def _heif(file: io.BytesIO) -> Image.Image:
    try:
        from pillow_heif import HeifImageFile  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError("is a HEIC picture, which needs: pip install pillow-heif") from error
    return HeifImageFile(file)


# Pillow's classes are called directly: `Image.open` warns of large pictures, which the pixel limit refuses a
# moment later, and silencing warnings is not safe between threads.
FORMATS = (
    Format("PNG", _starts(PNG), PngImageFile),
    Format("JPEG", _starts(b"\xff\xd8\xff"), JpegImageFile),
    Format("WebP", lambda head: head[:4] == b"RIFF" and head[8:12] == b"WEBP", WebPImageFile),
    Format("HEIC", _box_of(b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), _heif),
    Format("AVIF", _box_of(b"avif", b"avis")),
    Format("GIF", _starts(b"GIF87a", b"GIF89a")),
    Format("BMP", _starts(b"BM")),
    Format("TIFF", _starts(b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")),
    Format("JPEG XL", _starts(b"\xff\x0a", b"\x00\x00\x00\x0cJXL ")),
    Format("JPEG 2000", _starts(b"\x00\x00\x00\x0cjP  ", b"\xff\x4f\xff\x51")),
    Format("Photoshop", _starts(b"8BPS")),
    Format("PDF", _starts(b"%PDF")),
    Format("Git LFS pointer", _starts(b"version https://git-lfs")),
    Format("web page", _starts(b"<!DOCTYPE", b"<!doctype", b"<html", b"<HTML")),
    Format("SVG", _starts(b"<svg", b"<?xml")),
)


def open_header(data: bytes) -> Image.Image:
    """The picture in a file's bytes, with only its header read.

    Raises:
        InputError: for a format that we do not read.
    """
    kind = next((kind for kind in FORMATS if kind.begins(data)), None)
    if kind is None:
        raise InputError(
            f"is not a picture that can be read: cannot identify its format, expected {READABLE}"
        )
    if kind.opener is None:
        raise InputError(f"is not a picture that can be read: it is a {kind.name}, expected {READABLE}")
    return kind.opener(io.BytesIO(data))
