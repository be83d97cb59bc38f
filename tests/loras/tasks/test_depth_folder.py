"""Folders of depth maps, in the layouts of NYUv2 and KITTI."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dit_heads.errors import InputError
from dit_heads.loras.tasks.depth_folder import DepthFolder
from dit_heads.tasks.query import Query

LEVELS = np.array([[0, 1000, 2500], [65535, 1, 256]], np.uint16)


def layout(root: Path, pictures: str, maps: str, picture: str, depth: str) -> Path:
    (root / pictures).mkdir(parents=True)
    (root / maps).mkdir()
    Image.new("RGB", (3, 2)).save(root / pictures / picture)
    Image.fromarray(LEVELS).save(root / maps / depth)
    return root


@pytest.mark.parametrize(
    ("names", "scale"),
    [
        (("rgb", "depth", "0.jpg", "0.png"), 1000),
        (("image", "groundtruth_depth", "a_image_05.png", "a_groundtruth_depth_05.png"), 256),
    ],
    ids=["NYUv2", "KITTI"],
)
def test_levels_are_metres_and_zero_is_unknown(tmp_path, names, scale):
    pairs = DepthFolder(layout(tmp_path, *names), scale)
    assert len(pairs) == 1 and pairs.picture(0).size == (3, 2)
    found = pairs.answer(0, Query("depth"))
    assert found.valid.tolist() == [[False, True, True], [True, True, True]]
    assert np.allclose(found.metres[found.valid], LEVELS[LEVELS > 0] / scale)


def test_a_picture_or_a_map_alone_and_other_sizes_are_refused(tmp_path):
    root = layout(tmp_path, "rgb", "depth", "0.jpg", "0.png")
    Image.new("RGB", (4, 2)).save(root / "rgb/0.jpg")
    with pytest.raises(InputError, match=r"depth: expected the size \(2, 4\) of .*, got \(2, 3\) in"):
        DepthFolder(root, 256).answer(0, Query("depth"))
    Image.new("RGB", (3, 2)).save(root / "rgb/1.jpg")
    with pytest.raises(InputError, match="expected a picture and a map of each name, got one of 1"):
        DepthFolder(root, 256)
    with pytest.raises(InputError, match="expected one folder named rgb, image, images"):
        DepthFolder(root / "rgb", 256)


def test_colours_are_no_depth(tmp_path):
    root = layout(tmp_path, "rgb", "depth", "0.jpg", "0.png")
    Image.new("RGB", (3, 2)).save(root / "depth/0.png")
    with pytest.raises(InputError, match="expected grey of 8 or 16 bits, got a picture of mode RGB"):
        DepthFolder(root, 256).answer(0, Query("depth"))
