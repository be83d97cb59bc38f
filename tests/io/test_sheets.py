import pytest
from PIL import Image, ImageFont

from dit_heads.io.sheets import Column, contact_sheet, flowing_rows, plain_grid, wrapped

COLOURS = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0), (0, 250, 250)]


def plain(colour, size=(16, 16)):
    return Image.new("RGB", size, colour)


def colours_of(image: Image.Image) -> set:
    return {colour for _, colour in image.getcolors(image.width * image.height) or []}


@pytest.mark.parametrize(("number", "across", "down"), [(1, 1, 1), (2, 2, 1), (4, 2, 2), (5, 3, 2)])
def test_a_grid_is_nearly_square_and_holds_every_picture(number, across, down):
    sheet = plain_grid([plain(colour) for colour in COLOURS[:number]], gap=0)
    assert sheet.size == (16 * across, 16 * down)
    assert set(COLOURS[:number]) <= colours_of(sheet)


def test_a_grid_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        plain_grid([])
    with pytest.raises(ValueError, match="at least one"):
        flowing_rows([], width=8)


def test_rows_end_where_there_is_no_room_or_another_size():
    images = [plain(COLOURS[k], (20, 10)) for k in range(3)] + [plain(COLOURS[3], (10, 30))]
    sheet = flowing_rows(images, width=44, gap=4)
    assert sheet.size == (44, 10 + 4 + 10 + 4 + 30)
    starts = [(0, 0), (24, 0), (0, 14), (0, 28)]
    assert [sheet.getpixel(start) for start in starts] == COLOURS[:4]
    counts = {colour: count for count, colour in sheet.getcolors() or []}
    assert [counts[colour] for colour in COLOURS[:4]] == [200, 200, 200, 300]


def test_a_sheet_shows_every_cell_at_the_size_asked_for():
    cells = [[plain(COLOURS[0]), plain(COLOURS[1])], [plain(COLOURS[2]), plain(COLOURS[3])]]
    sheet = contact_sheet(
        cells, [Column("one"), Column("two", "L1\nscale 2")], ["a", "b"], title="t", cell=40
    )
    counts = {colour: count for count, colour in sheet.getcolors(sheet.width * sheet.height) or []}
    assert [counts[colour] for colour in COLOURS[:4]] == [1600] * 4


def test_a_long_heading_makes_the_sheet_taller_and_covers_no_picture():
    cells = [[plain(COLOURS[0])]]
    short = contact_sheet(cells, [Column("a")], ["r"], title="t", cell=60)
    long = contact_sheet(cells, [Column("a", "many words " * 20)], ["r"], title="t", cell=60)
    assert long.height > short.height
    assert (
        sum(n for n, colour in long.getcolors(long.width * long.height) or [] if colour == COLOURS[0]) == 3600
    )


def test_a_sheet_with_a_label_too_few_is_refused():
    with pytest.raises(ValueError, match="1 rows of 2"):
        contact_sheet([[plain(COLOURS[0])]], [Column("a"), Column("b")], ["r"], title="t")


def test_wrapped_lines_fit_and_keep_every_word():
    font = ImageFont.load_default(15)
    text = "a blue sphere to the left of a small green striped cone\non snow"
    lines = wrapped(text, font, 120)
    assert " ".join(lines).split() == text.split()
    assert all(font.getlength(line) <= 120 for line in lines)
    assert lines[-1] == "on snow"
