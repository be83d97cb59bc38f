import sys

import pytest
from PIL import Image

from dit_heads import HeadId
from dit_heads.hunt.plots import draw_curve, draw_head_map

GAINS = {HeadId(b, h): 0.01 * (b - h) for b in range(3) for h in range(4)}


def colours(path) -> set:
    with Image.open(path) as image:
        return set(image.convert("RGB").get_flattened_data())


@pytest.mark.parametrize("gains", [GAINS, GAINS | {HeadId(1, 2, True): 0.5}], ids=["joint", "image-only too"])
def test_a_head_map_is_a_picture_of_gains_and_losses(tmp_path, gains):
    draw_head_map(gains, tmp_path / "map.png", chosen=[HeadId(2, 0)], title="gain")
    reds = [c for c in colours(tmp_path / "map.png") if c[0] > c[2] + 80]
    blues = [c for c in colours(tmp_path / "map.png") if c[2] > c[0] + 80]
    assert reds and (blues or len(gains) > 12)  # beside 0.5 a loss of 0.03 is pale
    assert [p.name for p in tmp_path.iterdir()] == ["map.png"]


def test_scores_that_are_all_alike_can_be_drawn(tmp_path):
    draw_head_map(dict.fromkeys(GAINS, 0.0), tmp_path / "map.png")
    assert len(colours(tmp_path / "map.png")) > 3


def test_a_curve_with_its_intervals(tmp_path):
    draw_curve([0.1, 0.3, 0.2], tmp_path / "curve.png", intervals=[(0, 0.2), (0.2, 0.4), (0.1, 0.3)])
    assert len(colours(tmp_path / "curve.png")) > 3


def test_without_matplotlib_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match=r"pip install 'dit-heads\[search\]'"):
        draw_curve([0.1, 0.2], tmp_path / "curve.png")
    assert not list(tmp_path.iterdir())
