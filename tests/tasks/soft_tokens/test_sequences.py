import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch.nn.functional import one_hot

from dit_heads.errors import InputError
from dit_heads.tasks.annotations import Instances
from dit_heads.tasks.soft_tokens.sequences import (
    Vocabulary,
    box_tokens,
    object_tokens,
    objects_of,
    soft_boxes,
    split_objects,
)

WORDS = Vocabulary(classes=("cube", "cone"), mask_tokens=2, objects=3, bins=65)


def instances(*places: tuple[int, int, int, int], names: tuple[str, ...]) -> Instances:
    masks = np.zeros((len(places), 64, 64), bool)
    for mask, (x0, y0, x1, y1) in zip(masks, places, strict=True):
        mask[y0:y1, x0:x1] = True
    return Instances(masks, names)


def test_objects_stand_from_left_to_right_and_empty_places_are_none():
    found = objects_of(
        [instances((32, 8, 64, 16), (4, 0, 20, 64), names=("cone", "cube")), instances(names=())], WORDS
    )
    assert found.classes.tolist() == [[0, 1, 2], [2, 2, 2]]
    assert found.there.tolist() == [[True, True, False], [False] * 3]
    assert found.order[0].tolist() == [1, 0, 0]
    assert torch.equal(found.boxes[0, 0], torch.tensor([4, 0, 20, 64]) / 64)


def test_a_sequence_has_box_class_and_mask_of_each_object_in_turn():
    objects = objects_of([instances((4, 0, 20, 64), names=("cone",))], WORDS)
    masks = torch.tensor([[[7, 9], [5, 5], [5, 5]]])
    tokens = object_tokens(objects, masks, WORDS)
    assert tokens[0].tolist() == [4, 0, 20, 64, 1, 7, 9] + [0, 0, 0, 0, 2, 0, 0] * 2
    assert WORDS.kinds("instances") == ("box",) * 4 + ("class", "mask", "mask") + WORDS.kinds("instances")[7:]
    split = split_objects(tokens, WORDS)
    assert torch.equal(soft_boxes(one_hot(split.box, 65).float())[0, 0], objects.boxes[0, 0])
    assert split.name.tolist() == [[1, 2, 2]] and split.mask[0, 0].tolist() == [7, 9]


def test_coordinates_come_back_to_half_a_step():
    boxes = torch.rand(50, 4, generator=torch.Generator().manual_seed(0))
    found = soft_boxes(one_hot(box_tokens(boxes, 128), 128).float())
    assert (found - boxes).abs().max() <= 0.5 / 127 + 1e-6


@given(arrays(np.float32, (3, 4, 9), elements=st.floats(-6, 6, width=32)))
def test_a_soft_coordinate_is_the_median_of_its_steps(logits):
    p = torch.softmax(torch.from_numpy(logits), -1)
    borders = np.concatenate([np.zeros((3, 4, 1)), p.double().cumsum(-1).numpy()], -1)
    places = (np.arange(10) - 0.5) / 8
    right = [[np.interp(0.5, row / row[-1], places) for row in box] for box in borders]
    assert np.abs(soft_boxes(p).numpy() - np.clip(right, 0, 1)).max() < 1e-3


def test_a_soft_coordinate_stays_with_the_likelier_of_two_borders():
    p = torch.zeros(1, 4, 11)
    p[..., 2], p[..., 9] = 0.6, 0.4
    assert soft_boxes(p)[0, 0] == pytest.approx((2 + 0.5 / 0.6 - 0.5) / 10)


def test_unknown_classes_and_too_many_objects_are_refused():
    with pytest.raises(InputError, match="class: expected one of cube, cone, got 'dog'"):
        objects_of([instances((0, 0, 4, 4), names=("dog",))], WORDS)
    with pytest.raises(InputError, match=r"expected 3 objects at most, got 4 \(picture 0\)"):
        objects_of([instances(*[(0, 0, 4, 4)] * 4, names=("cube",) * 4)], WORDS)
    with pytest.raises(InputError, match="classes: expected names, each once"):
        Vocabulary(classes=("cube", "cube"))
