"""LoRA files of other trainers: read where their meaning is certain, else named for what they are."""

import json
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import Tensor
from torch.testing import assert_close

from dit_heads.errors import InputError
from dit_heads.loras import Lora, read_lora
from tests import tiny
from tests.loras.weights.made import GOOD, delta, pair

NAME = GOOD.removeprefix("transformer.")


def read(tmp_path: Any, tensors: dict[str, Tensor], kind: str = "sd3", **header: str) -> Lora:
    save_file(
        {key: tensor.contiguous() for key, tensor in tensors.items()}, tmp_path / "f.safetensors", header
    )
    return read_lora(tmp_path / "f.safetensors", tiny.transformer(kind))


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float16])
def test_numbers_of_few_bits_are_read_as_they_are(tmp_path, kind):
    a, b = (tensor.to(kind) for tensor in pair(GOOD, 32, 32).values())
    given = dict(zip(pair(GOOD, 32, 32), (a, b), strict=True)) | {f"{GOOD}.alpha": torch.tensor(1.0)}
    change = read(tmp_path, given).modules[NAME]
    assert_close(change.a.float(), a.float())
    assert_close(change.b.float(), b.float() / 2)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["lora_down.weight", "lora_up.weight", "alpha"])
def test_numbers_that_are_not_finite_are_refused_with_their_module(tmp_path, value, part):
    tensors = pair(GOOD, 32, 32) | {f"{GOOD}.alpha": torch.tensor([2.0])}
    tensors[f"{GOOD}.{part}"].view(-1)[0] = value
    with pytest.raises(InputError, match=rf"expected finite numbers in '.*', '{GOOD}' has others"):
        read(tmp_path, tensors)


@pytest.mark.parametrize(
    "ends",
    [
        ("lora.down.weight", "lora.up.weight"),
        ("lora_A.default.weight", "lora_B.default.weight"),
        ("lora_A.weight", "lora_B.weight"),
        ("lora_down.weight", "lora_up.weight"),
    ],
)
@pytest.mark.parametrize("before", ["transformer.", "", "transformer.base_model.model."])
def test_names_of_diffusers_in_the_forms_of_every_age(tmp_path, ends, before):
    a, b = pair(GOOD, 32, 32).values()
    change = read(tmp_path, {f"{before}{NAME}.{ends[0]}": a, f"{before}{NAME}.{ends[1]}": b}).modules[NAME]
    assert torch.equal(change.a, a) and torch.equal(change.b, b)


@pytest.mark.parametrize("kind", ["sd3", "flux"])
@pytest.mark.parametrize(
    "form", ["lora_unet_{}", "lora_unet_{}_", "lora_transformer_{}_", "lora_transformer_{}"]
)
def test_flat_names_of_diffusers_modules(tmp_path, kind, form):
    name = "transformer_blocks.1.attn.to_out.0"
    given = pair(form.format(name.replace(".", "_")), 32, 32)
    a, b = given.values()
    assert_close(delta(read(tmp_path, given, kind).modules[name]), b @ a)


@pytest.mark.parametrize(
    "before", ["", "transformer.", "diffusion_model.", "base_model.model.diffusion_model."]
)
def test_names_of_fluxs_first_release_with_and_without_their_prefix(tmp_path, before):
    given = pair(f"{before}double_blocks.1.img_attn.qkv", 96, 32)
    a, b = given.values()
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 2}')
    found = read(tmp_path, given, "flux").modules
    assert_close(torch.cat([delta(found[f"transformer_blocks.1.attn.to_{p}"]) for p in "qkv"]), b @ a)


def test_a_part_that_is_there_in_two_forms_is_refused(tmp_path):
    a, b = pair(GOOD, 32, 32).values()
    with pytest.raises(InputError, match="gives a part of its module a second time"):
        read(tmp_path, pair(GOOD, 32, 32) | {f"{GOOD}.lora_A.weight": a, f"{GOOD}.lora_B.weight": b})


FOREIGN = {
    "a LoRA of XLabs": ["double_blocks.0.processor.qkv_lora1.down.weight"],
    "a LoKr": ["lora_unet_double_blocks_0_img_attn_qkv.lokr_w1"],
    "a LoHa": ["lora_unet_double_blocks_0_img_attn_qkv.hada_w1_a"],
    "an OFT": [f"{GOOD}.oft_R.weight"],
    "a LoRA of SD 1.5 or SDXL": ["lora_unet_down_blocks_1_attentions_0_proj_in.lora_down.weight"],
    "a whole checkpoint": ["model.diffusion_model.double_blocks.0.img_attn.qkv.weight"],
    "a LoRA with embeddings": ["bundle_emb.cat.t5", f"{GOOD}.lora_A.weight", f"{GOOD}.lora_B.weight"],
}


@pytest.mark.parametrize("name", FOREIGN)
def test_another_kind_of_file_is_named_with_what_to_do(tmp_path, name):
    with pytest.raises(InputError, match=rf"path: '.*f\.safetensors' is {name}.*; .*(load|train|save)"):
        read(tmp_path, {key: torch.zeros(2, 2) for key in FOREIGN[name]})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"use_dora": True}, "says use_dora, expected lora_magnitude_vector in the file, got none"),
        ({"peft_type": "LOHA"}, "expected a LoRA, .* says peft_type LOHA"),
        ({"fan_in_fan_out": True}, "says fan_in_fan_out, of transposed weights"),
    ],
)
@pytest.mark.parametrize("where", ["beside", "in the header"])
def test_a_config_that_means_something_else_is_refused(tmp_path, config, message, where):
    config = {"lora_alpha": 2, "r": 2} | config
    if where == "beside":
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        header, tensors = {}, pair(f"base_model.model.{NAME}", 32, 32)
    else:
        prefixed = {f"transformer.{key}": value for key, value in config.items()}
        header, tensors = {"lora_adapter_metadata": json.dumps(prefixed)}, pair(GOOD, 32, 32)
    with pytest.raises(InputError, match=message):
        read(tmp_path, tensors, **header)


def test_a_folder_of_peft_with_magnitudes_is_a_dora(tmp_path):
    config: Any = LoraConfig(r=2, target_modules=["to_q"], use_dora=True, init_lora_weights=False)
    get_peft_model(tiny.sd3(), config).save_pretrained(str(tmp_path))
    assert read_lora(tmp_path / "adapter_model.safetensors", tiny.sd3()).dora
