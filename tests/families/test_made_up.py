"""A made-up family is registered by one line and guided, against attention maps written out in float64."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from dit_heads import HeadGuidance, HeadSet
from dit_heads.errors import InputError
from dit_heads.families import FAMILIES, family_of, layout_of, pipelines_of, training_of
from dit_heads.guidance.perturb import Perturbation
from tests import tiny
from tests.families.made_up import (
    CHANNELS,
    PLAID,
    REGISTERS,
    TEXT,
    WIDTH,
    PlaidMix,
    PlaidPipeline,
    PlaidScheduler,
    PlaidTransformer,
)

TOKENS, SCALE = 6, 2.0
HEADS = "L1H3, L2H0, L4"
SOFTNESS = {"L1H3": 0.5, "L2H0": 1.0, "L4": 0.25}
KINDS = [Perturbation(), Perturbation("identity", "image"), Perturbation("uniform", "image")]
Weights = Mapping[int, Tensor]  # block -> U [B, H]


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "PlaidTransformer", PLAID)


@pytest.fixture
def model() -> Any:
    return PlaidTransformer().eval().double()


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inputs(batch: int) -> dict[str, Any]:
    """Arguments of one call of the transformer; positions are of 8 channels late and of 4 early, so all are
    broadcast."""
    return {
        "x": list(drawn(batch, CHANNELS, TOKENS, seed=0)),
        "progress": drawn(batch, seed=1).sigmoid(),
        "cap": drawn(batch, TEXT, WIDTH, seed=2),
        "places": drawn(1, REGISTERS + TOKENS + TEXT, 1, seed=3),
    }


def run(pipe: PlaidPipeline, cfg: float) -> Tensor:
    given = inputs(2)
    latents, negative = torch.stack(given["x"]), drawn(2, TEXT, WIDTH, seed=4)
    return pipe(latents, given["cap"], negative, given["places"], steps=3, cfg=cfg)


def pipeline(model: Any) -> PlaidPipeline:
    return PlaidPipeline(model, PlaidScheduler())


class Map:
    """The family's attention with its map written out: (1 - u) A + u P."""

    def __init__(self, u: Tensor, kind: Perturbation) -> None:
        self.u, self.kind = u, kind

    def __call__(self, mix: PlaidMix, tokens: Tensor, places: Tensor) -> Tensor:
        b, n, width = tokens.shape
        parts = (tokens @ mix.qkv.weight.T + mix.qkv.bias).reshape(b, n, 3, mix.num_heads, -1)
        q, k, v = (parts[:, :, i].transpose(1, 2) for i in range(3))
        q, k = q + places[:, None], k + places[:, None]
        u, image = self.u[:, :, None, None], slice(REGISTERS, n - TEXT)
        a = (1 - u) * tiny.attention_map(q, k) + u * tiny.perturbed_map(self.kind, q, k, image)
        return torch.einsum("bhij,bhjd->bihd", a, v).reshape(b, n, width) @ mix.out.weight.T + mix.out.bias


def explicit(model: Any, weights: Weights, kind: Perturbation, call: dict[str, Any]) -> Tensor:
    """The prediction [B, C, N] with the maps of perturbed blocks written out."""
    mixes = [*(wrapped.inner.mix for wrapped in model.early), *(block.mix for block in model.late)]
    stock = [mix.processor for mix in mixes]
    for block, u in weights.items():
        mixes[block].processor = Map(u, kind)
    try:
        return torch.stack(model(**call))
    finally:
        for mix, processor in zip(mixes, stock, strict=True):
            mix.processor = processor


def softened(batch: int) -> Weights:
    """U of `SOFTNESS` by hand."""
    rows = {1: [0, 0, 0, 0.5], 2: [1.0, 0], 4: [0.25, 0.25]}
    return {block: torch.tensor([u] * batch, dtype=torch.float64) for block, u in rows.items()}


def test_without_its_line_the_family_is_not_known(model: Any, monkeypatch: pytest.MonkeyPatch):
    assert family_of(model) is family_of(PlaidTransformer) is PLAID
    monkeypatch.delitem(FAMILIES, "PlaidTransformer")
    with pytest.raises(InputError, match=r"expected one of SD3Transformer2DModel.*got PlaidTransformer"):
        HeadGuidance(model, HEADS, conditional=slice(None))


def test_its_heads_are_addressed(model: Any):
    layout = layout_of(model)
    assert [str(head) for head in layout.resolve(HeadSet.parse("L1, L4"))] == [
        *("L1H0", "L1H1", "L1H2", "L1H3"),
        *("L4H0", "L4H1"),
    ]
    for head in layout.every_head():
        module = model.get_submodule(f"{layout.blocks[head.block]}.{layout.attention(head)}")
        assert module.num_heads == layout.count(head)
    with pytest.raises(InputError, match="L2H2"):
        layout.resolve(HeadSet.parse("L2H2"))


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("trunk", ["shared", "two_pass"])
def test_guided_it_equals_maps_written_out(model: Any, trunk: str, kind: Perturbation):
    call = inputs(2)
    plain = torch.stack(model(**call))
    expected = plain + SCALE * (plain - explicit(model, softened(2), kind, call))
    options: Any = {"scale": SCALE, "trunk": trunk, "perturbation": kind.name, "region": kind.region}
    with HeadGuidance(model, HEADS, softness=SOFTNESS, conditional=slice(None), **options):
        assert_close(torch.stack(model(**call)), expected)
    assert not torch.allclose(plain, expected)


@torch.no_grad()
@pytest.mark.parametrize("cfg", [0.0, 1.5])
@pytest.mark.parametrize("trunk", ["shared", "two_pass"])
def test_its_pipeline_is_guided_on_the_conditional_half_which_comes_first(model: Any, trunk: str, cfg: float):
    given = inputs(2)
    latents = torch.stack(given["x"])
    negative = drawn(2, TEXT, WIDTH, seed=4)
    for step in range(3):
        call = {
            "x": list(latents),
            "progress": torch.full((2,), step / 3).double(),
            "places": given["places"],
        }
        positive, other = (torch.stack(model(**call, cap=cap)) for cap in (given["cap"], negative))
        perturbed = explicit(model, softened(2), Perturbation(), call | {"cap": given["cap"]})
        guided = positive + cfg * (positive - other) + SCALE * (positive - perturbed)
        latents = latents - guided / 3
    pipe = pipeline(model)
    with HeadGuidance(pipe, HEADS, softness=SOFTNESS, scale=SCALE, trunk=trunk) as guidance:
        assert_close(run(pipe, cfg), latents)
    assert guidance.report.guided == [0, 1, 2] and guidance.report.trunk == trunk


@torch.no_grad()
@pytest.mark.parametrize("trunk", ["shared", "two_pass"])
def test_softness_0_changes_no_bit(model: Any, trunk: str):
    pipe = pipeline(model)
    plain = run(pipe, 1.5)
    with HeadGuidance(pipe, HEADS, softness=0.0, trunk=trunk):
        assert torch.equal(run(pipe, 1.5), plain)
    call = inputs(2)
    before = torch.stack(model(**call))
    # One head at 0 beside another that is perturbed: the branch runs, and its head 0 is untouched.
    softness = {"L1H3": 0.0, "L4H1": 1.0}
    with (
        HeadGuidance(model, "L1H3, L4H1", softness=softness, trunk=trunk, conditional=slice(None)),
    ):
        both = torch.stack(model(**call))
    with HeadGuidance(model, "L4H1", trunk=trunk, conditional=slice(None)):
        assert_close(torch.stack(model(**call)), both)
    assert torch.equal(torch.stack(model(**call)), before)


def state(model: Any) -> dict[str, Any]:
    """All that guidance could leave behind in a model."""
    return {
        name: (dict(vars(part)["_forward_pre_hooks"]), dict(vars(part)["_forward_hooks"]), vars(part).keys())
        for name, part in model.named_modules()
    } | {"processors": [id(part.processor) for part in model.modules() if isinstance(part, PlaidMix)]}


@torch.no_grad()
@pytest.mark.parametrize("trunk", ["shared", "two_pass"])
def test_it_is_put_back_exactly(model: Any, trunk: str):
    pipe = pipeline(model)
    plain, before, own = run(pipe, 1.5), state(model), set(vars(pipe))
    with pytest.raises(ZeroDivisionError), HeadGuidance(pipe, HEADS, trunk=trunk):
        assert not torch.equal(run(pipe, 1.5), plain)
        raise ZeroDivisionError
    assert state(model) == before and set(vars(pipe)) == own
    assert torch.equal(run(pipe, 1.5), plain)


def test_rows_of_its_calls_are_taken_from_lists_too(model: Any):
    call = inputs(3)
    found = layout_of(model).rows(call, slice(1, 3))
    assert [part.tolist() for part in found["x"]] == [part.tolist() for part in call["x"][1:]]
    assert torch.equal(found["progress"], call["progress"][1:])
    assert found["places"] is call["places"]


def test_it_can_be_guided_but_not_trained_or_filled(model: Any):
    with pytest.raises(
        InputError, match="transformer: expected one of a family that can be trained, got plaid"
    ):
        training_of(model)
    with pytest.raises(
        InputError, match="pipe: expected one of a family whose pipelines are known, got plaid"
    ):
        pipelines_of(model)
