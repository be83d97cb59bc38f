import pytest
import torch
from diffusers.models.attention_processor import (
    FusedJointAttnProcessor2_0,
    JointAttnProcessor2_0,
    PAGJointAttnProcessor2_0,
    SD3IPAdapterJointAttnProcessor2_0,
)
from torch.testing import assert_close

from dit_heads.families.processors import HeadWeights
from dit_heads.families.sd3 import JointHeadProcessor
from dit_heads.guidance.perturb import Perturbation
from tests import tiny


def attention(kind: str, block: int, name: str = "attn"):
    return getattr(tiny.sd3(kind).transformer_blocks[block], name)


def tokens(attn, joint: bool, batch: int = 3):
    g = torch.Generator().manual_seed(3)
    image = torch.randn(batch, 7, attn.to_q.in_features, generator=g, dtype=torch.float64)
    text = torch.randn(batch, 4, attn.to_q.in_features, generator=g, dtype=torch.float64)
    return {"hidden_states": image, "encoder_hidden_states": text if joint else None}


CASES = [(kind, block, "attn") for kind in tiny.SD3 for block in (0, tiny.BLOCKS - 1)] + [
    ("sd3.5-medium", 1, "attn2")
]


@torch.no_grad()
@pytest.mark.parametrize(("kind", "block", "name"), CASES)
@pytest.mark.parametrize("rows", [1, 3])
def test_the_last_rows_equal_the_explicit_map_and_the_others_the_stock_processor(kind, block, name, rows):
    attn = attention(kind, block, name)
    given = tokens(attn, joint=name == "attn")
    u = torch.rand(rows, tiny.HEADS, dtype=torch.float64)
    everyone = torch.cat([torch.zeros(3 - rows, tiny.HEADS, dtype=torch.float64), u])
    ours = JointHeadProcessor(JointAttnProcessor2_0(), name, Perturbation())(
        attn, **given, head_weights=HeadWeights({name: u}, 4)
    )
    for got, expected in zip(
        ours, tiny.MapProcessor(False, everyone, Perturbation())(attn, **given), strict=True
    ):
        assert_close(got, expected)


@torch.no_grad()
@pytest.mark.parametrize(("kind", "block", "name"), CASES)
def test_without_weights_the_replaced_processor_runs(kind, block, name):
    attn = attention(kind, block, name)
    given = tokens(attn, joint=name == "attn")
    stock = JointAttnProcessor2_0()
    other = {"attn2" if name == "attn" else "attn": torch.ones(3, tiny.HEADS)}
    for weights in (None, HeadWeights({}, 4), HeadWeights(other, 4)):
        ours = JointHeadProcessor(stock, name, Perturbation())(attn, **given, head_weights=weights)
        assert all(torch.equal(a, b) for a, b in zip(ours, stock(attn, **given), strict=True))


@torch.no_grad()
def test_fused_projections_give_the_same():
    model = tiny.sd3()
    attn = model.transformer_blocks[1].attn
    given, u = (
        tokens(attn, joint=True),
        HeadWeights({"attn": torch.rand(3, tiny.HEADS, dtype=torch.float64)}, 4),
    )
    apart = JointHeadProcessor(JointAttnProcessor2_0(), "attn", Perturbation())(attn, **given, head_weights=u)
    model.fuse_qkv_projections()
    fused = JointHeadProcessor(FusedJointAttnProcessor2_0(), "attn", Perturbation())(
        attn, **given, head_weights=u
    )
    for a, b in zip(apart, fused, strict=True):
        assert_close(a, b)


@torch.no_grad()
def test_the_attention_backend_is_the_replaced_processors_and_none_where_that_asks_for_none(monkeypatch):
    import dit_heads.families.processors as processors

    attn, stock, seen = attention("sd3", 0), JointAttnProcessor2_0(), []
    stock._attention_backend = "native"  # pyright: ignore[reportAttributeAccessIssue]
    dispatch = processors.dispatch_attention_fn
    monkeypatch.setattr(
        processors,
        "dispatch_attention_fn",
        lambda *args, **options: (seen.append(options["backend"]), dispatch(*args, **options))[1],
    )
    given, u = (
        tokens(attn, joint=True),
        HeadWeights({"attn": torch.rand(3, tiny.HEADS, dtype=torch.float64)}, 4),
    )
    through = JointHeadProcessor(stock, "attn", Perturbation())(attn, **given, head_weights=u)
    direct = JointHeadProcessor(JointAttnProcessor2_0(), "attn", Perturbation())(
        attn, **given, head_weights=u
    )
    assert seen == ["native"]
    for a, b in zip(through, direct, strict=True):
        assert_close(a, b)


@pytest.mark.parametrize(
    "processor",
    [
        PAGJointAttnProcessor2_0(),
        SD3IPAdapterJointAttnProcessor2_0(hidden_size=32, ip_hidden_states_dim=8, head_dim=8),
        object(),
    ],
    ids=lambda p: type(p).__name__,
)
def test_processors_that_would_be_dropped_are_refused(processor):
    with pytest.raises(ValueError, match=f"here: .*got {type(processor).__name__}"):
        JointHeadProcessor.check_replaceable(processor, attention("sd3", 0), "here")


def test_the_fused_processor_is_refused_where_it_leaves_out_qk_norm():
    JointHeadProcessor.check_replaceable(FusedJointAttnProcessor2_0(), attention("sd3", 0), "here")
    with pytest.raises(ValueError, match="qk-norm"):
        JointHeadProcessor.check_replaceable(
            FusedJointAttnProcessor2_0(), attention("sd3.5-large", 0), "here"
        )
