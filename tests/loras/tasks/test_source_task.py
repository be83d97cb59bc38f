"""A second task carries the whole protocol: a source picture on the channel axis, encoded when it is needed.

The task is to repaint a picture as a caption says. It is made of what any task has, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.testing import assert_close

from dit_heads.errors import InputError
from dit_heads.families.velocity import velocity_of
from dit_heads.io.fingerprints import content_hash
from dit_heads.loras.base import Encoders, latents_of
from dit_heads.loras.config import TrainConfig, config_of
from dit_heads.loras.tasks import TASKS, Drawing, Example
from dit_heads.loras.tasks.drawing import prompt_arguments, sampling_arguments
from dit_heads.loras.train import train
from dit_heads.loras.weights.compose import compose
from dit_heads.loras.weights.files import load_lora, lora_of
from dit_heads.loras.weights.formats import read_lora
from dit_heads.training.checkpoints import read_average
from dit_heads.training.loop import Part
from dit_heads.training.sampler import draws_at
from dit_heads.training.widen import input_of, reading, widen
from tests.saved import PIPELINES

SIDE = 32
CAPTIONS = ("a red one", "a blue one", "a grey one", "never drawn")


@dataclass(frozen=True)
class Plain:
    """A picture of one colour with a white corner."""

    colour: str
    source: str = "made here"

    @property
    def key(self) -> str:
        return content_hash(self.colour)

    def composite(self) -> Image.Image:
        image = Image.new("RGB", (SIDE, SIDE), self.colour)
        image.paste("white", (0, 0, 12, 20))
        return image


class Repaint:
    """Latents of a grey picture beside the noise of a coloured one."""

    extra_channels = 4

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.pairs = [(Plain("black"), caption, Plain(caption.split()[1])) for caption in CAPTIONS[:3]]
        self.offset: Any = nn.Module()  # a part that is trained beside the transformer
        self.offset.text = nn.Parameter(torch.zeros(32))
        self.planned: torch.device | None = None

    def plan(self, transformer: nn.Module) -> None:
        self.planned = next(transformer.parameters()).device

    def prepare(self, encoders: Encoders) -> None:
        self.encoders = encoders
        encoders.fill(CAPTIONS, [target for *_, target in self.pairs])

    def contents(self) -> Mapping[str, Mapping[str, list[str]]]:
        return {"root": {caption: [target.key, ""] for _, caption, target in self.pairs}}

    def parts(self) -> Mapping[str, nn.Module]:
        return {"offset": self.offset}

    def examples(self, part: Part, batch_size: int) -> list[Example]:
        draws = draws_at(part.step, batch_size, [range(len(self.pairs))], self.config.seed)
        return [self.example(index) for index, _ in draws[part.index :: part.count]]

    def example(self, index: int) -> Example:
        source, caption, target = self.pairs[index]
        source, target = (self.encoders.latents(each)["latents"] for each in (source, target))
        return Example(caption, target, source=source)

    def prior(self, part: Part, batch_size: int) -> list[Example]:
        return []

    def validation(self) -> Iterator[Example]:
        yield self.example(0)

    def embed(self, prompts: Sequence[Any]) -> tuple[Tensor, Tensor]:
        text, pooled = self.encoders.embed(prompts)
        return text + self.offset.text, pooled

    def drawings(self, pipe: Any) -> Iterator[Drawing]:
        source, caption, _ = self.pairs[0]
        latents = self.encoders.latents(source)["latents"][None]
        with reading(pipe.transformer, latents):
            call = sampling_arguments(self.config.watch, SIDE, SIDE, 5)
            image = pipe(**prompt_arguments(pipe, self.encoders, caption), **call).images[0]
        red = float(np.asarray(image)[..., 0].mean())
        yield Drawing(caption.split()[1], image, {"prompt": caption}, {"red": red})


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch) -> list[Repaint]:
    """The tasks that runs make of this kind."""
    made: list[Repaint] = []
    monkeypatch.setitem(TASKS, "repaint", lambda config: made.append(Repaint(config)) or made[-1])
    return made


def settings(model: Path, out: Path, **sections: dict[str, Any]) -> TrainConfig:
    chosen: dict[str, dict[str, Any]] = {
        "data": {"encode": "lazy", "text_tokens": 8},
        "adapter": {"rank": 2, "targets": ["to_q"]},
        "optimization": {
            "steps": 3,
            "batch_size": 2,
            "warmup": 0,
            "learning_rate": 0.05,
            "ema": 0.0,
            "precision": "no",
        },
        "watch": {"sample_every": 3, "sample_steps": 2, "guidance_scale": 3.0},
    }
    merged = {name: {**part, **sections.get(name, {})} for name, part in chosen.items()}
    return config_of({"task": "repaint", "model": str(model), "out": str(out), **merged})


def drawn_by(pipe: Any, task: Repaint) -> np.ndarray:
    (drawing,) = task.drawings(pipe)
    return np.asarray(drawing.image).astype(int)


@pytest.mark.parametrize("kind", PIPELINES)
def test_a_task_with_a_source_trains_saves_loads_and_draws(
    kind: str, models: dict[str, Path], tasks: list[Repaint], tmp_path: Path
):
    config = settings(models[kind], tmp_path / "run")
    file = train(config)
    (task,) = tasks
    assert task.planned == torch.device("meta")
    average, step, _ = read_average(config.out)
    assert step == 3 and torch.equal(
        load_file(config.out / "offset.safetensors")["text"], average["offset.text"]
    )
    # Encoded were a source, three targets at most, and no caption that was not needed.
    assert len(list((config.out / "cache").iterdir())) <= 1 + 3 + 4
    head, row = (config.out / "validation.csv").read_text().split()
    assert head == "step,loss,red" and row.startswith("3,")

    stored = np.asarray(Image.open(config.out / "samples/step-000003-red.png")).astype(int)
    pipe: Any = DiffusionPipeline.from_pretrained(models[kind])
    pipe.set_progress_bar_config(disable=True)
    plain = pipe.transformer.config.in_channels
    load_lora(pipe, file, "repaint")
    assert pipe.transformer.config.in_channels > plain
    assert np.abs(stored - drawn_by(pipe, task)).max() <= 1
    by_hand = drawn_by_hand(kind, models[kind], load_file(file), task)
    assert np.abs(stored - by_hand).max() <= 1
    source = task.example(0).source
    assert source is not None
    pipe.set_adapters("repaint", 0.0)
    assert np.abs(stored - drawn_by(pipe, task)).max() > 10


def drawn_by_hand(kind: str, model: Path, lora: dict[str, Tensor], task: Repaint) -> np.ndarray:
    """By weights W + B A, the input's with columns of zeros first, in Euler steps with CFG or guidance."""
    pipe: Any = DiffusionPipeline.from_pretrained(model)
    transformer, path = pipe.transformer, input_of(pipe.transformer).path
    weights = {name: p.detach() for name, p in transformer.named_parameters()}
    for name in (key.removesuffix(".lora_A.weight") for key in lora if key.endswith("lora_A.weight")):
        a, b = (lora[f"{name}.lora_{matrix}.weight"].flatten(1) for matrix in "AB")
        at = f"{name.removeprefix('transformer.')}.weight"
        change = (b @ a).view(len(b), *lora[f"{name}.lora_A.weight"].shape[1:])
        if at == f"{path}.weight":
            assert change.shape[1] == 2 * weights[at].shape[1]
            weights[at] = torch.cat([weights[at], torch.zeros_like(weights[at])], 1)
        weights[at] = weights[at] + change
    widen(transformer, 4)  # for the shape of its input; all weights are those above
    transformer.load_state_dict(weights, strict=False)
    source = latents_of(pipe, task.pairs[0][0].composite())[None]
    prompts = [task.encoders.embed([caption]) for caption in (task.pairs[0][1], "")]
    sampling = sampling_arguments(task.config.watch, SIDE, SIDE, 5)
    x = pipe.prepare_latents(1, 4, SIDE, SIDE, torch.float32, torch.device("cpu"), sampling["generator"])
    if kind == "flux":
        x = pipe._unpack_latents(x[0], SIDE, SIDE, pipe.vae_scale_factor)
    mu = {"mu": 0.5 + 0.65 * (64 - 256) / (4096 - 256)} if kind == "flux" else {}
    pipe.scheduler.set_timesteps(sigmas=[1.0, 0.5], **mu) if mu else pipe.scheduler.set_timesteps(2)
    sigmas = pipe.scheduler.sigmas

    with torch.no_grad():
        for k in range(2):
            predicted = [
                velocity_of(transformer, *prompt, source=source, guidance=3.0)(x, sigmas[k : k + 1])
                for prompt in prompts
            ]
            v = predicted[0] if kind == "flux" else predicted[1] + 3.0 * (predicted[0] - predicted[1])
            x = x + (sigmas[k + 1] - sigmas[k]) * v
        pixels = pipe.vae.decode(x / 1.5 + 0.06).sample
    return np.asarray(pipe.image_processor.postprocess(pixels)[0]).astype(int)


def test_stock_diffusers_draws_what_a_flux_lora_with_a_source_draws(
    models: dict[str, Path], tasks: list[Repaint], tmp_path: Path
):
    """Its loader widens the input for a LoRA that reads more, as for FLUX's control LoRAs."""
    config = settings(models["flux"], tmp_path / "run")
    train(config)
    stored = np.asarray(Image.open(config.out / "samples/step-000003-red.png")).astype(int)
    pipe: Any = DiffusionPipeline.from_pretrained(models["flux"])
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(str(config.out), weight_name="lora.safetensors")
    assert np.abs(stored - drawn_by(pipe, tasks[0])).max() <= 1


@pytest.mark.parametrize("kind", PIPELINES)
def test_a_run_with_a_source_is_resumed_exactly(
    kind: str, models: dict[str, Path], tasks: list[Repaint], tmp_path: Path
):
    for name, lengths in (("straight", [3]), ("resumed", [1, 3])):
        for steps in lengths:
            train(
                settings(
                    models[kind], tmp_path / name, optimization={"steps": steps}, watch={"sample_every": 0}
                )
            )
    straight, resumed = (
        load_file(tmp_path / name / "checkpoint.safetensors") for name in ("straight", "resumed")
    )
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


@pytest.mark.parametrize("kind", PIPELINES)
def test_the_change_of_the_input_is_trained_whole_and_nothing_at_first(
    kind: str, models: dict[str, Path], tasks: list[Repaint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    found: list[Any] = []
    monkeypatch.setattr("dit_heads.loras.train.fit", lambda model, *_, **__: found.append(model))
    file = train(settings(models[kind], tmp_path / "run"))
    transformer = found[0]["transformer"]
    path = input_of(transformer).path
    change = read_lora(file, transformer).modules[path]
    assert torch.equal(change.a, torch.eye(len(change.a))) and not change.b.any()
    trained = {name for name, p in transformer.named_parameters() if p.requires_grad and path in name}
    assert trained == {f"{path}.lora_B.default.weight"}
    assert (
        change.b.shape[1]
        == 2
        * DiffusionPipeline.from_pretrained(models[kind]).transformer.get_submodule(path).weight[0].numel()
    )


@pytest.mark.parametrize("kind", PIPELINES)
def test_loras_with_a_source_add_up(kind: str, models: dict[str, Path], tasks: list[Repaint], tmp_path: Path):
    file = train(settings(models[kind], tmp_path / "run", watch={"sample_every": 0}))
    transformer: Any = DiffusionPipeline.from_pretrained(models[kind]).transformer
    lora = read_lora(file, transformer)
    both = compose(transformer, [(lora, 0.25), (lora, 0.5)])
    path = input_of(transformer).path
    assert_close(
        both.modules[path].b @ both.modules[path].a, 0.75 * lora.modules[path].b @ lora.modules[path].a
    )
    assert both.modules[path].kernel == lora.modules[path].kernel


@pytest.mark.parametrize("kind", PIPELINES)
def test_a_lora_that_fails_to_load_leaves_the_input_as_it_was(
    kind: str, models: dict[str, Path], tasks: list[Repaint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = train(settings(models[kind], tmp_path / "run", watch={"sample_every": 0}))
    pipe: Any = DiffusionPipeline.from_pretrained(models[kind])
    before = pipe.transformer.get_submodule(input_of(pipe.transformer).path)
    monkeypatch.setattr(type(pipe.transformer), "load_lora_adapter", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        load_lora(pipe, file, "it")
    assert pipe.transformer.get_submodule(input_of(pipe.transformer).path) is before
    with pytest.raises(InputError, match="no adapter"):
        lora_of(pipe.transformer)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"adapter": {"dora": True}}, "dora: expected false for the task repaint"),
        ({"optimization": {"base": "8bit"}}, "8 ?bit"),
    ],
)
def test_what_cannot_be_trained_with_a_source_is_told_first(
    sections: dict[str, Any],
    message: str,
    models: dict[str, Path],
    tasks: list[Repaint],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("dit_heads.loras.train.load_base", lambda *_: pytest.fail("loaded"))
    with pytest.raises(InputError, match=message):
        train(settings(models["sd3"], tmp_path / "run", **sections))


def test_a_task_that_there_is_not_is_named(models: dict[str, Path], tmp_path: Path):
    with pytest.raises(InputError, match=r"task: expected one of in_context, .*got 'repaint'"):
        train(settings(models["sd3"], tmp_path / "run"))
