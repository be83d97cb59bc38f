"""The instruct task: what a run asks, what it leaves out, and that it trains, saves, loads and draws."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, FluxTransformer2DModel, SD3Transformer2DModel
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from dit_heads.embedded.pairs import WorldPairs
from dit_heads.embedded.world.text import unknown_words
from dit_heads.errors import InputError
from dit_heads.families.velocity import velocity_of
from dit_heads.loras.adapter import add_adapter
from dit_heads.loras.base import latents_of
from dit_heads.loras.config import AdapterConfig, InstructConfig, TrainConfig, config_of
from dit_heads.loras.tasks.instruct import Instruct
from dit_heads.loras.tasks.loss import FlowLoss
from dit_heads.loras.tasks.task import EMPTY_CAPTION, Example
from dit_heads.loras.train import train
from dit_heads.pipelines.instruct import InstructPipeline, with_instruct_lora
from dit_heads.tasks.instructions import fill, frame_of, phrases
from dit_heads.training.loop import Part
from dit_heads.training.widen import input_of, widen
from tests.saved import PIPELINES, tiny_pipeline

SIDE = 32
# The tokenizers of tiny pipelines read letters, so that an instruction is longer than their limit.
pytestmark = pytest.mark.filterwarnings("ignore:.*these words are lost")
WAYS = [(kind, way) for kind in PIPELINES for way in ("channels", "tokens")]


def settings(model: Path, out: Path, way: str = "channels", **sections: dict[str, Any]) -> TrainConfig:
    chosen: dict[str, dict[str, Any]] = {
        "data": {"encode": "lazy", "text_tokens": 8, "sizes": [[SIDE, SIDE]], "flip": True},
        "adapter": {"rank": 2, "targets": ["to_q"]},
        "optimization": {
            "steps": 2,
            "batch_size": 2,
            "warmup": 0,
            "learning_rate": 0.05,
            "ema": 0.0,
            "precision": "no",
        },
        "watch": {"sample_every": 2, "sample_steps": 2, "guidance_scale": 1.0},
        "instruct": {"conditioning": way, "scenes": 5, "validation_scenes": 1, "tasks": ["segment", "depth"]},
    }
    merged = {name: {**chosen.get(name, {}), **sections.get(name, {})} for name in {**chosen, **sections}}
    return config_of({"task": "instruct", "model": str(model), "out": str(out), **merged})


def test_a_run_uses_many_instructions_and_none_that_are_kept_for_tests():
    asked = Instruct.of(config_of({"task": "instruct", "model": "embedded"})).asked
    batch = asked.batch_at(0, 200)
    kept = {fill(p, q.query) for q in batch for p in phrases(frame_of(q.query), "unseen")}
    words = {q.words for q in batch}
    assert len(words) > 100
    assert not words & kept
    assert not any(unknown_words(text) for text in words)


# --- what is left out ---


class StandIn:
    """Encoders that put out a constant."""

    def latents(self, picture: Any) -> dict[str, torch.Tensor]:
        return {"latents": torch.ones(4, 16, 16)}


@pytest.mark.parametrize("way", ["channels", "tokens"])
def test_text_picture_and_both_are_left_out_in_equal_shares(
    way: str, models: dict[str, Path], tmp_path: Path
):
    config = settings(models["sd3"], tmp_path, way, instruct={"dropout": 0.1, "scenes": 40})
    task = Instruct.of(config)
    task.encoders = StandIn()  # pyright: ignore[reportAttributeAccessIssue]
    found: Counter[tuple[bool, bool]] = Counter()
    for step in range(100):
        for example in task.examples(Part(step, 0, 1), 20):
            source = example.source if way == "channels" else example.reference
            assert source is not None and (example.source is None) == (way == "tokens")
            found[example.prompt == EMPTY_CAPTION, not source.any()] += 1
            assert example.latents.all() and not example.droppable
    shares = [found[kind] / 2000 for kind in ((True, False), (False, True), (True, True))]
    assert all(0.08 < share < 0.12 for share in shares)


def test_a_batch_in_parts_is_the_batch(models: dict[str, Path], tmp_path: Path):
    task = Instruct.of(settings(models["sd3"], tmp_path))
    task.encoders = StandIn()  # pyright: ignore[reportAttributeAccessIssue]
    whole = [e.prompt for e in task.examples(Part(3, 0, 1), 6)]
    parts = [[e.prompt for e in task.examples(Part(3, k, 2), 6)] for k in range(2)]
    assert whole[0::2] == parts[0] and whole[1::2] == parts[1]


def test_flat_answers_get_noisier_levels(models: dict[str, Path], tmp_path: Path):
    chosen = {"mask_shift": 3.0, "dropout": 0.0, "paraphrase": False}
    task = Instruct.of(settings(models["sd3"], tmp_path, instruct=chosen))
    task.encoders = StandIn()  # pyright: ignore[reportAttributeAccessIssue]
    for example in task.examples(Part(0, 0, 1), 5):
        assert example.shift == (1.0 if "depth" in example.prompt.lower() else 3.0)


# --- a run ---


@pytest.mark.parametrize(("kind", "way"), WAYS)
def test_a_run_trains_saves_loads_and_draws(kind: str, way: str, models: dict[str, Path], tmp_path: Path):
    config = settings(models[kind], tmp_path / "run", way)
    file = train(config)
    head, row = (config.out / "validation.csv").read_text().split("\n")[:2]
    assert head == "step,loss,segment error,depth error" and row.startswith("2,")
    assert (config.out / "README.md").read_text().count("the task instruct, trained for 2 steps") == 1
    stored = np.asarray(Image.open(config.out / "samples/step-000002-depth-0.png")).astype(int)

    pipe: Any = DiffusionPipeline.from_pretrained(models[kind])
    pipe.set_progress_bar_config(disable=True)
    see = with_instruct_lora(pipe, file)
    assert (see.conditioning, see.text_tokens) == (way, 8)
    held_out = Instruct.of(config).held_out
    assert held_out is not None
    question = held_out.asked(0, "depth", 0, "validation")
    image = see(
        question.source.composite(),
        question.words,
        image_guidance_scale=1.0,
        guidance_scale=1.0,
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(config.seed),
    ).images[0]
    assert np.abs(np.asarray(image).astype(int) - stored).max() <= 1


@pytest.mark.parametrize("kind", PIPELINES)
def test_encoding_all_before_or_each_when_needed_trains_the_same(
    kind: str, models: dict[str, Path], tmp_path: Path
):
    for encode in ("all", "lazy"):
        watch = {"sample_every": 0}
        train(settings(models[kind], tmp_path / encode, data={"encode": encode}, watch=watch))
    a, b = (load_file(tmp_path / encode / "lora.safetensors") for encode in ("all", "lazy"))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(("kind", "way"), WAYS)
def test_one_step_is_the_gradient_of_the_loss_written_out(
    kind: str, way: str, models: dict[str, Path], tmp_path: Path
):
    pipe: Any = PIPELINES[kind]()
    config = settings(models[kind], tmp_path, way)
    if way == "channels":
        widen(pipe.transformer, 4)
        torch.nn.init.normal_(pipe.transformer.get_submodule(input_of(pipe.transformer).path).weight.data)
    latents, source = (torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(k)) for k in (1, 2))
    place = {"channels": "source", "tokens": "reference"}[way]
    example = Example("a", latents, **{place: source}, droppable=False, shift=2.0)  # pyright: ignore
    text, pooled = torch.randn(1, 3, 32), torch.randn(1, 16 if kind == "flux" else 32)

    class One:
        extra_channels = 4 if way == "channels" else 0
        embed = staticmethod(lambda prompts: (text, pooled))
        examples = staticmethod(lambda part, size: [example])
        prior = staticmethod(lambda part, size: [])

    options: Any = {"batch_size": 1, "seed": 0, "scheduler": pipe.scheduler.config}
    loss_of = FlowLoss(pipe.transformer, One(), config.loss, **options)  # pyright: ignore
    with torch.no_grad():
        batch = loss_of._noised([example], Part(0, 0, 1), "set")
        seen: Any = {place: source[None]}
        x = (1 - batch.sigmas) * latents + batch.sigmas * batch.noise
        v = velocity_of(pipe.transformer, text, pooled, **seen)(x, batch.sigmas)
        loss, _ = loss_of(Part(0, 0, 1), torch.Generator())
    assert_close(loss, (v - (batch.noise - latents)).pow(2).mean())


@pytest.mark.parametrize("kind", PIPELINES)
def test_decoded_pixels_may_count_too(kind: str, models: dict[str, Path], tmp_path: Path):
    """The prediction v implies the clean latents x - s v."""
    pipe: Any = PIPELINES[kind]()
    config = settings(models[kind], tmp_path, "tokens", loss={"pixel_weight": 2.0})
    latents, source = (torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(k)) for k in (1, 2))
    example = Example("a", latents, reference=source)
    text, pooled = torch.randn(1, 3, 32), torch.randn(1, 16 if kind == "flux" else 32)
    task: Any = SimpleNamespace(
        extra_channels=0, embed=lambda _: (text, pooled), examples=lambda *_: [example], prior=lambda *_: []
    )
    options: Any = {"batch_size": 1, "seed": 0, "scheduler": pipe.scheduler.config, "vae": pipe.vae}
    loss_of = FlowLoss(pipe.transformer, task, config.loss, **options)
    loss, _ = loss_of(Part(0, 0, 1), torch.Generator())
    gradient = torch.autograd.grad(loss, pipe.transformer.proj_out.weight)[0]
    assert gradient.abs().max() > 0
    batch = loss_of._noised([example], Part(0, 0, 1), "set")
    s = batch.sigmas.view(-1, 1, 1, 1)
    x = (1 - s) * latents + s * batch.noise
    with torch.no_grad():
        v = velocity_of(pipe.transformer, text, pooled, reference=source[None])(x, batch.sigmas)
        pixels, right = (pipe.vae.decode(t / 1.5 + 0.06).sample for t in (x - s * v, latents[None]))
    expected = (v - (batch.noise - latents)).pow(2).mean() + 2.0 * (pixels - right).abs().mean()
    assert_close(loss.detach(), expected)


def test_a_lora_of_another_task_is_refused(models: dict[str, Path], tmp_path: Path):
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="path: expected a LoRA of the task instruct, got"):
        with_instruct_lora(tiny_pipeline(), tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="path: cannot read"):
        with_instruct_lora(tiny_pipeline(), tmp_path / "none.safetensors")


# --- real architectures, without weights ---


@pytest.mark.parametrize(
    ("make", "channels"),
    [
        (lambda: SD3Transformer2DModel(num_layers=2, pos_embed_max_size=192), 32),
        (
            lambda: SD3Transformer2DModel(
                num_layers=2, dual_attention_layers=(0, 1), qk_norm="rms_norm", pos_embed_max_size=384
            ),
            32,
        ),
        (lambda: FluxTransformer2DModel(num_layers=1, num_single_layers=1, guidance_embeds=True), 128),
    ],
    ids=["sd3-medium", "sd3.5-medium", "flux.1"],
)
def test_real_architectures_are_widened_and_get_a_lora(make: Any, channels: int):
    with torch.device("meta"):
        transformer: Any = make()
    widen(transformer, 16)
    assert transformer.config.in_channels == channels and transformer.out_channels == channels // 2
    where = input_of(transformer).path
    assert transformer.get_submodule(where).weight.is_meta
    add_adapter(transformer, AdapterConfig(rank=4), 0, [where])
    assert any(
        "lora_B" in name and where in name for name, p in transformer.named_parameters() if p.requires_grad
    )


# --- what cannot be honoured ---


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"data": {"sizes": [[32, 48]]}}, "sizes: expected a square size for scenes of the world"),
        ({"data": {"sizes": [[288, 288]]}}, "sizes: expected pictures that this model reads within 256"),
        ({"adapter": {"dora": True}}, "dora: expected false for the task instruct"),
    ],
)
def test_what_cannot_be_trained_is_told_first(
    sections: dict[str, Any], message: str, models: dict[str, Path], tmp_path: Path, monkeypatch: Any
):
    monkeypatch.setattr("dit_heads.loras.train.load_base", lambda *_: pytest.fail("loaded"))
    with pytest.raises(InputError, match=message):
        train(settings(models["sd3"], tmp_path / "run", **sections))


def test_a_panel_counts_for_the_position_table(models: dict[str, Path], tmp_path: Path):
    with pytest.raises(
        InputError, match="got 144 x 144, which it reads as 288 with the conditioning 'tokens'"
    ):
        train(settings(models["sd3"], tmp_path / "run", "tokens", data={"sizes": [[144, 144]]}))


def test_weights_have_to_fit_the_tasks():
    with pytest.raises(InputError, match="task_weights: expected 2, one a task, got 1"):
        InstructConfig(tasks=("depth", "segment"), task_weights=(1.0,))
    with pytest.raises(InputError, match="task_weights: expected numbers not all of which are 0"):
        InstructConfig(tasks=("depth",), task_weights=(0.0,))


def test_a_source_is_encoded_as_a_pipeline_encodes_it(models: dict[str, Path]):
    pipe: Any = DiffusionPipeline.from_pretrained(models["sd3"])
    image = WorldPairs("train", 1, SIDE).picture(0)
    edit = InstructPipeline(pipe, "tokens")
    ours = edit.latents([torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255])
    assert_close(ours[0], latents_of(pipe, image), atol=1e-5, rtol=1e-5)
