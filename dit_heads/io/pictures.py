"""Pictures on disk: settings inside the PNG, files that appear whole or not at all, bounded reading."""

import json
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dit_heads.errors import InputError
from dit_heads.io.atomic import atomic_file

# Limits that hold before anything is decoded: a few kilobytes of PNG can unpack to gigabytes.
MAX_BYTES = 64 * 2**20
MAX_PIXELS = 64 * 10**6
FORMATS = ("PNG", "JPEG", "WEBP")


def check_writable(path: Path) -> None:
    """Raise ValueError now if `path` could not be written later, without creating anything."""
    if path.is_dir():
        raise InputError(f"out: expected a file name, got the folder '{path}'")
    folder = path.parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise InputError(f"out: cannot write '{path}': '{folder}' is a file, not a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"out: cannot write '{path}': no permission to write in '{folder}'")


def write_png(image: Image.Image, path: Path, settings: Mapping[str, Any]) -> None:
    """Write a PNG whose `parameters` text is `settings` as JSON, and which says that it is generated.

    Raises ValueError on a setting that JSON cannot hold, OSError if the file cannot be written.
    """
    info = PngInfo()
    info.add_text("parameters", json.dumps(dict(settings), allow_nan=False))
    info.add_text("Software", "dit-heads")
    info.add_text("Source", "AI-generated")
    with atomic_file(path) as file:
        image.save(file, format="PNG", pnginfo=info)


def read_settings(path: Path) -> dict[str, Any]:
    """The settings that `write_png` put into a file. Raises ValueError if it holds none."""
    with _opened(path) as image:
        text = image.info.get("parameters")
    if text is None:
        raise InputError(f"from: '{path}' holds no `parameters` text; was it saved anew by another program?")
    try:
        settings = json.loads(text)
    except ValueError:
        settings = None
    if not isinstance(settings, dict):
        raise InputError(f"from: the `parameters` of '{path}' are not the JSON that dit-heads writes")
    return settings


def read_image(path: Path, *, max_bytes: int = MAX_BYTES, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A PNG, JPEG or WebP as RGB. Raises ValueError if it is too large (before decoding) or broken."""
    with _opened(path, max_bytes, max_pixels) as image:
        try:
            return image.convert("RGB")
        except (OSError, SyntaxError) as error:
            raise InputError(f"image: '{path}' is damaged: {error}") from error


@contextmanager
def _opened(path: Path, max_bytes: int = MAX_BYTES, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """An image whose header alone was read, once its size is known to be within the limits."""
    if not path.is_file():
        raise InputError(f"image: there is no file '{path}'")
    if (size := path.stat().st_size) > max_bytes:
        raise InputError(f"image: '{path}' has {size} bytes, expected at most {max_bytes}")
    with _header(path) as image:
        if image.width * image.height > max_pixels:
            raise InputError(
                f"image: '{path}' is {image.width} x {image.height}, expected at most {max_pixels} pixels"
            )
        yield image


def _header(path: Path) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # Pillow warns of what the pixel limit refuses a moment later.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(path, formats=FORMATS)
    except (OSError, Image.DecompressionBombError, ValueError, SyntaxError) as error:
        raise InputError(f"image: '{path}' is not a picture that can be read: {error}") from error
