"""The scores of an objective are checked, and its name is stable."""

import functools
import math

import pytest
import torch

from dit_heads.objectives import checked_scores, name_of
from tests.objectives.made import NAMED, NAMELESS, PROMPTS, Constant, brightness

MADE = brightness.__module__


def test_scores_are_checked_and_given_in_fp32(images):
    scores = checked_scores(lambda i, p: torch.tensor([1, 2, 3]), images, PROMPTS)
    assert scores.dtype == torch.float32 and scores.tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.zeros(3, 1), r"gave \(3, 1\), expected a tensor \(3,\)"),
        (torch.zeros(()), r"gave \(\), expected a tensor \(3,\)"),
        ([1.0, 2.0, 3.0], r"gave list, expected a tensor \(3,\)"),
        (torch.tensor([0, math.inf, math.nan]), "is not finite for 'a small blue sphere'"),
    ],
)
def test_anything_but_a_finite_number_a_picture_is_refused(images, given, message):
    with pytest.raises(ValueError, match=message):
        checked_scores(lambda i, p: given, images, PROMPTS)


def test_names_are_stable():
    assert name_of(brightness) == f"{MADE}:brightness"
    assert name_of(NAMED) == "two"


def nested():
    def inner(images, prompts):
        return brightness(images, prompts)

    return inner


@pytest.mark.parametrize(
    "nameless",
    [
        lambda i, p: brightness(i, p),
        nested(),
        NAMELESS,
        NAMELESS.__call__,
        Constant(1.0, ""),
        functools.partial(brightness),
    ],
)
def test_what_has_no_stable_name_is_refused(nameless):
    with pytest.raises(ValueError, match="expected a `name` attribute or a function of a module, got"):
        name_of(nameless)
