"""The frozen model: which modules get a LoRA, number formats, encoders against the stock pipelines' own."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusion3InpaintPipeline
from PIL import Image
from torch import Tensor
from torch.testing import assert_close

from dit_heads.loras import base
from dit_heads.loras.adapter import add_adapter, targeted
from dit_heads.loras.base import drop_text_encoders, fill, latent_encoder, load_base, text_encoder
from dit_heads.loras.config import AdapterConfig
from dit_heads.loras.sets.dataset import SetDataset
from tests import tiny
from tests.saved import PIPELINES, tiny_pipeline

CPU = torch.device("cpu")


# --- targets ---


def ends(kind: str, **options: Any) -> Counter[str]:
    """How often each name within a block is targeted."""
    names = targeted(tiny.transformer(kind), AdapterConfig(**options))
    return Counter(name.split(".", 2)[2] for name in names)


def times(count: int, *names: str, prefix: str = "attn.") -> dict[str, int]:
    return {prefix + name: count for name in names}


def test_attention_of_sd3_leaves_out_what_the_last_block_lacks():
    every = times(4, "to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj")
    assert ends("sd3") == every | times(3, "to_add_out")
    second = times(3, "to_q", "to_k", "to_v", "to_out.0", prefix="attn2.")
    assert ends("sd3.5-medium") == every | times(3, "to_add_out") | second


def test_attention_of_flux_is_that_of_both_kinds_of_blocks():
    double = times(2, "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    assert ends("flux") == times(4, "to_q", "to_k", "to_v") | double


def test_mlps_and_modulation():
    both = AdapterConfig(targets=("mlp", "modulation"))
    mlp = times(4, "net.0.proj", "net.2", prefix="ff.") | times(
        3, "net.0.proj", "net.2", prefix="ff_context."
    )
    norms = times(4, "norm1.linear", "norm1_context.linear", prefix="")
    assert ends("sd3", targets=both.targets) == mlp | norms
    ff = times(2, "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2", prefix="")
    norms = times(2, "norm1.linear", "norm1_context.linear", "norm.linear", prefix="")
    assert ends("flux", targets=both.targets) == ff | norms | times(2, "proj_mlp", "proj_out", prefix="")


def test_blocks_are_numbered_through_and_matched_whole():
    names = targeted(tiny.flux(), AdapterConfig(targets=("to_q",), blocks="L1-2"))
    assert names == ["single_transformer_blocks.0.attn.to_q", "transformer_blocks.1.attn.to_q"]
    twelve = tiny.sd3()
    twelve.transformer_blocks.extend([*tiny.sd3().transformer_blocks, *tiny.sd3().transformer_blocks])
    named = targeted(twelve, AdapterConfig(targets=("attn.to_q",), blocks="L1"))
    assert named == ["transformer_blocks.1.attn.to_q"]  # neither block 10 nor 11


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": ("to_qq", "mlp")}, "targets: expected some of attention, mlp, .*attn.to_q.*; got to_qq"),
        ({"targets": ()}, "targets: .*; got none"),
        ({"targets": ("o_q",)}, "got o_q"),
        ({"targets": ("to_add_out",), "blocks": "L3"}, "got to_add_out"),
        ({"blocks": "L4"}, "blocks: expected blocks of L0-3, got 'L4'"),
        ({"blocks": "L0H1"}, "blocks: "),
    ],
)
def test_modules_that_are_not_there_are_named(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        targeted(tiny.sd3(), AdapterConfig(**options))


# --- the adapter ---


def output(model: Any, kind: str) -> Tensor:
    with torch.no_grad():
        return model(**tiny.inputs(2, kind, dtype=model.dtype), return_dict=False)[0]


def trained(model: Any) -> dict[str, Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("kind", tiny.MODELS)
@pytest.mark.parametrize("dora", [False, True])
def test_a_new_adapter_changes_nothing_and_its_gradient_is_not_zero(kind: str, dora: bool):
    model = tiny.transformer(kind).float().requires_grad_(False)
    before = output(model, kind)
    add_adapter(model, AdapterConfig(rank=3, dora=dora, targets=("attention", "mlp", "modulation")), 0)
    assert_close(output(model, kind), before, rtol=0, atol=2e-4 if dora else 0)
    model(**tiny.inputs(2, kind, dtype=torch.float32), return_dict=False)[0].square().mean().backward()
    found = trained(model)
    assert {name.split(".lora_")[1].split(".")[0] for name in found} == {"A", "B"} | (
        {"magnitude_vector"} if dora else set()
    )
    still = {name for name, p in found.items() if ".lora_B" in name and (p.grad is None or not p.grad.any())}
    # What the text asks in SD3's last block is read by nobody.
    unread = {"transformer_blocks.3.attn.add_q_proj.lora_B.default.weight"}
    assert still == (set() if kind == "flux" else unread)


def test_only_the_adapter_trains_in_float32_on_a_base_in_bfloat16():
    model = tiny.sd3(dtype=torch.bfloat16).requires_grad_(False)
    add_adapter(model, AdapterConfig(rank=3), 0)
    assert {p.dtype for p in trained(model).values()} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
    assert all(".lora_" in name for name in trained(model))


@pytest.mark.parametrize(("alpha", "scale"), [(None, 1.0), (6.0, 2.0)])
def test_a_change_is_scaled_by_alpha_over_rank(alpha: float | None, scale: float):
    model: Any = tiny.sd3()
    add_adapter(model, AdapterConfig(rank=3, alpha=alpha, targets=("attn.to_q",), blocks="L2"), 0)
    layer: Any = model.transformer_blocks[2].attn.to_q
    a, b = layer.lora_A.default.weight, layer.lora_B.default.weight
    assert a.shape == (3, 32) and b.shape == (32, 3) and not b.any()
    torch.nn.init.ones_(b)
    assert_close(layer.get_delta_weight("default"), scale * b @ a)


def test_first_weights_depend_on_the_seed_alone():
    def first(seed: int) -> list[Tensor]:
        model = tiny.sd3()
        torch.manual_seed(seed + 100)
        expected = torch.rand(1)
        torch.manual_seed(seed + 100)
        add_adapter(model, AdapterConfig(rank=2), seed % 2)
        assert torch.equal(torch.rand(1), expected)  # nobody else's random numbers are touched
        return [p.detach() for name, p in trained(model).items() if ".lora_A" in name]

    zero, again, one = first(0), first(2), first(1)
    assert all(torch.equal(a, b) for a, b in zip(zero, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(zero, one, strict=True))


# --- loading ---


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    tiny_pipeline().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("name", "precision", "dtype"),
    [
        ("auto", "no", torch.float32),
        ("auto", "bf16", torch.bfloat16),
        ("auto", "fp16", torch.float16),
        ("float32", "bf16", torch.float32),
        ("bfloat16", "fp16", torch.bfloat16),
    ],
)
def test_the_base_is_in_the_format_asked_for_and_frozen(
    model: str, name: str, precision: str, dtype: torch.dtype
):
    pipe = load_base(model, name, precision, CPU)
    assert pipe.transformer.dtype == dtype and pipe.vae.dtype == torch.float32
    parts = [pipe.transformer, pipe.vae, pipe.text_encoder, pipe.text_encoder_2, pipe.text_encoder_3]
    assert not any(p.requires_grad for part in parts for p in part.parameters())


@pytest.mark.parametrize(
    ("name", "precision", "message"),
    [
        ("bfloat16", "no", "base: expected float32 for precision 'no', got 'bfloat16'"),
        ("8bit", "no", "base: expected float32 for precision 'no', got '8bit'"),
        ("8bit", "bf16", "base: 8 bits need a CUDA GPU"),
    ],
)
def test_bases_that_cannot_be_had(model: str, name: str, precision: str, message: str, monkeypatch: Any):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(ValueError, match=message):
        load_base(model, name, precision, CPU)


def test_8_bits_need_bitsandbytes_and_files_of_their_own(model: str, monkeypatch: Any):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ValueError, match="base: 8 bits need bitsandbytes: pip install bitsandbytes"):
        load_base(model, "8bit", "bf16", CPU)
    with pytest.raises(ValueError, match="base: 8bit is for a folder or a model of the hub, got 'embedded'"):
        load_base("embedded", "8bit", "bf16", CPU)


def test_another_kind_of_pipeline_is_refused(monkeypatch: pytest.MonkeyPatch):
    """One without a transformer too."""
    other = StableDiffusion3InpaintPipeline(**tiny_pipeline().components)
    for kind, name in ((other, "StableDiffusion3InpaintPipeline"), (object(), "object")):
        monkeypatch.setattr(base, "load_pipeline", lambda *_, kind=kind: kind)
        with pytest.raises(ValueError, match=f"model: expected a StableDiffusion3Pipeline or .* is a {name}"):
            load_base("it", "auto", "no", CPU)


# --- encoders ---


def sets(root: Path) -> SetDataset:
    """A set of two panels of noise."""
    g = torch.Generator().manual_seed(0)
    (root / "set").mkdir(parents=True)
    for p in range(2):
        noise = torch.randint(0, 256, (64, 64, 3), dtype=torch.uint8, generator=g)
        Image.fromarray(noise.numpy()).save(root / f"set/{p}.png")
    (root / "set/caption.txt").write_text("a pair")
    return SetDataset(root, rows=1, columns=2, buckets=[(64, 64)], flip=True)


@pytest.mark.parametrize("kind", PIPELINES)
@torch.no_grad()
def test_latents_are_the_autoencoders_mean_as_the_model_reads_it(kind: str, tmp_path: Path):
    pipe: Any = PIPELINES[kind]()
    sample = sets(tmp_path / "sets")[0]
    latents = latent_encoder(pipe, tmp_path / "cache")(sample)["latents"]
    pixels = torch.tensor(list(sample.composite().get_flattened_data())).view(64, 128, 3) / 127.5 - 1
    mean = pipe.vae.encode(pixels.permute(2, 0, 1)[None]).latent_dist.mean[0]
    assert latents.shape == (4, 32, 64)  # this autoencoder shrinks twice
    assert_close(latents, (mean - 0.06) * 1.5)
    # The stock pipeline decodes them to what the autoencoder makes of the picture.
    shown = pipe.vae.decode((latents[None] / pipe.vae.config.scaling_factor) + pipe.vae.config.shift_factor)
    assert_close(shown.sample, pipe.vae.decode(mean[None]).sample, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", PIPELINES)
@pytest.mark.parametrize("tokens", [None, 20])
def test_texts_are_the_pipelines_own_embeddings(kind: str, tokens: int | None, tmp_path: Path):
    pipe: Any = PIPELINES[kind]()
    found = text_encoder(pipe, tmp_path, tokens)("a cat on a mat")
    call: dict[str, Any] = {
        "prompt_2": None,
        "max_sequence_length": tokens or {"sd3": 256, "flux": 512}[kind],
    }
    call |= {"prompt_3": None} if kind == "sd3" else {}
    with torch.no_grad():
        theirs = pipe.encode_prompt("a cat on a mat", **call)
    pooled = theirs[2] if kind == "sd3" else theirs[1]
    assert torch.equal(found["text"], theirs[0][0]) and torch.equal(found["pooled"], pooled[0])
    length = tokens or {"sd3": 256, "flux": 512}[kind]
    assert len(found["text"]) == length + (32 if kind == "sd3" else 0)  # SD3: CLIP's come before


class Counting:
    """Counts the calls of a method of a pipeline's part."""

    def __init__(self, part: Any, name: str) -> None:
        self.count, self.inner = 0, getattr(part, name)
        setattr(part, name, self)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.count += 1
        return self.inner(*arguments, **options)


def test_encoding_does_not_repeat_for_each_caption_that_clip_reads_less(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    pipe: Any = PIPELINES["sd3"]()
    text_encoder(pipe, tmp_path, 8)("many words " * 50)
    assert "truncated" not in caplog.text
    pipe.encode_prompt("many words " * 50, None, None)
    assert "truncated" in caplog.text


def test_pictures_are_encoded_once_until_the_autoencoder_changes(tmp_path: Path):
    pipe, data = tiny_pipeline(), sets(tmp_path / "sets")
    counted = Counting(pipe.vae, "encode")
    fill(latent_encoder(pipe, tmp_path / "cache"), list(data.views()), "pictures", show=False)
    assert counted.count == 2  # as it is, and mirrored
    fill(latent_encoder(pipe, tmp_path / "cache"), list(data.views()), "pictures", show=False)
    assert counted.count == 2
    pipe.vae.register_to_config(scaling_factor=2.0)
    latent_encoder(pipe, tmp_path / "cache")(data[0])
    assert counted.count == 3
    next(pipe.vae.decoder.parameters()).data += 1
    latent_encoder(pipe, tmp_path / "cache")(replace(data[0], caption="other"))
    assert counted.count == 4


def test_texts_are_encoded_once_until_something_changes(tmp_path: Path):
    pipe: Any = tiny_pipeline()
    counted = Counting(pipe, "encode_prompt")

    def encode(tokens: int | None = None) -> int:
        text_encoder(pipe, tmp_path, tokens)("a cat")
        return counted.count

    assert [encode(), encode(), encode(256), encode(128), encode(128)] == [1, 1, 1, 2, 2]
    next(pipe.text_encoder_2.parameters()).data += 1
    assert [encode(), encode()] == [3, 3]
    pipe.text_encoder_3.to(torch.bfloat16)
    assert [encode(), encode()] == [4, 4]
    pipe.tokenizer.add_tokens(["cat"])
    pipe.text_encoder.resize_token_embeddings(64)
    assert [encode(), encode()] == [5, 5]
    pipe.text_encoder_3 = None
    assert [encode(), encode()] == [6, 6]


@pytest.mark.parametrize("kind", PIPELINES)
def test_a_pipeline_without_text_encoders_draws_from_the_cache(kind: str, tmp_path: Path):
    pipe: Any = PIPELINES[kind]()
    texts = text_encoder(pipe, tmp_path, 16)
    texts("a cat")
    drop_text_encoders(pipe)
    assert not any(part for name, part in pipe.components.items() if name.startswith("text_encoder"))
    found = texts("a cat")
    pipe.set_progress_bar_config(disable=True)
    call: dict[str, Any] = {
        "prompt_embeds": found["text"][None],
        "pooled_prompt_embeds": found["pooled"][None],
    }
    options: dict[str, Any] = {"height": 32, "width": 32, "num_inference_steps": 1, "guidance_scale": 1.0}
    assert pipe(**call, **options).images[0].size == (32, 32)
