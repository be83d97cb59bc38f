"""Pictures that come in and go out."""

import base64
import io

import pytest
from PIL import Image

from dit_heads.demo.files import opened, png_uri, quick_uri, received
from dit_heads.demo.limits import Limits
from dit_heads.errors import InputError
from dit_heads.io.pictures import png_bytes

RED = Image.new("RGB", (16, 16), "red")


def png(size) -> bytes:
    buffer = io.BytesIO()
    Image.new("1", size).save(buffer, format="PNG")
    return buffer.getvalue()


def test_a_picture_keeps_its_settings_and_says_that_it_is_generated():
    data = png_bytes(RED, {"seed": 3})
    image, kept = opened(data, Limits())
    assert image.tobytes() == RED.tobytes() and kept == {"seed": 3}
    assert Image.open(io.BytesIO(data)).info["Source"] == "AI-generated"
    assert base64.b64decode(png_uri(RED, {"seed": 3}).partition(",")[2]) == data
    assert quick_uri(RED).startswith("data:image/jpeg;base64,")


def test_nothing_is_left_on_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    opened(png_bytes(RED, {}), Limits())
    with pytest.raises(InputError):
        opened(b"no picture", Limits())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"no picture", "picture"),
        (png((8, 8)), "holds no `parameters`"),
        (png((6000, 6000)), "expected at most 24000000 pixels"),
        (b"\x89PNG" + b"0" * (21 * 2**20), "expected at most 20 MB"),
    ],
)
def test_other_files_are_refused_with_a_sentence(data, told):
    with pytest.raises(InputError, match=told):
        opened(data, Limits())


def test_base64_is_bounded_before_it_is_decoded():
    assert received(base64.b64encode(b"abc").decode(), 3) == b"abc"
    for wrong, told in [("A" * 100, "at most"), ("???", "base64"), (None, "base64"), (b"abc", "base64")]:
        with pytest.raises(InputError, match=told):
            received(wrong, 16)
