"""Files by other names than diffusers': kohya's, with alpha, and the models as published."""

import pytest
import torch
from diffusers import (
    FluxTransformer2DModel,
    SD3Transformer2DModel,
)
from safetensors.torch import save_file
from torch import Tensor
from torch.testing import assert_close

from dit_heads.loras.weights.files import load_lora, save_lora, write_lora
from dit_heads.loras.weights.formats import read_lora
from dit_heads.loras.weights.low_rank import Lora, LowRank
from tests import tiny
from tests.loras.weights.made import delta, output, pair, pipeline


@pytest.mark.parametrize("rank", [2, 3])
def test_a_joint_projection_of_kohya_is_three(tmp_path, rank):
    """3 x 1 is the rank at which diffusers looks for a projection that was joined from three."""
    tensors = pair("lora_unet_double_blocks_1_img_attn_qkv", 96, 32, rank)
    tensors |= pair("lora_unet_double_blocks_0_txt_attn_proj", 32, 32, rank, seed=5)
    a, b = list(tensors.values())[:2]
    alphas = {key.replace("lora_up.weight", "alpha"): torch.tensor(0.5) for key in tensors if "up" in key}
    save_file(tensors | alphas, tmp_path / "kohya.safetensors")
    found = read_lora(tmp_path / "kohya.safetensors", tiny.flux()).modules
    names = [f"transformer_blocks.1.attn.to_{p}" for p in "qkv"]
    assert sorted(found) == sorted([*names, "transformer_blocks.0.attn.to_add_out"])
    assert_close(torch.cat([delta(found[name]) for name in names]), 0.5 / rank * b @ a)


def test_a_kohya_file_is_loaded_and_saved_at_its_scale(tmp_path):
    tensors = pair("lora_unet_double_blocks_1_txt_attn_qkv", 96, 32)
    tensors |= pair("lora_unet_final_layer_linear", 16, 32, seed=3)
    tensors |= pair("lora_unet_final_layer_adaLN_modulation_1", 64, 32, seed=7)
    tensors |= {k.replace("lora_up.weight", "alpha"): torch.tensor(6.0) for k in tensors if "up" in k}
    save_file(tensors, tmp_path / "kohya.safetensors")
    pipe = pipeline(tiny.flux())
    changed = {name: tensor.clone() for name, tensor in pipe.transformer.state_dict().items()}

    def change(name: str) -> Tensor:
        up, down = (tensors[f"lora_unet_{name}.lora_{part}.weight"] for part in ("up", "down"))
        return 6.0 / 2 * up @ down

    for part, rows in zip("qkv", change("double_blocks_1_txt_attn_qkv").chunk(3), strict=True):
        changed[f"transformer_blocks.1.attn.add_{part}_proj.weight"] += rows
    changed["proj_out.weight"] += change("final_layer_linear")
    # The first release has shift before scale.
    shift, scale = change("final_layer_adaLN_modulation_1").chunk(2)
    changed["norm_out.linear.weight"] += torch.cat([scale, shift])
    load_lora(pipe, tmp_path / "kohya.safetensors", "mine")
    expected = tiny.flux()
    expected.load_state_dict(changed)
    assert_close(output(pipe.transformer, "flux"), output(expected, "flux"))
    save_lora(pipe.transformer, tmp_path / "ours.safetensors", "mine")
    again = pipeline(tiny.flux())
    again.load_lora_weights(tmp_path, weight_name="ours.safetensors")
    assert_close(output(again.transformer, "flux"), output(expected, "flux"))


@pytest.mark.parametrize("kind", ["sd3", "flux"])
def test_alpha_tensors_scale_each_module(tmp_path, kind):
    one, two = "transformer_blocks.0.attn.to_q", "transformer_blocks.1.attn.to_out.0"
    given = pair(f"transformer.{one}", 32, 32)
    given |= pair("lora_transformer_transformer_blocks_1_attn_to_out_0", 32, 32, seed=4)
    a, b, c, d = given.values()
    given[f"transformer.{one}.alpha"] = torch.tensor(5)
    save_file(given, tmp_path / "lora.safetensors")
    found = read_lora(tmp_path / "lora.safetensors", tiny.transformer(kind)).modules
    assert found.keys() == {one, two}
    assert_close(delta(found[one]), 2.5 * b @ a)
    assert_close(delta(found[two]), d @ c)


# --- the models as published, without their weights ---


def test_modules_of_flux_dev_are_found_by_their_first_names(tmp_path):
    with torch.device("meta"):
        model = FluxTransformer2DModel(guidance_embeds=True)  # the class's defaults are FLUX.1's
    tensors = pair("lora_unet_single_blocks_37_linear1", 21504, 3072, 1)
    tensors |= pair("diffusion_model.double_blocks.18.img_mlp.0", 12288, 3072, 1)
    tensors |= pair("lora_unet_single_blocks_0_linear2", 3072, 15360, 1)
    tensors |= pair("lora_unet_double_blocks_0_img_mod_lin", 18432, 3072, 1)
    tensors |= pair("lora_unet_guidance_in_in_layer", 3072, 256, 1)
    a, b = list(tensors.values())[:2]
    save_file(tensors, tmp_path / "kohya.safetensors")
    found = read_lora(tmp_path / "kohya.safetensors", model).modules
    block = "single_transformer_blocks.37"
    joint = [*(f"{block}.attn.to_{part}" for part in "qkv"), f"{block}.proj_mlp"]
    assert sorted(found) == sorted(
        [
            *joint,
            "transformer_blocks.18.ff.net.0.proj",
            "single_transformer_blocks.0.proj_out",
            "transformer_blocks.0.norm1.linear",
            "time_text_embed.guidance_embedder.linear_1",
        ]
    )
    assert all(torch.equal(found[name].a, a) for name in joint)
    assert_close(torch.cat([found[name].b for name in joint]), b)


def test_modules_of_sd3_medium_are_found(tmp_path):
    with torch.device("meta"):
        model = SD3Transformer2DModel(
            num_layers=24, num_attention_heads=24, caption_projection_dim=1536, pos_embed_max_size=192
        )
    names = [f"transformer_blocks.{b}.attn.{p}" for b in range(24) for p in ("to_q", "add_v_proj")]
    change = LowRank(torch.zeros(1, 1536), torch.zeros(1536, 1))
    write_lora(tmp_path / "lora.safetensors", Lora(dict.fromkeys(names, change)))
    assert sorted(read_lora(tmp_path / "lora.safetensors", model).modules) == sorted(names)
