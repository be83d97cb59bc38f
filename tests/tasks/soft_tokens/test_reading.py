import math
from typing import Any

import numpy as np
import pytest
import torch

from dit_heads.tasks.soft_tokens.maps import DepthRange
from dit_heads.tasks.soft_tokens.reading import (
    HARD,
    SoftReader,
    _ordered,
    depth_maps,
    pasted_instances,
)
from dit_heads.tasks.soft_tokens.sequences import Vocabulary
from dit_heads.tasks.soft_tokens.solver import Solver, SolverConfig
from dit_heads.tasks.soft_tokens.tokenizer import Tokenizer, TokenizerConfig

WORDS = Vocabulary(
    classes=("cube", "cone"), depth_tokens=16, mask_tokens=4, depth_codes=12, mask_codes=10, bins=33
)
FEATURES = torch.randn(3, 16, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=["parallel", "autoregressive"])
def reader(request: Any) -> SoftReader:
    torch.manual_seed(0)
    shapes = (
        TokenizerConfig("depth", 32, 2, (8, 8, 16), 12, 6),
        TokenizerConfig("mask", 16, 2, (8, 8, 16), 10, 6),
    )
    tokenizers = [Tokenizer(shape).eval() for shape in shapes]
    for each in tokenizers:
        each.codebook.embedding.data.normal_()
    config = SolverConfig(
        vocabulary=WORDS, channels=6, kept=6, order=request.param, width=16, heads=2, decoder_layers=1
    )
    solver = Solver(config).eval()
    for parameter in solver.outputs.parameters():
        torch.nn.init.normal_(parameter, std=1.0)
    return SoftReader(solver, *tokenizers)


def test_soft_depth_with_a_large_tau_is_that_of_the_likeliest_tokens(reader: SoftReader):
    hard = reader.read_depth(FEATURES, HARD)
    numbers = reader.solver.write(FEATURES, "depth", HARD).numbers
    by_hand = reader.depth.decode_tokens(numbers)
    assert torch.allclose(hard.values, by_hand[:, 0], atol=1e-5)
    almost = reader.read_depth(FEATURES, 1e7, feedback=HARD)
    assert torch.allclose(almost.values, hard.values, atol=1e-3)
    assert not torch.allclose(reader.read_depth(FEATURES, 0.8).values, hard.values, atol=1e-3)


def test_doubts_are_the_entropies_of_the_tokens(reader: SoftReader):
    read = reader.read_depth(FEATURES)
    p = read.probability.double()
    expected = -(p * p.log()).sum(-1) / math.log(12)
    assert torch.allclose(read.entropy.flatten(1).double(), expected, atol=1e-5)
    assert torch.allclose(p.sum(-1), torch.ones(3, 16, dtype=torch.float64), atol=1e-5)


def test_two_readings_are_joined_in_the_mean_and_mirrored(reader: SoftReader):
    a, b = reader.read_depth(FEATURES), reader.read_depth(FEATURES.flip(0))
    joined = a.joined(b.flipped())
    assert torch.allclose(joined.values, (a.values + b.values.flip(-1)) / 2)
    assert torch.equal(a.flipped().flipped().values, a.values)


def test_objects_have_boxes_classes_and_masks_within_them(reader: SoftReader):
    found = reader.read_objects(FEATURES)
    assert len(found) == 3 and sum(len(each.classes) for each in found) > 2
    for each in found:
        instances = each.instances((32, 48))
        assert set(each.classes) <= {"cube", "cone"} and ((each.scores >= 0) & (each.scores <= 1)).all()
        assert each.doubt((32, 48)).shape == (32, 48) and len(instances) <= len(each.classes)
        for k, mask in enumerate(instances.masks):
            if len(instances) == len(each.classes):
                x0, y0, _, y1 = (each.boxes[k] * torch.tensor([48, 32, 48, 32])).tolist()
                rows, columns = np.nonzero(mask)
                assert rows.min() >= y0 - 0.5 and rows.max() <= y1 and columns.min() >= x0 - 0.5


def test_corners_in_the_wrong_order_are_put_right():
    boxes = torch.tensor([[[0.8, 0.9, 0.2, 0.1], [0.5, 0.5, 0.5, 0.5], [1.0, 1.0, 1.0, 1.0]]])
    found = _ordered(boxes, 33)
    assert torch.allclose(found[0, 0], torch.tensor([0.2, 0.1, 0.8, 0.9]))
    assert (found[..., 2:] > found[..., :2]).all() and found.max() <= 1


def test_maps_in_metres_have_sky_where_it_is_likely():
    (found,) = depth_maps(torch.tensor([[[-1.0, 1.0]]]), torch.tensor([[[0.1, 0.9]]]), DepthRange())
    assert found.metres[0, 0] == pytest.approx(2) and found.sky.tolist() == [[False, True]]


def test_masks_without_a_pixel_are_left_out():
    masks = torch.stack([torch.ones(4, 4), torch.zeros(4, 4)])
    boxes = torch.tensor([[0.0, 0.0, 0.5, 1.0], [0.0, 0.0, 1.0, 1.0]])
    found, kept = pasted_instances(masks, boxes, ("cube", "cone"), torch.tensor([0.9, 0.8]), (8, 8))
    assert kept == [0]
    assert found.classes == ("cube",) and found.masks[0, :, :4].all() and not found.masks[0, :, 4:].any()
