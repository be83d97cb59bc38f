"""Pictures on disk: the one decoder, and PNG files that carry their settings.

A path, a file's bytes and a PIL image of the same picture all give the same pixels: 8-bit RGB, rotated as
EXIF says, transparency on white, 16 bits scaled to 8, and the first frame of an animation. A file is decoded
only if its bytes and pixels are within limits. Threads may decode at once, since no global state changes.
"""

from __future__ import annotations

import io
import json
import os
import struct
from collections.abc import Callable, Mapping
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt16
from PIL import ExifTags, Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from dit_heads.errors import InputError, listed
from dit_heads.io.atomic import atomic_file
from dit_heads.io.formats import PICTURE_SUFFIXES, PNG, open_header

# A few kilobytes of PNG can unpack to gigabytes.
MAX_BYTES = 64 * 2**20
MAX_PIXELS = 64 * 10**6
WHITE = (255, 255, 255)
_INFLATED = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")  # parts of a PNG whose length Pillow limits

# --- reading ---


def picture_in(folder: Path, stem: str, argument: str) -> Path | None:
    """The picture of a name in a folder, if there is one.

    Args:
        folder: the folder.
        stem: the name without its ending.
        argument: the name of the argument that gave the folder, for errors.

    Raises:
        InputError: there are several.
    """
    alike = sorted(folder.glob(f"{escape(stem)}.*"))
    found = [path for path in alike if path.stem == stem and path.suffix.lower() in PICTURE_SUFFIXES]
    if len(found) > 1:
        names = listed([path.name for path in found])
        raise InputError(f"{argument}: expected one {stem} in '{folder}', got {names}")
    return found[0] if found else None


def read_image(path: Path, *, max_bytes: int = MAX_BYTES, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The picture in a file, as RGB.

    Args:
        path: a PNG, JPEG or WebP file (HEIC too, with pillow-heif).
        max_bytes: largest size of the file.
        max_pixels: largest number of pixels, checked before decoding.

    Raises:
        InputError: if the file is missing, too large, damaged or in another format. The message names it.
    """
    if not path.is_file():
        raise InputError(f"image: there is no file '{path}'")
    try:
        return decode(read_bytes(path, max_bytes), max_pixels)
    except InputError as error:
        raise InputError(f"image: '{path}' {error}") from error


def read_levels(path: Path, *, palette: bool = False) -> UInt16[np.ndarray, "h w"]:
    """The numbers in a grey PNG of 8 or 16 bits as they are, such as those of depth maps.

    Args:
        path: the file.
        palette: whether numbers of colours in a palette will do too, as data sets have them for classes.

    Raises:
        InputError: as `read_image`, and for a picture that is not grey.
    """

    def levels(image: Image.Image) -> Any:
        if image.mode not in ("1", "L", "I", "I;16", "I;16B", *(["P"] if palette else [])):
            raise InputError(f"expected grey of 8 or 16 bits, got a picture of mode {image.mode}")
        return np.asarray(image).astype(np.uint16)

    try:
        return _loaded(read_bytes(path), MAX_PIXELS, levels)
    except InputError as error:
        raise InputError(f"image: '{path}' {error}") from error


def read_bytes(path: Path, limit: int = MAX_BYTES) -> bytes:
    """The bytes of a file.

    Args:
        path: the file.
        limit: largest size in bytes.

    Raises:
        InputError: if the file is missing, too large or cannot be read. The message does not name it.
    """
    if not path.is_file():
        raise InputError("there is no such file")
    try:
        if (size := path.stat().st_size) > limit:
            raise InputError(f"has {size} bytes, expected at most {limit}")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}") from error


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The picture in a file's bytes, as RGB.

    Args:
        data: the bytes of the whole file.
        max_pixels: largest number of pixels, checked before decoding.

    Raises:
        InputError: as `read_image`, though the message cannot name the file.
    """
    return _loaded(data, max_pixels, to_rgb)


def size_of(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Height and width of an upright picture, in pixels.

    The whole picture is decoded, so that damage is found, but it is not converted.

    Args:
        data: the bytes of the whole file.
        max_pixels: largest number of pixels, checked before decoding.

    Raises:
        InputError: as `decode`.
    """

    def upright(image: Image.Image) -> tuple[int, int]:
        width, height = image.size
        # A JPEG is then read whole but decoded at an eighth of its size.
        image.draft("RGB", (max(1, width // 8), max(1, height // 8)))
        image.load()
        return (width, height) if _orientation(image) in (5, 6, 7, 8) else (height, width)

    return _loaded(data, max_pixels, upright)


def _loaded(data: bytes, max_pixels: int, use: Callable[[Image.Image], Any]) -> Any:
    """The result of `use` on the opened picture, which is within the limit and not decoded yet."""
    try:
        return _used(data, max_pixels, use)
    except InputError:
        raise
    except Exception as error:  # a damaged file makes Pillow's decoders raise almost anything
        shorter = without_text(data) if data.startswith(PNG) and "MAX_TEXT" in str(error) else data
        if len(shorter) < len(data):
            return _loaded(shorter, max_pixels, use)
        raise InputError(f"is not a picture that can be read: it is damaged: {_reason(error)}") from error


def _used(data: bytes, max_pixels: int, use: Callable[[Image.Image], Any]) -> Any:
    with open_header(data) as image:
        if image.width * image.height > max_pixels:
            raise InputError(f"is {image.width} x {image.height}, expected at most {max_pixels} pixels")
        return use(image)


def _reason(error: Exception) -> str:
    """Pillow's message, unless it holds the address of an object."""
    return type(error).__name__ if " at 0x" in str(error) else str(error) or type(error).__name__


def without_text(data: bytes) -> bytes:
    """A PNG without its text and colour profile, where some programs store more than Pillow reads.

    Args:
        data: the bytes of a PNG file.
    """
    kept, at = [PNG], len(PNG)
    while at + 8 <= len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        end = at + 12 + length
        if kind not in _INFLATED:
            kept.append(data[at:end])
        at = end
    return b"".join(kept)


def to_rgb(image: Image.Image) -> Image.Image:
    """Any PIL image as upright RGB.

    Args:
        image: 8 or 16 bits a channel. Mode `I` (32 bits) counts as 16, since Pillow reads 16-bit PNGs so.

    Raises:
        InputError: for floating-point pixels, whose range is unknown, and for values beyond 16 bits.
    """
    image = _upright(image)
    if image.mode == "F":
        raise InputError("is a picture of floating-point numbers (mode F), expected 8 or 16 bits")
    if image.mode.startswith("I"):  # Pillow's own conversion would clip at 255
        return _from_16_bits(image)
    if image.has_transparency_data:
        colours = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (*WHITE, 255)), colours).convert("RGB")
    return image.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    turned = ImageOps.exif_transpose(image) if _orientation(image) != 1 else None
    return image if turned is None else turned


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation from 1 to 8; 1 (upright) if it is missing or damaged."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow's parser raises almost anything
        return 1
    return found if found in range(1, 9) else 1


def _from_16_bits(image: Image.Image) -> Image.Image:
    """16-bit grey as RGB. The value that a PNG declares transparent becomes white."""
    values = np.asarray(image).astype(np.int64)
    if values.size and not 0 <= values.min() <= values.max() <= 0xFFFF:
        raise InputError(f"has pixels from {values.min()} to {values.max()}, expected 0 to 65535 (16 bits)")
    grey = np.round(values / 257).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return Image.fromarray(grey).convert("RGB")


# --- writing ---


def check_writable(path: Path) -> None:
    """Check that a file can be written later, without creating anything.

    Args:
        path: the file.

    Raises:
        InputError: if it could not be written.
    """
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
    """Write a PNG that carries its settings and a note that it was generated.

    Args:
        image: the picture.
        path: the file; an existing one is replaced.
        settings: stored as JSON in the PNG's `parameters` text.

    Raises:
        ValueError: for a setting that JSON cannot hold.
        FileError: if the file cannot be written.
    """
    data = png_bytes(image, settings)
    with atomic_file(path) as file:
        file.write(data)


def png_bytes(image: Image.Image, settings: Mapping[str, Any]) -> bytes:
    """The PNG that `write_png` writes.

    Args:
        image: the picture.
        settings: stored as JSON in the PNG's `parameters` text.

    Raises:
        ValueError: for a setting that JSON cannot hold.
    """
    info = PngInfo()
    info.add_text("parameters", json.dumps(dict(settings), allow_nan=False))
    info.add_text("Software", "dit-heads")
    info.add_text("Source", "AI-generated")
    file = io.BytesIO()
    image.save(file, format="PNG", pnginfo=info)
    return file.getvalue()


def read_settings(path: Path) -> dict[str, Any]:
    """The settings that `write_png` stored in a file.

    Args:
        path: the PNG file.

    Raises:
        InputError: if the file cannot be read or holds no settings.
    """
    if not path.is_file():
        raise InputError(f"image: there is no file '{path}'")
    try:
        data = read_bytes(path)
    except InputError as error:
        raise InputError(f"image: '{path}' {error}") from error
    return stored_settings(data, str(path))


def stored_settings(data: bytes, name: str) -> dict[str, Any]:
    """The settings in the bytes of a PNG.

    Args:
        data: the PNG.
        name: what errors call it.

    Raises:
        InputError: if it cannot be read or holds no settings.
    """
    try:
        text = _loaded(data, MAX_PIXELS, lambda image: image.info.get("parameters"))
    except InputError as error:
        raise InputError(f"image: '{name}' {error}") from error
    if text is None:
        raise InputError(f"from: '{name}' holds no `parameters` text; was it saved anew by another program?")
    try:
        settings = json.loads(text)
    except ValueError:
        settings = None
    if not isinstance(settings, dict):
        raise InputError(f"from: the `parameters` of '{name}' are not the JSON that dit-heads writes")
    return settings
