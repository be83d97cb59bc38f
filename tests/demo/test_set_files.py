"""Sets that visitors bring: what is refused before it is decoded, and what is wrong with them in words."""

import base64
import io
import zipfile

import pytest
from PIL import Image

from dit_heads.demo.limits import Limits
from dit_heads.demo.set_files import ROOT, bring_sets, copied, look
from dit_heads.demo.shelf import Shelf
from dit_heads.errors import InputError

LIMITS = Limits(sets=3, sets_files=20, sets_bytes=2**18, sets_pixels=400_000, upload_pixels=200_000)
CAPTION = b"two. [LEFT] a cat [RIGHT] a dog"


def png(size=(64, 64), mode="L") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, format="PNG")
    return buffer.getvalue()


def sets(count=2, size=(64, 64)) -> dict[str, bytes]:
    """So many sets of two panels, by paths."""
    return {
        f"set{n}/{name}": data
        for n in range(count)
        for name, data in (("1.png", png(size)), ("2.png", png(size)), ("caption.txt", CAPTION))
    }


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data in files.items():
            packed.writestr(name, data)
    return buffer.getvalue()


def sent(files: dict[str, bytes]) -> list[dict[str, str]]:
    return [{"name": name, "data": base64.b64encode(data).decode()} for name, data in files.items()]


@pytest.fixture
def shelf():
    return Shelf("sets", 4, 2**24)


def looked(shelf, files, rows=1, columns=2, side=64):
    entry = bring_sets(shelf, sent(files), "ann", LIMITS)
    return look(entry.folder / ROOT, rows, columns, side, LIMITS)


@pytest.mark.parametrize(
    "files",
    [
        sets(),
        {"a.zip": zipped(sets())},
        {"a.zip": zipped({f"mine/sets/{name}": data for name, data in sets().items()})},
        {f"mine/{name}": data for name, data in sets().items()},
        {"a.zip": zipped(sets() | {"__MACOSX/._1.png": b"x", ".DS_Store": b"x", "notes.pdf": b"x"})},
        {"a.png": png((128, 64)), "a.txt": CAPTION, "b.png": png((128, 64)), "b.txt": CAPTION},
    ],
    ids=["files", "zip", "zip of folders", "folder", "what systems add", "composites"],
)
def test_sets_come_in_every_form_of_the_trainer(shelf, files, tmp_path):
    found = looked(shelf, files)
    assert (found.count, found.problems, found.caption) == (2, (), CAPTION.decode()) and found.usable
    (entry, _), *_ = shelf._entries.values()
    copied(entry, tmp_path / "copy")
    assert look(tmp_path / "copy", 1, 2, 64, LIMITS) == found


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"set0/1.png": png(), "set0/caption.txt": CAPTION}, "set0: expected 2 pictures, got 1 (1.png)"),
        ({"set0/1.png": png(), "set0/2.png": png()}, "set0: no caption"),
        (sets(1) | {"set0/2.png": png()[:50]}, "set0: 2.png: is not a picture that can be read"),
        (sets(1) | {"set0/2.png": png((32, 64))}, "a panel is 32 x 64 pixels, expected sides of at least 64"),
        (sets(1) | {"set0/caption.txt": b"[LEFT] a [MIDDLE] b [RIGHT] c"}, "markers of 3 panels, expected 2"),
        (sets(1) | {"a.png": png(), "a.txt": b"a"}, "folders with a set each, or pictures with captions"),
        (sets(4), "sets: expected at most 3, got 4"),
    ],
)
def test_what_is_wrong_with_sets_is_told_in_words_without_a_path(shelf, files, told):
    found = looked(shelf, files)
    assert not found.usable and told in found.problems[0], found.problems
    assert str(shelf._root) not in str(found)


def test_what_will_be_lost_is_told_beside(shelf):
    found = looked(shelf, sets(1) | {"set0/1.png": png((400, 64)), "set0/caption.txt": b"no marker"})
    assert found.usable and any("shows 16 %" in note for note in found.notes)
    assert any("no marker such as [LEFT]" in note for note in found.notes)
    assert any("sets are few" in note for note in found.notes)


LINK = zipfile.ZipInfo("link.png")
LINK.external_attr = 0o120777 << 16


def linked() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        packed.writestr(LINK, "/etc/passwd")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({}, "got nothing"),
        ({"a.txt": b"x"}, "there is no picture"),
        ({"a.zip": b"no zip"}, "this zip is damaged"),
        ({"a.zip": zipped(sets())[:200]}, "this zip is damaged"),
        ({"a.zip": zipped({"../a.png": png()})}, "a path that leads out of its folder"),
        ({"/etc/a.png": png()}, "a path that leads out of its folder"),
        ({"C:\\a.png": png()}, "a path that leads out of its folder"),
        ({"a.zip": linked()}, "there is no picture"),
        ({"a.zip": zipped({"a.png": b"\0" * 2**19})}, "expected at most 0 MB, unpacked"),
        ({f"{n}.png": png() for n in range(21)}, "expected at most 20 files, got 21"),
        ({"a.zip": zipped({f"{n}.txt": b"" for n in range(41)})}, "expected at most 20 files, got 41"),
        ({"a.png": b"x" * (2**18 + 64)}, "expected at most"),
        ({"a.png": png((500, 500), "1")}, "a.png has 250000 pixels, expected at most 200000"),
        ({f"{n}.png": png((400, 400), "1") for n in range(3)}, "expected at most 0 million pixels in all"),
        ({"a.png": png(), "a.png/b.png": png()}, "the names of these files cannot be used"),
        ({"x" * 130 + ".png": png()}, "names of at most 120 letters"),
    ],
)
def test_files_beyond_the_bounds_are_refused_and_deleted(shelf, files, told):
    with pytest.raises(InputError, match=told):
        bring_sets(shelf, sent(files), "ann", LIMITS)
    assert len(shelf) == 0 and list(shelf._root.iterdir()) == []


@pytest.mark.parametrize("files", [None, "x", [None], [{"name": "a.png"}], [{"name": "a.png", "data": 3}]])
def test_what_is_no_list_of_files_is_refused(shelf, files):
    with pytest.raises(InputError):
        bring_sets(shelf, files, "ann", LIMITS)
