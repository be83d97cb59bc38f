import numpy as np
import pytest
from PIL import Image

from dit_heads.errors import InputError
from dit_heads.tasks.annotations import Segmentation
from dit_heads.tasks.label_files import read_label_png, save_label_png

NUMBERS = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)


@pytest.mark.parametrize("count", [2, 300])
def test_what_is_written_is_read_again(count, tmp_path):
    classes = tuple(f"class {k}" for k in range(count))
    labels = np.array([[0, count], [1, 2]])
    save_label_png(Segmentation(labels, classes), tmp_path / "a.png")
    found = read_label_png(tmp_path / "a.png", classes)
    assert np.array_equal(found.labels, labels) and found.classes == classes
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == ("L" if count < 256 else "I;16")


def test_a_palette_is_read_by_its_numbers(tmp_path):
    image = Image.fromarray(NUMBERS)
    image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])  # as in Pascal VOC
    image.save(tmp_path / "a.png")
    assert np.array_equal(read_label_png(tmp_path / "a.png", ["x", "y"]).labels, NUMBERS)


def test_numbers_may_begin_at_0_and_some_be_void(tmp_path):
    Image.fromarray(np.array([[0, 1, 255]], np.uint8)).save(tmp_path / "a.png")
    found = read_label_png(tmp_path / "a.png", ["x", "y"], first=0, void=[255])
    assert found.labels.tolist() == [[1, 2, 0]]


def test_a_number_without_a_class_and_colours_are_refused(tmp_path):
    Image.fromarray(NUMBERS).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="labels: expected at most 1 for 1 classes, got 2 in"):
        read_label_png(tmp_path / "a.png", ["x"])
    Image.new("RGB", (2, 2)).save(tmp_path / "b.png")
    with pytest.raises(InputError, match="expected grey of 8 or 16 bits, got a picture of mode RGB"):
        read_label_png(tmp_path / "b.png", ["x"])
