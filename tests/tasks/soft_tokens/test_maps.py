import math

import numpy as np
import pytest
import torch

from dit_heads.errors import InputError
from dit_heads.tasks.annotations import Depth
from dit_heads.tasks.soft_tokens.maps import (
    DISTANCE,
    SKY,
    UNKNOWN,
    DepthRange,
    cropped,
    depth_input,
    depth_tensors,
    pasted,
    with_gaps,
    with_patches_hidden,
)

SPAN = DepthRange()


def test_metres_come_back_and_what_is_beyond_the_range_is_its_end():
    metres = torch.tensor([[[2.0, 7.5, 60.0, 0.5, 99.0]]])
    assert torch.allclose(SPAN.values(metres)[0, 0, ::2], torch.tensor([-1.0, 1.0, 1.0]))
    assert torch.allclose(
        SPAN.metres(SPAN.values(metres)), torch.tensor([[[2.0, 7.5, 60.0, 2.0, 60.0]]]), rtol=1e-5
    )
    assert torch.allclose(SPAN.log_metres(SPAN.values(metres))[0, 0, 1], torch.tensor(math.log(7.5)))


def test_a_depth_map_becomes_values_and_what_is_known():
    metres, known = depth_tensors([Depth.from_metres([[4.0, np.inf], [np.nan, 9.0]])], SPAN)
    assert known[0].tolist() == [[DISTANCE, SKY], [UNKNOWN, DISTANCE]]
    given = depth_input(metres, known, SPAN)[0]
    assert given[1:].tolist() == [[[1, 0], [0, 1]], [[0, 1], [0, 0]]]
    assert given[0, 0, 1] == given[0, 1, 0] == 0 and given[0, 1, 1] > given[0, 0, 0]


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        ([np.full((2, 2), np.nan)], "a pixel or more that is known, got none"),
        ([np.full((2, 2), 61.0)], "expected 2 to 60 m, got 61 to 61"),
        ([np.full((2, 2), 1.0)], "expected 2 to 60 m, got 1 to 1"),
        ([np.full((2, 2), 4.0), np.full((2, 3), 4.0)], "maps of one size"),
    ],
)
def test_maps_that_cannot_be_read_are_refused(maps: list[np.ndarray], message: str):
    with pytest.raises(InputError, match=message):
        depth_tensors([Depth.from_metres(each) for each in maps], SPAN)


def test_relative_depth_and_an_empty_range_are_refused():
    relative = Depth(np.full((2, 2), 0.5), np.ones((2, 2), bool), metric=False)
    with pytest.raises(InputError, match="expected metres, got relative depth"):
        depth_tensors([relative], SPAN)
    with pytest.raises(InputError, match="0 < near < far"):
        DepthRange(5, 5)


def test_mask_augmentation_hides_whole_patches_and_at_most_half():
    hidden = with_patches_hidden(torch.ones(64, 2, 32, 32), torch.Generator().manual_seed(0), patch=8)
    patches = hidden.unfold(2, 8, 8).unfold(3, 8, 8).flatten(4)
    assert torch.equal(patches.amin(-1), patches.amax(-1)) and torch.equal(hidden[:, 0], hidden[:, 1])
    gone = (patches[:, 0, ..., 0] == 0).flatten(1).sum(1)
    assert gone.min() == 0 and gone.max() == 8  # of 16


def test_gaps_have_the_share_that_is_asked_for():
    known = torch.ones(6, 40, 40, dtype=torch.long)
    found = with_gaps(known, 0.3, torch.Generator().manual_seed(0))
    assert ((found == UNKNOWN).float().mean((1, 2)) - 0.3).abs().max() < 0.01
    assert torch.equal(with_gaps(known, 0, torch.Generator()), known)
    with pytest.raises(InputError, match="share: expected 0 <= share < 1"):
        with_gaps(known, 1.0, torch.Generator())


def test_a_crop_holds_the_box_and_comes_back_to_its_place():
    mask = torch.zeros(1, 64, 64)
    mask[0, 16:40, 8:40] = 1
    mask[0, 16:28, 8:24] = 0  # a corner is missing
    box = torch.tensor([[8, 16, 40, 40]]) / 64
    crop = cropped(mask, box, 32)
    assert crop[0, :15, :15].max() == 0 and crop[0, 18:, 18:].min() > 0.8
    assert torch.equal(pasted(crop, box, (64, 64)) > 0.5, mask > 0.5)


def test_half_of_a_cropped_ellipse_is_where_it_was():
    x, y = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="xy")
    mask = (((x - 30) / 17) ** 2 + ((y - 22) / 9) ** 2 < 1).float()[None]
    box = torch.tensor([[13, 13, 48, 32]]) / 64
    back = pasted(cropped(mask, box, 64), box, (64, 64)) > 0.5
    assert ((back & (mask > 0.5)).sum() / (back | (mask > 0.5)).sum()) > 0.97
