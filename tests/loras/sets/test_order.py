"""The order of panels: numbers say it, or the caption does; letters never do silently."""

from pathlib import Path

import pytest

from dit_heads.errors import InputError
from dit_heads.loras.sets.order import in_order, natural

SKY = "One hill. [LEFT] by day [MIDDLE] at sunset [RIGHT] by night"


def ordered(names: list[str], caption: str = "") -> list[str]:
    return [path.name for path in in_order(sorted(map(Path, names), key=natural), caption)]


@pytest.mark.parametrize(
    "names",
    [
        ["1.png", "2.png", "10.png"],
        ["a.png", "B.png", "c.PNG"],
        ["view_a.jpg", "view_b.jpg"],
        ["IMG_0007.jpg", "IMG_0012.jpg"],
        ["1-day.jpg", "2-night.jpg", "10-dawn.jpg"],
        ["1.jpg", "2.png"],
    ],
)
def test_numbers_and_single_letters_say_the_order_whatever_their_case(names):
    assert ordered(names[::-1]) == names


@pytest.mark.parametrize("prefix", ["", "hill_", "Hill "])
def test_words_are_ordered_by_the_markers_that_they_stand_behind(prefix):
    names = [f"{prefix}{word}.jpg" for word in ("night", "sunset", "day")]
    assert ordered(names, SKY) == names[::-1]


@pytest.mark.parametrize(
    ("names", "caption"),
    [
        (["before.jpg", "after.jpg"], "A room."),
        (["day.jpg", "night.jpg"], "[LEFT] a day [RIGHT] a night after a day"),
        (["dog1.jpg", "cat2.jpg"], "[LEFT] a mouse [RIGHT] a bird"),
        (["1-a day.jpg", "1-night.jpg"], "Two."),
    ],
)
def test_words_that_the_caption_does_not_place_are_refused(names, caption):
    with pytest.raises(InputError, match=r"the names .* do not say the order .* number them"):
        ordered(names, caption)
