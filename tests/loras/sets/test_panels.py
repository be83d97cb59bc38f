"""Panels: boxes worked out by hand, splitting that undoes joining, fitting, and weights of the loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.testing import assert_close

from dit_heads.io.pictures import to_rgb
from dit_heads.loras.sets.grid import Box, Grid, loss_weight
from dit_heads.loras.sets.panels import cut, fit_panel, join, split
from dit_heads.training.flow import flow_matching_loss

SIDES = st.integers(1, 4).map(lambda k: 16 * k)
LAYOUTS = st.builds(
    lambda heights, widths: Grid(tuple(heights), tuple(widths)),
    st.lists(SIDES, min_size=1, max_size=3),
    st.lists(SIDES, min_size=1, max_size=3),
)
UNITS = {"pixels": 1, "latents": 8, "tokens": 16}


def noise(height: int, width: int, seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8))


def plain(height: int, width: int, colour: tuple[int, int, int]) -> Image.Image:
    return Image.new("RGB", (width, height), colour)


# --- boxes ---


def test_boxes_of_a_row_a_column_and_a_grid():
    assert Grid.row(2, height=32, width=48).boxes() == (Box(0, 0, 32, 48), Box(0, 48, 32, 48))
    assert Grid.column(2, height=32, width=48).boxes() == (Box(0, 0, 32, 48), Box(32, 0, 32, 48))
    grid = Grid.equal(2, 2, height=32, width=48)
    assert (grid.height, grid.width, len(grid)) == (64, 96, 4)
    assert grid.boxes("latents") == (Box(0, 0, 4, 6), Box(0, 6, 4, 6), Box(4, 0, 4, 6), Box(4, 6, 4, 6))
    assert grid.boxes("tokens")[3] == Box(2, 3, 2, 3)


def test_rows_and_columns_may_differ_in_size():
    grid = Grid(heights=(16, 32), widths=(48, 16))
    assert grid.boxes() == (Box(0, 0, 16, 48), Box(0, 48, 16, 16), Box(16, 0, 32, 48), Box(16, 48, 32, 16))


def test_token_indices_by_hand():
    grid = Grid(heights=(16, 32), widths=(32, 16))  # tokens: 0 1 2 / 3 4 5 / 6 7 8
    assert [grid.token_indices(p).tolist() for p in range(4)] == [[0, 1], [2], [3, 4, 6, 7], [5, 8]]


@given(grid=LAYOUTS)
def test_boxes_tile_the_composite_in_every_unit(grid):
    for unit, pixels in UNITS.items():
        covered = torch.zeros(grid.height // pixels, grid.width // pixels)
        for box in grid.boxes(unit):
            covered[box.rows, box.columns] += 1
        assert torch.equal(covered, torch.ones_like(covered))
    tokens = torch.cat([grid.token_indices(p) for p in range(len(grid))])
    assert sorted(tokens.tolist()) == list(range(grid.height * grid.width // 256))


@given(grid=LAYOUTS)
def test_token_indices_are_those_of_the_patches_that_a_panel_fills(grid):
    owner = torch.zeros(grid.height, grid.width)
    for p, box in enumerate(grid.boxes()):
        owner[box.rows, box.columns] = p
    patches = owner.unfold(0, 16, 16).unfold(1, 16, 16).flatten(0, 1)  # [tokens, 16, 16]
    for p in range(len(grid)):
        filled = (patches == p).flatten(1).all(1).nonzero().flatten()
        assert torch.equal(grid.token_indices(p), filled)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Grid.row(2, height=100, width=64),
            "heights: .* multiples of 16 .* got 100; .* 96 and 112",
        ),
        (lambda: Grid.row(2, height=64, width=8), "widths: expected multiples of 16 .* got 8$"),
        (lambda: Grid((), (16,)), "heights: expected at least one"),
        (lambda: Grid.equal(0, 2, height=16, width=16), "rows: expected a whole number .* got 0"),
        (lambda: Grid.row(2, height=16, width=16).boxes("inches"), "unit: .* got 'inches'"),  # pyright: ignore[reportArgumentType]
        (lambda: Grid.row(2, height=16, width=16).token_indices(2), "panel: expected 0 to 1, got 2"),
    ],
)
def test_a_wrong_layout_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# --- joining and splitting ---


@settings(max_examples=30)
@given(grid=LAYOUTS, fit=st.sampled_from(["crop", "pad"]))
def test_split_undoes_join_of_images(grid, fit):
    panels = [noise(box.height, box.width, seed) for seed, box in enumerate(grid.boxes())]
    composite = join(panels, grid, fit=fit)
    assert composite.size == (grid.width, grid.height)
    assert split(composite, grid) == panels


@settings(max_examples=30)
@given(grid=LAYOUTS, fit=st.sampled_from(["crop", "pad"]), kind=st.sampled_from([torch.uint8, torch.float32]))
def test_split_undoes_join_of_tensors(grid, fit, kind):
    sizes = [(2, 3, box.height, box.width) for box in grid.boxes()]
    panels = [torch.randint(256, size).to(kind) for size in sizes]
    composite = join(panels, grid, fit=fit)
    assert composite.shape == (2, 3, grid.height, grid.width) and composite.dtype == kind
    assert all(torch.equal(a, b) for a, b in zip(split(composite, grid), panels, strict=True))


def test_panels_stand_where_the_boxes_say():
    colours = [(10, 0, 0), (20, 0, 0), (30, 0, 0), (40, 0, 0)]
    grid = Grid.equal(2, 2, height=16, width=32)
    composite = join([plain(16, 32, colour) for colour in colours], grid)
    assert [composite.getpixel((box.left, box.top)) for box in grid.boxes()] == colours


def test_mixed_or_missing_panels_are_refused():
    grid = Grid.row(2, height=16, width=16)
    mixed: Any = [plain(16, 16, (0, 0, 0)), torch.zeros(3, 16, 16)]
    with pytest.raises(ValueError, match="panels: expected 2 for this grid, got 1"):
        join([plain(16, 16, (0, 0, 0))], grid)
    with pytest.raises(ValueError, match="expected PIL images or tensors, got a mix"):
        join(mixed, grid)
    with pytest.raises(ValueError, match=r"expected tensors \[..., C, h, w\], got the shape \(16, 16\)"):
        join([torch.zeros(16, 16)] * 2, grid)
    wide: list[Any] = [plain(16, 48, (0, 0, 0)), torch.zeros(3, 16, 48)]
    for composite in wide:
        with pytest.raises(ValueError, match="expected height 16 and width 32, got 16 and 48"):
            split(composite, grid)


@pytest.mark.parametrize(("width", "edges"), [(100, [0, 33, 67, 100]), (96, [0, 32, 64, 96])])
def test_a_ready_composite_is_cut_at_the_nearest_pixels(width, edges):
    image = noise(40, width, 0)
    pixels = np.asarray(image)
    for row in range(2):
        for column in range(3):
            part = np.asarray(cut(image, 2, 3)[3 * row + column])
            wanted = pixels[20 * row : 20 * row + 20, edges[column] : edges[column + 1]]
            assert np.array_equal(part, wanted)


# --- fitting ---


def striped(height: int, width: int, edge: int) -> Image.Image:
    """Black with red bars, `edge` wide, at the left and right ends."""
    image = plain(height, width, (0, 0, 0))
    for left in (0, width - edge):
        image.paste((255, 0, 0), (left, 0, left + edge, height))
    return image


@pytest.mark.parametrize("tensor", [False, True])
def test_crop_loses_both_ends_of_a_wide_picture(tensor):
    picture = _as(tensor, striped(32, 64, 16))  # the middle 32 columns are black
    fitted = fit_panel(picture, 32, 32)
    assert np.asarray(fitted).max() == 0 and _size(fitted) == (32, 32)


@pytest.mark.parametrize("tensor", [False, True])
def test_pad_shows_all_of_a_wide_picture_between_white_bars(tensor):
    fitted = fit_panel(_as(tensor, plain(32, 64, (0, 0, 200))), 32, 32, "pad")
    blue = _tensor(fitted)[0] == 0  # [32, 32]
    assert blue[8:24].all() and not blue[:8].any() and not blue[24:].any()
    assert (_tensor(fitted)[:, :8] == 255).all()


def test_white_of_a_floating_tensor_is_one():
    fitted = fit_panel(torch.zeros(3, 16, 32), 32, 32, "pad")
    assert torch.equal(fitted[:, 8:24], torch.zeros(3, 16, 32))
    assert torch.equal(fitted[:, :8], torch.ones(3, 8, 32))


@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    fit=st.sampled_from(["crop", "pad"]),
    tensor=st.booleans(),
)
def test_a_plain_picture_of_any_size_fits(height, width, fit, tensor):
    pixels = _tensor(fit_panel(_as(tensor, plain(height, width, (7, 7, 7))), 32, 48, fit))
    assert pixels.shape == (3, 32, 48)
    white = (pixels == 255).all(0)
    assert ((pixels == 7).all(0) | white).all()
    assert not (white[15, 23] if fit == "pad" else white.any())


def test_an_unknown_fit_is_refused():
    with pytest.raises(ValueError, match="fit: expected crop or pad, got 'squash'"):
        fit_panel(plain(16, 16, (0, 0, 0)), 16, 16, "squash")  # pyright: ignore[reportArgumentType]


def _as(tensor: bool, image: Image.Image) -> Any:
    return _tensor(image) if tensor else image


def _tensor(picture: Image.Image | torch.Tensor) -> torch.Tensor:
    if isinstance(picture, torch.Tensor):
        return picture
    return torch.tensor(np.asarray(picture)).permute(2, 0, 1)


def _size(picture: Image.Image | torch.Tensor) -> tuple[int, ...]:
    return tuple(_tensor(picture).shape[-2:])


# --- colours ---


@pytest.mark.parametrize(
    ("image", "rgb"),
    [
        (Image.new("L", (2, 2), 90), (90, 90, 90)),
        (Image.new("RGBA", (2, 2), (0, 0, 0, 0)), (255, 255, 255)),
        (Image.new("RGBA", (2, 2), (200, 0, 0, 255)), (200, 0, 0)),
        (Image.new("LA", (2, 2), (0, 51)), (204, 204, 204)),
        (Image.fromarray(np.full((2, 2), 100 * 257, np.uint16)), (100, 100, 100)),
        (Image.fromarray(np.full((2, 2), 65535, np.uint16)), (255, 255, 255)),
    ],
    ids=["grey", "transparent", "opaque", "grey with alpha", "16 bits", "16 bits, white"],
)
def test_every_image_becomes_rgb_on_white(image, rgb):
    assert to_rgb(image).getpixel((1, 1)) == rgb


# --- loss ---


def test_weights_by_hand():
    grid = Grid.row(2, height=16, width=16)
    assert loss_weight(grid, [1, 0]).tolist() == [[[2, 2, 0, 0]] * 2]
    assert loss_weight(grid, [3, 3]).tolist() == [[[1] * 4] * 2]
    unequal = Grid(heights=(16,), widths=(16, 48))  # mean of 2 / 4 of the area and 6 / 4: 1.25
    assert loss_weight(unequal, [2, 1])[0, 0].tolist() == pytest.approx([1.6] * 2 + [0.8] * 6)


def test_the_loss_with_one_panel_is_the_mean_error_inside_it():
    grid = Grid.equal(2, 2, height=16, width=32)
    generator = torch.Generator().manual_seed(0)
    latents, noise, guess = torch.randn(3, 1, 4, 4, 8, generator=generator)
    weight = loss_weight(grid, [0, 0, 1, 0])[None]
    loss = flow_matching_loss(lambda x, s: guess, latents, torch.tensor([0.5]), noise, weight)
    inside = (guess - (noise - latents))[:, :, 2:4, :4]
    assert_close(loss, inside.pow(2).mean())


@pytest.mark.parametrize("weights", [[0, 0], [1, -1], [1, float("nan")], [float("inf"), 1]])
def test_weights_that_mean_nothing_are_refused(weights):
    with pytest.raises(ValueError, match="weights: expected numbers from 0 up"):
        loss_weight(Grid.row(2, height=16, width=16), weights)


def test_a_weight_a_panel():
    with pytest.raises(ValueError, match="weights: expected 2, one a panel, got 3"):
        loss_weight(Grid.row(2, height=16, width=16), [1, 1, 1])
