"""Pictures that come in as bytes and go out as data URIs: nothing of a visitor's stays on the disk."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Mapping
from typing import Any

from PIL import Image

from dit_heads.demo.limits import Limits
from dit_heads.errors import InputError
from dit_heads.io.pictures import decode, png_bytes, stored_settings


def png_uri(image: Image.Image, settings: Mapping[str, Any]) -> str:
    """A PNG that keeps its settings, as a data URI, so that no file has to be served."""
    return data_uri(png_bytes(image, settings), "image/png")


def plain_uri(image: Image.Image) -> str:
    """A PNG of a visitor's own picture, as a data URI, which says nothing of where it is from."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return data_uri(buffer.getvalue(), "image/png")


def data_uri(data: bytes, kind: str) -> str:
    """A file as a data URI."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def quick_uri(image: Image.Image) -> str:
    """A picture to look at for a moment."""
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=88)
    return data_uri(buffer.getvalue(), "image/jpeg")


def received(data: object, most: int) -> bytes:
    """The bytes of base64 text.

    Raises:
        InputError: if it is no such text, or of more than `most` bytes, which is known before it is decoded.
    """
    if not isinstance(data, str):
        raise InputError("file: expected its bytes as base64 text, got something else")
    if len(data) > most // 3 * 4 + 4:
        raise InputError(f"file: expected at most {most / 2**20:.1f} MB, got more")
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError("file: expected its bytes as base64 text, got something else") from error


def opened(data: bytes, limits: Limits) -> tuple[Image.Image, dict[str, Any]]:
    """The picture and the settings in the bytes of a PNG of ours.

    Raises:
        InputError: for a picture that is too large (known before it is decoded) or holds no settings.
    """
    if len(data) > limits.upload_bytes:
        raise InputError(f"picture: expected at most {limits.upload_bytes / 2**20:.0f} MB")
    return decode(data, limits.upload_pixels), stored_settings(data, "picture.png")
