"""The checker of shape annotations is on, sees wrong shapes, and leaves everything else alone."""

import ast
import re
import sys
from pathlib import Path

import pytest
import torch
from jaxtyping import Float, TypeCheckError
from torch import Tensor

from dit_heads.families.flux import pack
from dit_heads.loras.weights.low_rank import LowRank
from dit_heads.training.flow import flow_matching_loss
from tests.shapes import HOOKED, checked, shapes_unchecked
from tests.test_package import modules


def test_a_wrong_number_of_axes_is_seen():
    with pytest.raises(TypeCheckError, match="pack"):
        pack(torch.zeros(1, 16, 4))


def test_axes_of_one_name_have_one_length():
    with pytest.raises(TypeCheckError, match="flow_matching_loss"):
        flow_matching_loss(
            lambda x, sigmas: x, torch.zeros(2, 4, 8, 8), torch.rand(2), torch.zeros(2, 4, 8, 9)
        )


def test_a_result_of_another_shape_is_seen():
    @checked
    def transposed(x: Float[Tensor, "n m"]) -> Float[Tensor, "m n"]:
        return x

    assert transposed(torch.zeros(2, 2)).shape == (2, 2)
    with pytest.raises(TypeCheckError, match="return"):
        transposed(torch.zeros(2, 3))


def test_fields_of_a_dataclass_are_checked():
    assert LowRank(torch.zeros(2, 8), torch.zeros(4, 2)).rank == 2
    with pytest.raises(TypeCheckError, match="LowRank"):
        LowRank(torch.zeros(2, 8), torch.zeros(4, 3))


def test_every_function_with_a_shape_is_checked():
    """Of the modules that are loaded, those that this file imports among them."""
    loaded = [(name, path) for name, path in modules() if name in sys.modules]
    shaped = {f"{name}.{function}" for name, path in loaded for function in shaped_functions(path)}
    assert len(shaped) > 5
    assert shaped <= set(HOOKED)


def shaped_functions(path: Path) -> set[str]:
    """Top-level functions of a module whose signature has a jaxtyping annotation."""
    functions = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
    return {
        node.name for node in functions if re.search(r"(Float|Int|Bool)\[", ast.unparse(node).split(":\n")[0])
    }


def test_only_shapes_are_checked():
    @checked
    def twice(x: Float[Tensor, "n m"], times: int) -> str:
        return f"{times} {len(x)}"

    assert twice(torch.zeros(3, 1), "four") == "four 3"
    assert twice.__annotations__["times"] is int
    with pytest.raises(TypeCheckError):
        twice(torch.zeros(3), 1)


def test_a_function_without_shapes_is_returned_as_it_is():
    def plain(x: int) -> int:
        return x

    assert checked(plain) is plain


@pytest.mark.filterwarnings("ignore")
def test_a_checked_function_compiles_in_one_graph():
    compiled = torch.compile(pack, backend="eager", fullgraph=True)
    x = torch.randn(1, 4, 4, 4)
    assert torch.equal(compiled(x), pack(x))


def test_shapes_can_be_left_unchecked_to_test_what_users_meet():
    with shapes_unchecked(), pytest.raises(ValueError, match="not enough values to unpack"):
        pack(torch.zeros(1, 16, 4))
    with pytest.raises(TypeCheckError):
        pack(torch.zeros(1, 16, 4))
