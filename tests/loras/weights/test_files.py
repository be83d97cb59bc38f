import json
import pickle
import sys
from typing import Any

import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
)
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.testing import assert_close

from dit_heads.errors import InputError
from dit_heads.loras.weights.files import add_lora, load_lora, lora_of, save_lora, write_lora
from dit_heads.loras.weights.formats import read_lora
from dit_heads.loras.weights.low_rank import Lora, LowRank
from tests import tiny

TARGETS = ["to_q", "to_out.0", "add_k_proj", "ff.net.2", "norm1.linear", "proj_out"]
CONFIGS: dict[str, dict[str, Any]] = {
    "alpha is the rank": {"r": 3, "lora_alpha": 3},
    "alpha is not the rank": {"r": 3, "lora_alpha": 7},
    "rank-stabilised": {"r": 4, "lora_alpha": 6, "use_rslora": True},
    "ranks and alphas of their own": {
        "r": 3,
        "lora_alpha": 5,
        "rank_pattern": {"to_q": 2, "^proj_out": 1},
        "alpha_pattern": {"to_q": 8, "transformer_blocks.1.attn.to_out.0": 1},
    },
    "DoRA": {"r": 3, "lora_alpha": 7, "use_dora": True},
}


def tuned(kind: str = "sd3", **config: Any) -> Any:
    """A model of `tiny.MODELS` with a random adapter."""
    model = tiny.transformer(kind)
    model.add_adapter(LoraConfig(**{"target_modules": TARGETS, "init_lora_weights": False, **config}))
    g = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = 0.5 * torch.randn(parameter.shape, generator=g, dtype=torch.float64)
    return model


def pipeline(model: Any) -> Any:
    """A stock pipeline around a model."""
    if isinstance(model, SD3Transformer2DModel):
        return tiny.pipeline(model)
    nothing: Any = dict.fromkeys(["vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"])
    return FluxPipeline(transformer=model, scheduler=FlowMatchEulerDiscreteScheduler(), **nothing)


def output(model: Any, kind: str = "sd3") -> Tensor:
    with torch.no_grad():
        return model(**tiny.inputs(2, kind), return_dict=False)[0]


def delta(change: LowRank) -> Tensor:
    return change.b @ change.a


def deltas_of(model: Any) -> dict[str, Tensor]:
    """What each module's weight is changed by, as peft computes it."""
    return {
        name: module.get_delta_weight("default").detach()
        for name, module in model.named_modules()
        if isinstance(module, Linear)
    }


def assert_same(lora: Lora, deltas: dict[str, Tensor]) -> None:
    assert {name: delta(change) for name, change in lora.modules.items()}.keys() == deltas.keys()
    for name, change in lora.modules.items():
        assert_close(delta(change), deltas[name])


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pair(name: str, outputs: int, inputs: int, rank: int = 2, seed: int = 0) -> dict[str, Tensor]:
    """kohya's two tensors of a module."""
    return {
        f"{name}.lora_down.weight": drawn(rank, inputs, seed=seed),
        f"{name}.lora_up.weight": drawn(outputs, rank, seed=seed + 1),
    }


# --- out ---


@pytest.mark.parametrize("kind", ["sd3.5-medium", "flux"])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_stock_diffusers_loads_what_was_saved(tmp_path, kind, config):
    model = tuned(kind, **config)
    save_lora(model, tmp_path / "lora.safetensors")
    loaded = tiny.transformer(kind)
    base = output(loaded, kind)
    pipeline(loaded).load_lora_weights(tmp_path, weight_name="lora.safetensors")
    assert_close(output(loaded, kind), output(model, kind))
    assert not torch.allclose(output(loaded, kind), base)


@pytest.mark.parametrize("config", list(CONFIGS.values())[:4], ids=list(CONFIGS)[:4])
def test_the_product_of_the_stored_matrices_is_the_change_as_comfyui_takes_it(tmp_path, config):
    model = tuned("flux", **config)
    save_lora(model, tmp_path / "lora.safetensors")
    stored = load_file(tmp_path / "lora.safetensors")
    deltas = deltas_of(model)
    # ComfyUI scales by alpha / rank where there are `.alpha` tensors, and not at all where there are none.
    assert stored.keys() == {f"transformer.{n}.lora_{m}.weight" for n in deltas for m in "AB"}
    for name, expected in deltas.items():
        a, b = (stored[f"transformer.{name}.lora_{m}.weight"] for m in "AB")
        assert_close(b @ a, expected)


def test_the_header_has_the_config_in_diffusers_form_and_what_was_given(tmp_path):
    save_lora(
        tuned("flux", **CONFIGS["ranks and alphas of their own"]),
        tmp_path / "made" / "lora.safetensors",
        metadata={"caption": "a cat"},
    )
    with safe_open(tmp_path / "made" / "lora.safetensors", "pt") as file:
        header = file.metadata()
    assert header.keys() == {"format", "caption", "lora_adapter_metadata"} and header["caption"] == "a cat"
    found = json.loads(header["lora_adapter_metadata"])
    assert all(key.startswith("transformer.") for key in found)
    config = LoraConfig(**{key.removeprefix("transformer."): value for key, value in found.items()})
    assert config.r == config.lora_alpha == 3 and config.rank_pattern == config.alpha_pattern
    assert config.rank_pattern is not None and config.rank_pattern["^proj_out"] == 1
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["lora.safetensors"]


def test_weights_of_set_adapters_are_not_saved():
    model = tuned(r=2, lora_alpha=4)
    expected = deltas_of(model)
    model.set_adapters(["default"], 0.25)
    assert_same(lora_of(model), expected)


def test_what_was_taken_from_a_model_does_not_change_with_it():
    model = tuned(r=2, lora_alpha=2)
    expected, lora = deltas_of(model), lora_of(model)
    for parameter in model.parameters():
        parameter.data.zero_()
    assert_same(lora, expected)


def test_an_adapter_of_a_peft_model_is_saved_by_the_same_names():
    model = get_peft_model(tiny.sd3(), LoraConfig(r=2, target_modules=["to_q"]))
    assert lora_of(model).modules.keys() == {f"transformer_blocks.{b}.attn.to_q" for b in range(4)}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"lora_bias": True}, "'default' trains biases or whole modules"),
        ({"bias": "lora_only"}, "'default' trains biases or whole modules"),
        ({"modules_to_save": ["norm_out"]}, "'default' trains biases or whole modules"),
        ({"target_modules": ["proj"]}, "linear modules, 'pos_embed.proj' has another kind"),
    ],
    ids=str,
)
def test_an_adapter_that_a_file_cannot_hold_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        lora_of(tuned(r=2, **config))


def test_other_adapters_are_refused():
    from peft import LoKrConfig

    with pytest.raises(ValueError, match="no adapter 'mine', it has: default"):
        lora_of(tuned(r=2), "mine")
    with pytest.raises(ValueError, match="no adapter 'default', it has: none"):
        lora_of(tiny.sd3())
    model = tiny.sd3()
    model.add_adapter(LoKrConfig(r=2, target_modules=["to_q"]))
    with pytest.raises(ValueError, match="expected a LoRA, 'default' is of type"):
        lora_of(model)


@pytest.mark.parametrize("metadata", [{"format": "mine"}, {"lora_adapter_metadata": "{}"}, {"steps": 5}])
def test_header_entries_that_a_file_cannot_hold_are_refused(tmp_path, metadata):
    with pytest.raises(ValueError, match="metadata: expected text, and names other than"):
        save_lora(tuned(r=2), tmp_path / "lora.safetensors", metadata=metadata)
    assert not list(tmp_path.iterdir())


# --- in ---


@pytest.mark.parametrize("kind", tiny.MODELS)
def test_what_was_saved_is_read_back(tmp_path, kind):
    model = tuned(kind, **CONFIGS["DoRA"])
    save_lora(model, tmp_path / "lora.safetensors")
    found = read_lora(tmp_path / "lora.safetensors", tiny.transformer(kind)).modules
    saved = lora_of(model).modules
    assert found.keys() == saved.keys()
    for name, change in saved.items():
        assert torch.equal(found[name].a, change.a) and torch.equal(found[name].b, change.b)
        assert_close(found[name].magnitude, change.magnitude)


def test_a_loaded_lora_is_an_adapter_of_diffusers(tmp_path):
    model = tuned("flux", r=2, lora_alpha=4)
    save_lora(model, tmp_path / "lora.safetensors")
    pipe = pipeline(tiny.flux())
    base, full = output(pipe.transformer, "flux"), output(model, "flux")
    load_lora(pipe, tmp_path / "lora.safetensors", "mine")
    assert pipe.get_list_adapters() == {"transformer": ["mine"]}
    assert_close(output(pipe.transformer, "flux"), full)
    pipe.set_adapters("mine", 0.0)
    assert_close(output(pipe.transformer, "flux"), base)
    pipe.set_adapters("mine", 1.0)
    pipe.fuse_lora()
    assert_close(output(pipe.transformer, "flux"), full)
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    assert_close(output(pipe.transformer, "flux"), base)
    assert dict(pipe.transformer.named_modules()).keys() == dict(tiny.flux().named_modules()).keys()


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("kind", ["sd3", "flux"])
def test_a_file_of_diffusers_has_the_scale_of_its_metadata(tmp_path, kind, config):
    model = tuned(kind, **config)
    layers, metadata = get_peft_model_state_dict(model), model.peft_config["default"].to_dict()
    type(pipeline(model)).save_lora_weights(tmp_path, layers, transformer_lora_adapter_metadata=metadata)
    pipe = pipeline(tiny.transformer(kind))
    load_lora(pipe, tmp_path / "pytorch_lora_weights.safetensors", "mine")
    assert_close(output(pipe.transformer, kind), output(model, kind))


def test_a_file_of_the_transformer_alone_has_no_prefix(tmp_path):
    model = tuned(r=2, lora_alpha=5)
    model.save_lora_adapter(tmp_path)
    assert_same(read_lora(tmp_path / "pytorch_lora_weights.safetensors", tiny.sd3()), deltas_of(model))


def test_without_alpha_it_is_the_rank(tmp_path):
    """As ai-toolkit writes files, and diffusers did."""
    model = tuned("flux", r=2, lora_alpha=2)
    layers: dict[str, Any] = get_peft_model_state_dict(model)
    layers = {f"transformer.{key}": tensor for key, tensor in layers.items()}
    save_file(layers, tmp_path / "lora.safetensors", {"name": "mine"})
    assert_same(read_lora(tmp_path / "lora.safetensors", tiny.flux()), deltas_of(model))


def test_a_folder_of_peft_has_the_scale_of_its_config(tmp_path):
    model = get_peft_model(
        tiny.sd3(),
        LoraConfig(r=2, lora_alpha=6, target_modules=["to_q", "to_k"], init_lora_weights=False),  # pyright: ignore[reportArgumentType]
    )
    model.save_pretrained(str(tmp_path))
    expected = {name.removeprefix("base_model.model."): d for name, d in deltas_of(model).items()}
    path = tmp_path / "adapter_model.safetensors"
    assert_same(read_lora(path, tiny.sd3()), expected)
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(ValueError, match=r"the scale of .* is in peft's 'adapter_config.json'"):
        read_lora(path, tiny.sd3())


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


def test_a_file_is_read_for_a_transformer_that_has_adapters(tmp_path):
    model = tuned(r=2)
    save_lora(model, tmp_path / "lora.safetensors")
    assert_same(read_lora(tmp_path / "lora.safetensors", model), deltas_of(tuned(r=2, lora_alpha=8)))


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


# --- what is refused ---


def refused(tmp_path: Any, tensors: dict[str, Tensor], message: str, kind: str = "sd3") -> None:
    save_file(tensors, tmp_path / "bad.safetensors")
    pipe = pipeline(tiny.transformer(kind))
    before = dict(pipe.transformer.named_modules())
    with pytest.raises(ValueError, match=message):
        load_lora(pipe, tmp_path / "bad.safetensors", "mine")
    assert dict(pipe.transformer.named_modules()) == before
    assert not hasattr(pipe.transformer, "peft_config")


GOOD = "transformer.transformer_blocks.0.attn.to_q"


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (pair("transformer.transformer_blocks.9.attn.to_q", 32, 32), r"blocks.9.attn.to_q': no such linear"),
        (pair("transformer.transformer_blocks.0.attn", 32, 32), r"blocks.0.attn': no such linear module"),
        (pair(f"{GOOD}.base_layer", 32, 32), "no such linear module"),
        (pair("lora_unet_joint_blocks_0_x_block_attn_qkv", 96, 32), "no such linear module"),
        (pair(GOOD[12:], 32, 32, seed=2), r"gives transformer_blocks.0.attn.to_q a second time"),
        (
            pair("transformer.transformer_blocks.1.attn.to_q", 32, 16),
            r"expected B and A of a \(32, 32\) weight, got \(32, 2\) and \(2, 16\)",
        ),
        ({"transformer.proj_out.lora_A.weight": drawn(2, 32)}, "proj_out': only one of A and B"),
        ({"transformer.proj_out.alpha": torch.tensor(1.0)}, "proj_out': only one of A and B"),
        ({f"{GOOD}.alpha": torch.ones(2)}, r"expected one number as alpha, got \(2,\)"),
        ({f"{GOOD}.dora_scale": torch.ones(32, 1)}, "dora_scale': not a key of a LoRA of linear modules"),
        ({f"{GOOD}.lora_B.bias": torch.ones(32)}, "lora_B.bias': not a key of a LoRA of linear modules"),
        (
            pair("transformer.proj_out", 16, 32)
            | {"transformer.proj_out.lora_magnitude_vector": torch.ones(16)},
            r"to_q': no magnitudes, which others have",
        ),
        ({f"{GOOD}.lora_magnitude_vector": torch.ones(1)}, r"expected 32 magnitudes, got \(1,\)"),
        (
            {
                "transformer.proj_out.lora_A.weight": drawn(2, 32),
                "transformer.proj_out.lora_B.weight": drawn(16, 3),
            },
            r"expected B \[O, R\] and A \[R, I\], got \(16, 3\) and \(2, 32\)",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_what_does_not_fit_is_refused_and_the_pipeline_is_as_it_was(tmp_path, tensors, message):
    whole = rf"path: '.*bad.safetensors' does not fit SD3Transformer2DModel in 1 places: .*{message}"
    refused(tmp_path, pair(GOOD, 32, 32) | tensors, whole)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (pair("lora_unet_double_blocks_19_img_attn_proj", 32, 32), "diffusers knows no such module"),
        (pair("lora_unet_single_blocks_0_linear1", 224, 32), "diffusers knows no such module .* this shape"),
        (pair("lora_unet_double_blocks_5_img_attn_proj", 32, 32), "transformer_blocks.5.* no such linear"),
        (pair("lora_unet_position_embedding", 32, 32), "diffusers drops it"),
        (
            pair("lora_unet_double_blocks_0_img_attn_qkv", 96, 32)
            | {"lora_unet_double_blocks_0_img_attn_qkv.lora_magnitude_vector": torch.ones(96)},
            "DoRA of a joint projection cannot be split",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_modules_of_kohya_that_do_not_fit_are_refused(tmp_path, tensors, message):
    refused(tmp_path, tensors, message, "flux")


def test_the_first_entries_that_do_not_fit_are_named_and_the_others_counted(tmp_path):
    tensors = {f"transformer.transformer_blocks.{b}.attn.to_q.mine": torch.ones(1) for b in range(10, 18)}
    message = r"in 8 places: '[^']*blocks.10.[^']*': [^;]*(; '[^']*': [^;]*){4}; and 3 more$"
    refused(tmp_path, pair(GOOD, 32, 32) | tensors, message)


@pytest.mark.parametrize("prefix", ["text_encoder.layers", "lora_te1_layers", "text_encoders.t5"])
def test_text_encoders_are_refused(tmp_path, prefix):
    tensors = pair(GOOD, 32, 32) | pair(f"{prefix}.q_proj", 8, 8)
    refused(tmp_path, tensors, "expected a LoRA of a transformer alone, .* trains 1 modules of text encoders")


def test_a_file_without_a_lora_is_refused(tmp_path):
    refused(tmp_path, {"model.weight": torch.ones(3)}, "none of its 1 keys is of one")


@pytest.mark.parametrize("config", ["{", "[]", "{}", '{"transformer.lora_alpha": null}'])
def test_a_damaged_config_is_refused(tmp_path, config):
    save_file(pair(GOOD, 32, 32), tmp_path / "lora.safetensors", {"lora_adapter_metadata": config})
    with pytest.raises(ValueError, match="expected an adapter config with 'lora_alpha' in 'lora_adapter"):
        read_lora(tmp_path / "lora.safetensors", tiny.sd3())


@pytest.mark.parametrize("name", ["lora.pt", "lora.bin", "lora.ckpt", "lora"])
def test_pickles_are_refused_by_name(tmp_path, name):
    (tmp_path / name).write_bytes(pickle.dumps({}))
    with pytest.raises(ValueError, match=r"path: expected a .safetensors file \(never a pickle\), got"):
        read_lora(tmp_path / name, tiny.sd3())
    with pytest.raises(ValueError, match=r"path: expected a .safetensors file"):
        save_lora(tuned(r=2), tmp_path / name)


def test_other_contents_are_refused(tmp_path):
    (tmp_path / "pickle.safetensors").write_bytes(pickle.dumps({}))
    for name in ("pickle.safetensors", "absent.safetensors"):
        with pytest.raises(ValueError, match=r"path: cannot read '.*' as safetensors"):
            read_lora(tmp_path / name, tiny.sd3())


@pytest.mark.parametrize("name", ["", "a.b", "first"])
def test_names_that_cannot_be_had_are_refused(name):
    pipe, lora = pipeline(tiny.sd3()), lora_of(tuned(r=2))
    add_lora(pipe, lora, "first")
    with pytest.raises(ValueError, match="name: expected a new name without dots, got"):
        add_lora(pipe, lora, name)


@pytest.mark.parametrize("others", [(), ("first", "second")])
def test_a_load_that_fails_halfway_leaves_the_pipeline_as_it_was(monkeypatch, others):
    pipe = pipeline(tiny.sd3())
    for name in others:
        add_lora(pipe, lora_of(tuned(r=2, target_modules=["to_q", "proj_out"])), name)
    before, expected = list(pipe.transformer.named_modules()), output(pipe.transformer)
    weights = {name: tensor.clone() for name, tensor in pipe.transformer.state_dict().items()}

    def full(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr("peft.set_peft_model_state_dict", full)
    with pytest.raises(RuntimeError, match="out of memory"):
        add_lora(pipe, lora_of(tuned(r=3)), "third")
    assert list(pipe.transformer.named_modules()) == before
    kept = pipe.transformer.state_dict()
    assert kept.keys() == weights.keys() and all(torch.equal(kept[name], weights[name]) for name in kept)
    # Where inputs lie in memory changes the rounding of some CPUs.
    assert_close(output(pipe.transformer), expected, rtol=1e-12, atol=1e-12)
    assert hasattr(pipe.transformer, "peft_config") == bool(others)
    assert pipe.get_active_adapters() == list(others[-1:])


def test_nothing_of_an_adapter_stays_whose_name_torch_refuses():
    pipe, lora = pipeline(tiny.sd3()), lora_of(tuned(r=2))
    add_lora(pipe, lora, "first")
    with pytest.raises(KeyError, match="'keys'"):  # a method of torch's dictionary of modules
        add_lora(pipe, lora, "keys")
    layers = [module for module in pipe.transformer.modules() if isinstance(module, Linear)]
    assert layers and all(list(layer.r) == ["first"] for layer in layers)


def test_a_lora_of_another_model_is_refused():
    with pytest.raises(ValueError, match=r"^lora: it does not fit FluxTransformer2DModel in \d+ places"):
        add_lora(pipeline(tiny.flux()), lora_of(tuned(r=2)), "mine")


def test_a_pipeline_without_a_transformer_is_refused(tmp_path):
    pipe = pipeline(tiny.sd3())
    pipe.transformer = None
    with pytest.raises(ValueError, match="pipe: expected a pipeline with a transformer, got Stable"):
        load_lora(pipe, tmp_path / "lora.safetensors", "mine")


def test_a_missing_peft_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match=r"pip install 'dit-heads\[train\]'"):
        lora_of(tiny.sd3())
