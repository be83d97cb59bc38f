"""Sheets of pictures side by side: plain grids, and contact sheets with labelled rows and columns."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont
from PIL.ImageFont import FreeTypeFont
from PIL.ImageFont import ImageFont as BitmapFont

from dit_heads.errors import InputError

Font = FreeTypeFont | BitmapFont

PAPER, INK, GREY, RULE = (252, 252, 250), (28, 30, 34), (108, 112, 118), (222, 222, 218)
MARGIN, GAP, LABEL_WIDTH = 28, 10, 190
TITLE, NAME, DETAIL = 26, 19, 15


def plain_grid(images: Sequence[Image.Image], gap: int = 4) -> Image.Image:
    """Images in rows, as nearly square as their number allows.

    Args:
        images: pictures of one size.
        gap: pixels between neighbours.

    Raises:
        InputError: for no images.
    """
    if not images:
        raise InputError("images: expected at least one")
    across = math.ceil(math.sqrt(len(images)))
    down = math.ceil(len(images) / across)
    width, height = images[0].size
    sheet = Image.new("RGB", (across * (width + gap) - gap, down * (height + gap) - gap), PAPER)
    for index, image in enumerate(images):
        row, column = divmod(index, across)
        sheet.paste(image, (column * (width + gap), row * (height + gap)))
    return sheet


def flowing_rows(images: Sequence[Image.Image], width: int, gap: int = 8) -> Image.Image:
    """Images of several sizes in rows: a row ends where the next image has another size or no room.

    Args:
        images: the pictures, in reading order.
        width: width of the sheet, in pixels; a wider picture has a row of its own.
        gap: pixels between neighbours.

    Raises:
        InputError: for no images.
    """
    if not images:
        raise InputError("images: expected at least one")
    rows: list[list[Image.Image]] = []
    for image in images:
        used = sum(each.width + gap for each in rows[-1]) if rows else 0
        if not rows or image.size != rows[-1][0].size or used + image.width > width:
            rows.append([])
        rows[-1].append(image)
    sheet = Image.new("RGB", (width, sum(row[0].height + gap for row in rows) - gap), PAPER)
    top = 0
    for row in rows:
        for index, image in enumerate(row):
            sheet.paste(image, (index * (image.width + gap), top))
        top += row[0].height + gap
    return sheet


@dataclass(frozen=True)
class Column:
    """The heading of a column.

    Attributes:
        name: the first line or lines.
        detail: smaller lines below the name, in grey.
    """

    name: str
    detail: str = ""


def contact_sheet(
    cells: Sequence[Sequence[Image.Image]],
    columns: Sequence[Column],
    rows: Sequence[str],
    *,
    title: str,
    footer: str = "",
    cell: int = 224,
) -> Image.Image:
    """Pictures in a table with labelled rows and columns.

    Args:
        cells: the pictures, as `cells[row][column]`.
        columns: headings of the columns.
        rows: labels of the rows.
        title: line above the table.
        footer: text below the table.
        cell: width of each picture, in pixels; pictures are scaled to it.

    Raises:
        InputError: if the numbers of labels and pictures differ.
    """
    if len(cells) != len(rows) or any(len(line) != len(columns) for line in cells):
        raise InputError(f"cells: expected {len(rows)} rows of {len(columns)} pictures")
    pictures = [[_scaled(image, cell) for image in line] for line in cells]
    page_width = 2 * MARGIN + LABEL_WIDTH + len(columns) * (cell + GAP)
    head = _heading_height(columns, cell)
    top = MARGIN + TITLE + 2 * GAP + head
    heights = [max(image.height for image in line) for line in pictures]
    foot = wrapped(footer, _font(DETAIL), page_width - 2 * MARGIN) if footer else []
    body = sum(heights) + GAP * len(heights)
    page = Image.new("RGB", (page_width, top + body + len(foot) * _line(DETAIL) + MARGIN), PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((MARGIN, MARGIN - 6), title, INK, _font(TITLE))
    _draw_headings(draw, columns, cell, MARGIN + TITLE + 2 * GAP)
    _draw_rows(page, draw, pictures, rows, top)
    _draw_lines(draw, foot, MARGIN, top + body + GAP, GREY, DETAIL)
    return page


def wrapped(text: str, font: Font, width: float) -> list[str]:
    """Text broken into lines.

    Args:
        text: paragraphs, separated by line breaks.
        font: the font that the lines are measured in.
        width: largest width of a line, in pixels. A single word that is longer stays whole.
    """
    return [line for paragraph in text.splitlines() for line in _wrapped_paragraph(paragraph, font, width)]


def _wrapped_paragraph(text: str, font: Font, width: float) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _draw_headings(draw: ImageDraw.ImageDraw, columns: Sequence[Column], cell: int, top: int) -> None:
    for index, column in enumerate(columns):
        left = MARGIN + LABEL_WIDTH + index * (cell + GAP)
        bottom = _draw_lines(draw, wrapped(column.name, _font(NAME), cell), left, top, INK, NAME)
        _draw_lines(draw, wrapped(column.detail, _font(DETAIL), cell), left, bottom, GREY, DETAIL)


def _draw_rows(
    page: Image.Image,
    draw: ImageDraw.ImageDraw,
    pictures: Sequence[Sequence[Image.Image]],
    rows: Sequence[str],
    top: int,
) -> None:
    for line, label in zip(pictures, rows, strict=True):
        height = max(image.height for image in line)
        draw.line((MARGIN, top - GAP // 2, page.width - MARGIN, top - GAP // 2), RULE)
        lines = wrapped(label, _font(DETAIL), LABEL_WIDTH - 2 * GAP)
        _draw_lines(draw, lines, MARGIN, top + (height - len(lines) * _line(DETAIL)) // 2, INK, DETAIL)
        for index, image in enumerate(line):
            page.paste(image, (MARGIN + LABEL_WIDTH + index * (image.width + GAP), top))
        top += height + GAP


def _draw_lines(
    draw: ImageDraw.ImageDraw,
    lines: Sequence[str],
    left: int,
    top: int,
    colour: tuple[int, int, int],
    size: int,
) -> int:
    """Draw lines of text and return where the next one would start."""
    for line in lines:
        draw.text((left, top), line, colour, _font(size))
        top += _line(size)
    return top


def _heading_height(columns: Sequence[Column], cell: int) -> int:
    def height(column: Column) -> int:
        names = len(wrapped(column.name, _font(NAME), cell))
        details = len(wrapped(column.detail, _font(DETAIL), cell))
        return names * _line(NAME) + details * _line(DETAIL)

    return max(height(column) for column in columns) + GAP


def _scaled(image: Image.Image, width: int) -> Image.Image:
    return image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)


def _font(size: int) -> Font:
    # Pillow carries this font itself, so a sheet looks the same on every machine.
    return ImageFont.load_default(size)


def _line(size: int) -> int:
    return round(size * 1.3)
