"""The one check of single numbers, and names in messages."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from dit_heads.errors import InputError, finite_number, listed, whole_number


@pytest.mark.parametrize("value", [1, 5, np.int64(3), np.uint8(5)])
def test_whole_numbers_in_range_pass_as_plain_ones(value: Any):
    found = whole_number("steps", value, 1, 5)
    assert type(found) is int and found == value


@pytest.mark.parametrize("value", [0, 6, True, 2.0, "3", None, np.float32(2), float("nan")])
def test_anything_else_is_no_whole_number(value: object):
    with pytest.raises(InputError) as error:
        whole_number("steps", value, 1, 5)
    assert str(error.value) == f"steps: expected a whole number from 1 to 5, got {value!r}"


def test_large_bounds_are_told_in_full():
    with pytest.raises(InputError, match=r"seed: expected a whole number from 0 to 4294967295, got -1$"):
        whole_number("seed", -1, 0, 2**32 - 1)
    with pytest.raises(InputError, match=r"rows: expected a whole number of at least 1, got 0$"):
        whole_number("rows", 0, 1)


@pytest.mark.parametrize("value", [0, 1, 0.25, np.float32(0.5), Fraction(1, 2)])
def test_finite_numbers_in_range_pass_as_plain_ones(value: Any):
    found = finite_number("softness", value, 0, 1)
    assert type(found) is float and found == value


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), float("inf"), True, "0.5", None, 1j, [0.5]])
def test_anything_else_is_no_finite_number(value: object):
    with pytest.raises(InputError) as error:
        finite_number("softness", value, 0, 1)
    assert str(error.value) == f"softness: expected a number from 0 to 1, got {value!r}"


def test_a_number_without_a_range_may_be_any_finite_one():
    assert finite_number("scale", -1e30) == -1e30
    with pytest.raises(InputError, match=r"scale: expected a finite number, got inf$"):
        finite_number("scale", float("inf"))


def test_long_lists_of_names_are_cut_and_counted():
    assert listed(["a", "b"]) == "a, b"
    assert listed([*"abcdefgh"], 3) == "a, b, c and 5 more"
