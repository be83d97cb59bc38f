"""Markers that name the panels of a composite in its caption (In-Context LoRA, arXiv 2410.23775)."""

from dit_heads.errors import InputError

PLACES: dict[tuple[int, int], tuple[str, ...]] = {
    (1, 2): ("[LEFT]", "[RIGHT]"),
    (1, 3): ("[LEFT]", "[MIDDLE]", "[RIGHT]"),
    (2, 1): ("[TOP]", "[BOTTOM]"),
    (3, 1): ("[TOP]", "[MIDDLE]", "[BOTTOM]"),
    (2, 2): ("[TOP-LEFT]", "[TOP-RIGHT]", "[BOTTOM-LEFT]", "[BOTTOM-RIGHT]"),
}
"""(rows, columns) -> the names of places, row by row. Any grid may count its panels instead."""
STYLES = ("places", "scenes", "images")
PATTERN = (
    rf"\[(?:{'|'.join(sorted({m[1:-1] for family in PLACES.values() for m in family}))}"
    r"|SCENE-[0-9]+|IMAGE[0-9]+)\]"
)
"""A regular expression of every marker."""


def markers(rows: int, columns: int, style: str = "places") -> tuple[str, ...]:
    """One marker a panel, row by row.

    Args:
        style: "places" ([LEFT] [RIGHT] ...), "scenes" ([SCENE-1] ...) or "images" ([IMAGE1] ...).

    Raises:
        InputError: for another style, and for a grid whose places have no names.
    """
    if style not in STYLES:
        raise InputError(f"style: expected {', '.join(STYLES)}, got {style!r}")
    if style != "places":
        return counted(rows * columns, style)
    if (rows, columns) not in PLACES:
        grids = ", ".join(f"{r} x {c}" for r, c in PLACES)
        raise InputError(
            f"style: places have names in grids of {grids} (rows x columns), got {rows} x {columns}; "
            "choose scenes or images"
        )
    return PLACES[rows, columns]


def families(rows: int, columns: int) -> list[tuple[str, ...]]:
    """Every way to mark the panels of a grid."""
    places = [PLACES[rows, columns]] if (rows, columns) in PLACES else []
    return [*(counted(rows * columns, style) for style in STYLES[1:]), *places]


def counted(count: int, style: str) -> tuple[str, ...]:
    form = "[SCENE-{}]" if style == "scenes" else "[IMAGE{}]"
    return tuple(form.format(k) for k in range(1, count + 1))
