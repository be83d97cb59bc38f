"""Files and adapters that are refused, with the pipeline as it was."""

import pickle
import sys
from typing import Any

import pytest
import torch
from peft.tuners.lora import Linear
from safetensors.torch import save_file
from torch import Tensor
from torch.testing import assert_close

from dit_heads.errors import InputError
from dit_heads.loras.weights.files import add_lora, load_lora, lora_of, save_lora
from dit_heads.loras.weights.formats import read_lora
from tests import tiny
from tests.loras.weights.made import GOOD, drawn, output, pair, pipeline, tuned
from tests.shapes import shapes_unchecked

# --- what is refused ---


def refused(tmp_path: Any, tensors: dict[str, Tensor], message: str, kind: str = "sd3") -> None:
    save_file(tensors, tmp_path / "bad.safetensors")
    pipe = pipeline(tiny.transformer(kind))
    before = dict(pipe.transformer.named_modules())
    with pytest.raises(ValueError, match=message):
        load_lora(pipe, tmp_path / "bad.safetensors", "mine")
    assert dict(pipe.transformer.named_modules()) == before
    assert not hasattr(pipe.transformer, "peft_config")


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
    with shapes_unchecked():
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


@pytest.mark.parametrize("end", [RuntimeError("out of memory"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("others", [(), ("first", "second")])
def test_a_load_that_ends_halfway_leaves_the_pipeline_as_it_was(monkeypatch, others, end):
    pipe = pipeline(tiny.sd3())
    for name in others:
        add_lora(pipe, lora_of(tuned(r=2, target_modules=["to_q", "proj_out"])), name)
    before, expected = list(pipe.transformer.named_modules()), output(pipe.transformer)
    weights = {name: tensor.clone() for name, tensor in pipe.transformer.state_dict().items()}

    def halfway(*_: Any, **__: Any) -> None:
        raise end

    monkeypatch.setattr("peft.set_peft_model_state_dict", halfway)
    with pytest.raises(type(end)):
        add_lora(pipe, lora_of(tuned(r=3)), "third")
    assert list(pipe.transformer.named_modules()) == before
    kept = pipe.transformer.state_dict()
    assert kept.keys() == weights.keys() and all(torch.equal(kept[name], weights[name]) for name in kept)
    # Where inputs lie in memory changes the rounding of some CPUs.
    assert_close(output(pipe.transformer), expected, rtol=1e-12, atol=1e-12)
    assert hasattr(pipe.transformer, "peft_config") == bool(others)
    assert pipe.get_active_adapters() == list(others[-1:])
    monkeypatch.undo()
    add_lora(pipe, lora_of(tuned(r=3)), "third")
    assert pipe.get_active_adapters() == ["third"]


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
