from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from torch import Tensor
from torch.testing import assert_close

from dit_heads.loras.weights.compose import compose, set_scales
from dit_heads.loras.weights.files import add_lora, lora_of, write_lora
from dit_heads.loras.weights.formats import read_lora
from dit_heads.loras.weights.low_rank import Lora, LowRank, linear_modules
from tests import tiny


def drawn(
    kind: str, words: tuple[str, ...], rank: int, seed: int, dtype: torch.dtype = torch.float64
) -> Lora:
    """A random LoRA of every module whose name has one of the words in it."""
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: (0.3 * torch.randn(shape, generator=g, dtype=torch.float64)).to(dtype)  # noqa: E731
    return Lora(
        {
            name: LowRank(draw(rank, inputs), draw(outputs, rank))
            for name, (outputs, inputs) in linear_modules(tiny.transformer(kind)).items()
            if any(word in name for word in words)
        }
    )


def two(kind: str) -> tuple[Lora, Lora]:
    """Of other ranks, and of modules that overlap in part, some outside of blocks."""
    return drawn(kind, ("to_q", "ff", "proj_out"), 2, 1), drawn(kind, ("to_q", "to_v", "norm_out"), 3, 2)


def pipeline(kind: str) -> Any:
    """A stock pipeline of a random model."""
    if kind != "flux":
        return tiny.pipeline(tiny.sd3(kind))
    nothing: Any = dict.fromkeys(["vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"])
    return FluxPipeline(transformer=tiny.flux(), scheduler=FlowMatchEulerDiscreteScheduler(), **nothing)


def output(model: Any, kind: str) -> Tensor:
    with torch.no_grad():
        return model(**tiny.inputs(2, kind), return_dict=False)[0]


def by_hand(kind: str, *parts: tuple[Lora, Any]) -> Any:
    """A model with every change added to its weights; a scale is a function of the module's name."""
    model = tiny.transformer(kind)
    with torch.no_grad():
        for lora, scale in parts:
            for name, change in lora.modules.items():
                model.get_submodule(name).weight += scale(name) * change.b @ change.a
    return model


def live(kind: str, loras: tuple[Lora, ...], scales: list[Any]) -> Any:
    """A stock pipeline that runs all of them at once."""
    pipe = pipeline(kind)
    for number, lora in enumerate(loras):
        add_lora(pipe, lora, f"lora{number}")
    set_scales(pipe.transformer, {f"lora{number}": scale for number, scale in enumerate(scales)})
    return pipe


# Block by block, as numbers for the functions under test and as a function for `by_hand`.
SCALES = {
    "numbers": (0.5, lambda _: 0.5),
    "negative": (-1.5, lambda _: -1.5),
    "one block": ({"L1": 0.25}, lambda name: 0.25 if name.startswith("transformer_blocks.1.") else 1.0),
    "rest": (
        {"L0, L1": 2.0, "rest": 0.0},
        lambda name: 2.0 if name.startswith(("transformer_blocks.0.", "transformer_blocks.1.")) else 0.0,
    ),
}


@pytest.mark.parametrize("kind", tiny.MODELS)
def test_a_composition_is_the_sum_of_the_changes(tmp_path, kind):
    loras, (scale, scale_of) = two(kind), SCALES["rest"]
    expected = output(by_hand(kind, (loras[0], lambda _: 0.7), (loras[1], scale_of)), kind)
    together = live(kind, loras, [0.7, scale])
    assert_close(output(together.transformer, kind), expected)
    write_lora(
        tmp_path / "baked.safetensors",
        compose(tiny.transformer(kind), list(zip(loras, [0.7, scale], strict=True))),
    )
    stock = pipeline(kind)
    stock.load_lora_weights(tmp_path, weight_name="baked.safetensors")
    assert_close(output(stock.transformer, kind), output(together.transformer, kind))


@pytest.mark.parametrize(("scale", "scale_of"), SCALES.values(), ids=SCALES)
def test_scales_are_of_the_blocks_named(scale, scale_of):
    loras = two("flux")
    expected = output(by_hand("flux", (loras[0], scale_of)), "flux")
    assert_close(output(live("flux", loras[:1], [scale]).transformer, "flux"), expected)
    baked = compose(tiny.flux(), [(loras[0], scale)])
    assert_close(output(by_hand("flux", (baked, lambda _: 1.0)), "flux"), expected)


def test_ranks_add_up_and_what_is_at_scale_zero_is_left_out(tmp_path):
    first, second = two("flux")
    baked = compose(tiny.flux(), [(first, 1.0), (second, {"L2-3": 0.0})])
    ranks = {name: change.rank for name, change in baked.modules.items()}
    assert ranks["transformer_blocks.0.attn.to_q"] == 5 and ranks["transformer_blocks.0.attn.to_v"] == 3
    assert ranks["single_transformer_blocks.1.attn.to_q"] == ranks["proj_out"] == 2
    assert "single_transformer_blocks.1.attn.to_v" not in ranks
    assert ranks.keys() <= first.modules.keys() | second.modules.keys()
    write_lora(tmp_path / "baked.safetensors", baked)
    found = read_lora(tmp_path / "baked.safetensors", tiny.flux())
    assert {name: change.rank for name, change in found.modules.items()} == ranks


def test_block_one_is_neither_block_ten_nor_the_first_single_block():
    with torch.device("meta"):
        model = FluxTransformer2DModel()  # the class's defaults are FLUX.1's, 19 double and 38 single blocks
    change = LowRank(torch.ones(1, 3072), torch.ones(3072, 1))
    names = [name for name in linear_modules(model) if name.endswith("attn.to_q")]
    lora = Lora(dict.fromkeys(names, change))

    def chosen(scale):
        return list(compose(model, [(lora, {**scale, "rest": 0.0})]).modules)

    assert len(names) == 57
    assert chosen({"L1": 1.0}) == ["transformer_blocks.1.attn.to_q"]
    assert chosen({"L20": 1.0}) == ["single_transformer_blocks.1.attn.to_q"]
    assert chosen({"L18-19": 1.0}) == [
        "transformer_blocks.18.attn.to_q",
        "single_transformer_blocks.0.attn.to_q",
    ]


def test_a_live_scale_of_one_block_leaves_blocks_of_longer_numbers_alone():
    model = FluxTransformer2DModel(
        in_channels=4,
        num_layers=11,
        num_single_layers=2,
        num_attention_heads=1,
        attention_head_dim=8,
        joint_attention_dim=4,
        pooled_projection_dim=4,
        axes_dims_rope=(2, 2, 4),
    )
    names = [name for name in linear_modules(model) if name.endswith("attn.to_q")]
    pipe = pipeline("flux")
    pipe.transformer = model
    add_lora(pipe, Lora(dict.fromkeys(names, LowRank(torch.ones(1, 8), torch.ones(8, 1)))), "mine")
    set_scales(model, {"mine": {"L1": 0.5}})
    layers = dict[str, Any](model.named_modules())
    scaling = {name: layers[name].scaling["mine"] for name in names}
    assert scaling == {name: 0.5 if name == "transformer_blocks.1.attn.to_q" else 1.0 for name in names}


def test_only_the_adapters_named_are_active_and_scales_do_not_pile_up():
    loras, pipe = two("sd3"), live("sd3", two("sd3"), [0.5, 0.5])
    set_scales(pipe.transformer, {"lora1": {"L0": 0.0}})
    set_scales(pipe.transformer, {"lora1": 2.0})
    assert pipe.get_active_adapters() == ["lora1"]
    assert_close(output(pipe.transformer, "sd3"), output(by_hand("sd3", (loras[1], lambda _: 2.0)), "sd3"))


def test_the_order_does_not_matter():
    first, second = two("sd3")
    parts = [(first, 2.0), (second, -1.0)]
    one, other = compose(tiny.sd3(), parts), compose(tiny.sd3(), parts[::-1])
    for name, change in one.modules.items():
        assert_close(change.b @ change.a, other.modules[name].b @ other.modules[name].a)


def test_parts_of_other_precisions_are_kept_whole():
    half, single = drawn("sd3", ("to_q",), 2, 1, torch.float16), drawn("sd3", ("to_q",), 2, 2, torch.float32)
    baked = compose(tiny.sd3(), [(half, 1.0), (single, 1.0)])
    for name, change in baked.modules.items():
        exact = sum(part.modules[name].b.double() @ part.modules[name].a.double() for part in (half, single))
        assert change.a.dtype == torch.float32
        assert_close(change.b.double() @ change.a.double(), exact, rtol=1e-12, atol=1e-12)


def dora() -> Any:
    from peft import LoraConfig

    model = tiny.sd3()
    model.add_adapter(LoraConfig(r=2, target_modules=["to_q"], use_dora=True, init_lora_weights=False))
    return model


def test_a_dora_is_refused_in_a_sum_and_scaled_alone():
    model = dora()
    with pytest.raises(ValueError, match=r"parts\[1\]: a DoRA is not additive"):
        compose(tiny.sd3(), [(two("sd3")[0], 1.0), (lora_of(model), 1.0)])
    full = output(model, "sd3")
    set_scales(model, {"default": 0.5})
    assert not torch.allclose(output(model, "sd3"), full)


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        (float("nan"), "expected a finite number, got nan"),
        (True, "expected a finite number, got True"),
        ("1", "expected a finite number, got '1'"),
        ({"L0": None}, r"\['L0'\]: expected a finite number, got None"),
        ({"rest": float("inf")}, r"\['rest'\]: expected a finite number, got inf"),
        ({"transformer_blocks.1": 1.0}, "expected 'L3H2' .*, got 'transformer_blocks.1'"),
        ({"L4": 1.0}, "expected blocks of L0-3 or 'rest', got 'L4'"),
        ({"L0H1": 1.0}, "expected blocks of L0-3 or 'rest', got 'L0H1'"),
        ({"L0i": 1.0}, "expected blocks of L0-3 or 'rest', got 'L0i'"),
        ({"L0-2": 1.0, "L2": 0.0}, "expected each block once, L2 is named twice"),
    ],
    ids=str,
)
def test_scales_that_are_wrong_are_refused_and_nothing_is_changed(scale, message):
    pipe = live("sd3", two("sd3"), [0.5, 1.0])
    expected = output(pipe.transformer, "sd3")
    with pytest.raises(ValueError, match=rf"^scales\['lora1'\].*{message}"):
        set_scales(pipe.transformer, {"lora0": 2.0, "lora1": scale})
    assert torch.equal(output(pipe.transformer, "sd3"), expected)
    with pytest.raises(ValueError, match=rf"^parts\[0\].*{message}"):
        compose(tiny.sd3(), [(two("sd3")[0], scale)])


@pytest.mark.parametrize("scales", [{}, {"other": 1.0}])
def test_adapters_that_are_not_there_are_refused(scales):
    pipe = live("sd3", two("sd3"), [0.5, 1.0])
    with pytest.raises(ValueError, match="scales: expected names among lora0, lora1, got"):
        set_scales(pipe.transformer, scales)
    with pytest.raises(ValueError, match="scales: expected names among none, got"):
        set_scales(tiny.sd3(), scales)


def test_fused_adapters_are_refused():
    pipe = live("sd3", two("sd3"), [0.5, 1.0])
    pipe.fuse_lora()
    with pytest.raises(ValueError, match=r"its adapters are fused; call pipe.unfuse_lora\(\) first"):
        set_scales(pipe.transformer, {"lora0": 1.0})


@pytest.mark.parametrize("parts", [0, 2])
def test_a_sum_of_nothing_is_refused(parts):
    with pytest.raises(ValueError, match="parts: expected at least one LoRA at a scale other than 0"):
        compose(tiny.sd3(), [(two("sd3")[0], 0.0)] * parts)


def test_a_part_of_another_model_is_refused():
    with pytest.raises(ValueError, match=r"^parts\[1\]: it does not fit SD3Transformer2DModel in \d+ places"):
        compose(tiny.sd3(), [(two("sd3")[0], 1.0), (two("flux")[0], 1.0)])
