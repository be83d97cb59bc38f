"""LoRA files, out and in: what stock diffusers loads is what was trained."""

import json
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from dit_heads.loras.weights.files import load_lora, lora_of, save_lora
from dit_heads.loras.weights.formats import read_lora
from tests import tiny
from tests.loras.weights.made import (
    CONFIGS,
    assert_same,
    deltas_of,
    output,
    pipeline,
    tuned,
)

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


def test_a_file_is_read_for_a_transformer_that_has_adapters(tmp_path):
    model = tuned(r=2)
    save_lora(model, tmp_path / "lora.safetensors")
    assert_same(read_lora(tmp_path / "lora.safetensors", model), deltas_of(tuned(r=2, lora_alpha=8)))
