from inspect import signature
from typing import Any

import diffusers
import pytest
import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel, UNet2DModel
from torch import nn

from dit_heads import HeadSet
from dit_heads.errors import InputError
from dit_heads.families import FAMILIES, family_of, layout_of, training_of
from tests import tiny

# The published configs of the real models: what differs from the class's defaults, and how many heads.
SD3_MEDIUM: dict[str, Any] = {
    "num_layers": 24,
    "num_attention_heads": 24,
    "pos_embed_max_size": 192,
    "caption_projection_dim": 1536,
}
SD35_MEDIUM = SD3_MEDIUM | {
    "dual_attention_layers": tuple(range(13)),
    "qk_norm": "rms_norm",
    "pos_embed_max_size": 384,
}
SD35_LARGE = SD3_MEDIUM | {
    "num_layers": 38,
    "num_attention_heads": 38,
    "qk_norm": "rms_norm",
    "caption_projection_dim": 2432,
}
REAL: dict[str, tuple[Any, dict[str, Any], int, int]] = {
    "SD3-medium": (SD3Transformer2DModel, SD3_MEDIUM, 24 * 24, 0),
    "SD3.5-medium": (SD3Transformer2DModel, SD35_MEDIUM, 24 * 24, 13 * 24),
    "SD3.5-large": (SD3Transformer2DModel, SD35_LARGE, 38 * 38, 0),
    "FLUX.1-dev": (FluxTransformer2DModel, {"guidance_embeds": True}, (19 + 38) * 24, 0),
}


@pytest.fixture(scope="module", params=REAL)
def real(request: pytest.FixtureRequest) -> tuple[Any, int, int]:
    """A model at its full size on the meta device, and its heads."""
    kind, config, joint, image_only = REAL[request.param]
    with torch.device("meta"):
        return kind(**config), joint, image_only


def test_every_head_of_the_real_models_is_addressed(real: tuple[Any, int, int]):
    model, joint, image_only = real
    layout, parts = layout_of(model), dict[str, Any](model.named_modules())
    everything = layout.resolve(HeadSet.parse(f"L0-{len(layout.blocks) - 1}"))
    assert len(everything) == sum(layout.heads) == joint
    dual = [b for b, heads in enumerate(layout.image_only_heads) if heads]
    assert sum(layout.image_only_heads) == image_only
    if dual:
        assert len(layout.resolve(HeadSet.parse(f"L0-{dual[-1]}i"))) == image_only
    size = model.config.attention_head_dim
    paths = {f"{layout.blocks[h.block]}.{layout.attention(h)}": layout.count(h) for h in layout.every_head()}
    assert {f"{path}.processor" for path in paths} == set(model.attn_processors)
    assert all(parts[path].to_q.weight.shape[0] == size * count for path, count in paths.items())
    assert layout.final in parts


def test_double_blocks_of_flux_come_before_single_ones():
    with torch.device("meta"):
        layout = layout_of(FluxTransformer2DModel())  # the class's defaults are FLUX.1's
    assert layout.blocks[18] == "transformer_blocks.18"
    assert layout.blocks[19] == "single_transformer_blocks.0"
    assert len(layout.blocks) == 57


def test_lora_targets_are_all_linear_modules_of_the_blocks_each_in_one_group(real: tuple[Any, int, int]):
    model, layout, targets = real[0], layout_of(real[0]), training_of(real[0]).targets
    linear = [name for name, part in model.named_modules() if isinstance(part, nn.Linear)]
    for name in linear:
        groups = [group for group, ends in targets.items() if name.endswith(tuple(f".{end}" for end in ends))]
        assert len(groups) == (layout.block_of(name) is not None), name
    for end in {end for ends in targets.values() for end in ends}:
        assert any(name.endswith(f".{end}") for name in linear), end


def test_a_block_is_known_by_its_whole_name(real: tuple[Any, int, int]):
    layout = layout_of(real[0])
    for path in layout.blocks:
        assert layout.block_of(f"{path}.attn.to_q") == path
    assert layout.block_of("proj_out") is None and layout.block_of(layout.blocks[1] + "0") is None


@pytest.mark.parametrize("name", FAMILIES)
def test_what_a_family_says_of_diffusers_is_there(name: str):
    family = FAMILIES[name]
    kind, drawn, training = getattr(diffusers, name), family.pipelines, family.training
    assert drawn is not None and training is not None
    pipeline = getattr(diffusers, drawn.text_to_image)
    assert signature(pipeline.__call__).parameters["max_sequence_length"].default == drawn.text_tokens
    assert set(training.eight_bit) <= set(signature(pipeline.__init__).parameters)
    if drawn.fill:
        assert "mask_image" in signature(getattr(diffusers, drawn.fill).__call__).parameters
    assert set(family.arguments.batched) <= set(signature(kind.forward).parameters)


@pytest.mark.parametrize("kind", ["sd3", "flux"])
def test_the_arguments_of_blocks_are_those_of_diffusers(kind: str):
    model = tiny.transformer(kind)
    names, layout = family_of(model).arguments, layout_of(model)
    assert set(names.grown) < set(names.block)
    for path in layout.blocks:
        found = tuple(signature(type(model.get_submodule(path)).forward).parameters)
        assert found == ("self", *names.block)


def test_blocks_without_attentions_are_refused():
    model: Any = tiny.flux()
    model.transformer_blocks = nn.ModuleList([nn.Identity()])
    with pytest.raises(InputError, match="transformer: expected an attention 'attn' in block 0"):
        layout_of(model)


def test_a_whole_block_leaves_out_the_image_only_attention():
    layout = layout_of(tiny.sd3("sd3.5-medium"))
    assert {head.image_only for head in layout.resolve(HeadSet.parse("L0"))} == {False}
    assert {head.image_only for head in layout.resolve(HeadSet.parse("L0i"))} == {True}
    assert layout.attentions(0) == ("attn", "attn2") and layout.attentions(3) == ("attn",)


def test_a_subclass_has_its_parents_layout():
    class Mine(SD3Transformer2DModel):
        pass

    model = tiny.sd3()
    model.__class__ = Mine
    assert layout_of(model).model == "Mine"


def test_other_models_are_refused():
    with pytest.raises(ValueError, match=r"expected one of SD3Transformer2DModel.*got UNet2DModel"):
        layout_of(UNet2DModel(block_out_channels=(8, 8, 8, 8), norm_num_groups=2, layers_per_block=1))
