from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel, UNet2DModel

from dit_heads import HeadSet
from dit_heads.families import layout_of
from tests import tiny

# The published configs of the real models.
REAL = {
    "SD3-medium": ({"num_layers": 24, "num_attention_heads": 24}, 576, 0),
    "SD3.5-medium": (
        {
            "num_layers": 24,
            "num_attention_heads": 24,
            "dual_attention_layers": tuple(range(13)),
            "qk_norm": "rms_norm",
            "pos_embed_max_size": 384,
        },
        576,
        312,
    ),
    "SD3.5-large": ({"num_layers": 38, "num_attention_heads": 38, "qk_norm": "rms_norm"}, 1444, 0),
}


@pytest.mark.parametrize(("config", "joint", "image_only"), REAL.values(), ids=REAL)
def test_every_head_of_the_real_models_is_addressed(config, joint, image_only):
    with torch.device("meta"):
        width = 64 * config["num_attention_heads"]
        model = SD3Transformer2DModel(**{"pos_embed_max_size": 96, "caption_projection_dim": width, **config})
    layout, parts = layout_of(model), dict[str, Any](model.named_modules())
    everything = layout.resolve(HeadSet.parse(f"L0-{config['num_layers'] - 1}"))
    assert len(everything) == joint
    dual = [b for b, heads in enumerate(layout.image_only_heads) if heads]
    assert sum(layout.image_only_heads) == image_only
    for head in everything:
        path = f"{layout.blocks[head.block]}.{layout.attention(head)}"
        assert f"{path}.processor" in model.attn_processors
        rows = parts[path].to_q.weight.shape[0]
        assert rows == 64 * layout.count(head)
    if dual:
        assert len(layout.resolve(HeadSet.parse(f"L0-{dual[-1]}i"))) == image_only
        assert {f"transformer_blocks.{b}.attn2.processor" for b in dual} <= set(model.attn_processors)


def test_every_head_of_flux_is_addressed():
    with torch.device("meta"):
        model = FluxTransformer2DModel(guidance_embeds=True)  # the class's defaults are FLUX.1's
    layout, parts = layout_of(model), dict[str, Any](model.named_modules())
    everything = layout.resolve(HeadSet.parse("L0-56"))
    assert len(everything) == 57 * 24 == 1368
    assert layout.blocks[18] == "transformer_blocks.18"
    assert layout.blocks[19] == "single_transformer_blocks.0"
    assert {f"{path}.attn.processor" for path in layout.blocks} == set(model.attn_processors)
    assert all(parts[path].attn.to_q.weight.shape[0] == 24 * 128 for path in layout.blocks)


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
