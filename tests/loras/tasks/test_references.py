"""References of a batch: encoded in one go as one by one, and what is frozen once alone."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from torch import Tensor
from torch.testing import assert_close

from dit_heads.fusion.splice import last_text_encoder
from dit_heads.loras.base import Encoders
from dit_heads.loras.config import TrainConfig
from dit_heads.loras.tasks.multimodal import Multimodal
from dit_heads.loras.train import flow_loss, trained_parts
from dit_heads.training.loop import Part
from dit_heads.training.processes import process_state
from tests.loras.tasks.test_multimodal import settings
from tests.saved import PIPELINES

pytestmark = pytest.mark.filterwarnings("ignore:.*these words are lost")
BATCH, KINDS = 5, ["subject", "edit", "compositional"]


def prepared(model: Path, out: Path, **chosen: Any) -> tuple[TrainConfig, Any, Multimodal]:
    """A task as it stands before the first step."""
    chosen = {"dropout": 0.0, "kinds": KINDS, "validation_pairs": 0, **chosen}
    config = settings(model, out, multimodal=chosen, optimization={"batch_size": BATCH})
    pipe: Any = DiffusionPipeline.from_pretrained(model)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False)
    task = Multimodal.of(config)
    task.prepare(Encoders.of(pipe, config.data, out, process_state()))
    return config, pipe, task


def step_of(config: TrainConfig, pipe: Any, task: Multimodal) -> Any:
    """(number of a step) -> its loss, with gradients."""
    trained_parts(pipe.transformer, task, config)
    loss = flow_loss(pipe, task, config)
    return lambda step: loss(Part(step), torch.Generator())[0].backward()


def counted(pipe: Any, task: Multimodal) -> Counter[str]:
    """How often the last text encoder, the tower and the autoencoder are called from now on."""
    assert task.references is not None and task.tower is not None
    found: Counter[str] = Counter()
    modules = {"t5": last_text_encoder(pipe)[1], "tower": task.tower.model.vision_model}
    for name, module in {**modules, "autoencoder": pipe.vae.encoder}.items():
        module.register_forward_hook(lambda *_, name=name: found.update([name]))
    return found


@pytest.mark.parametrize("kind", PIPELINES)
def test_a_step_reads_text_once_and_each_reference_once_in_a_run(
    kind: str, models: dict[str, Path], tmp_path: Path
):
    config, pipe, task = prepared(models[kind], tmp_path)
    step, found = step_of(config, pipe, task), counted(pipe, task)
    step(0)
    assert found == {"t5": 1, "tower": 1, "autoencoder": 2}  # sources and targets, then references
    step(0)
    assert found == {"t5": 2, "tower": 1, "autoencoder": 2}
    assert task.encoder is not None
    assert all(weight.grad is not None for weight in task.encoder.parameters())

    config, pipe, task = prepared(models[kind], tmp_path)  # as after a restart
    step, found = step_of(config, pipe, task), counted(pipe, task)
    step(0)
    assert found == {"t5": 1}


@pytest.mark.parametrize("kind", PIPELINES)
def test_a_batch_is_encoded_as_its_instructions_alone(kind: str, models: dict[str, Path], tmp_path: Path):
    _, _, task = prepared(models[kind], tmp_path / "together")
    _, _, other = prepared(models[kind], tmp_path / "alone")
    assert task.encoder is not None and other.encoder is not None
    for each in (task, other):  # so that references are told from each other by their latents too
        assert each.encoder is not None
        torch.nn.init.normal_(each.encoder.look.out_proj.weight, generator=torch.Generator().manual_seed(0))
    prompts = [example.prompt for example in task.examples(Part(0), BATCH)]
    assert {len(prompt.pictures) for prompt in prompts} == {0, 1}
    together = task.embed(prompts)
    alone = [other.embed([prompt]) for prompt in prompts]
    for found, each in zip(together, zip(*alone, strict=True), strict=True):
        assert_close(found, torch.cat(each), rtol=1e-4, atol=1e-5)

    def gradient(of: Multimodal, text: Tensor) -> Tensor:
        text.square().mean().backward()
        assert of.encoder is not None and of.encoder.queries.grad is not None
        return of.encoder.queries.grad

    texts = together[0], torch.cat([text for text, _ in alone])
    assert_close(*map(gradient, (task, other), texts), rtol=1e-3, atol=1e-6)


def test_pictures_of_a_batch_are_encoded_as_alone(models: dict[str, Path], tmp_path: Path):
    _, _, task = prepared(models["sd3"], tmp_path)
    assert task.references is not None and task.encoders is not None
    pairs = [task._pair(index, 0) for index in range(4)]
    pictures = [picture for pair in pairs for picture in pair.pictures]
    vision = task.references.vision
    assert vision is not None
    for encoder, name in ((task.encoders.latents, "latents"), (vision, "vision")):
        for together, picture in zip(encoder.each(pictures), pictures, strict=True):
            assert_close(together[name], encoder.encode(picture)[name], rtol=1e-4, atol=1e-5)


def test_features_that_are_not_read_are_not_computed(models: dict[str, Path], tmp_path: Path):
    for features, left in ((["semantic"], "latents"), (["latents"], "vision")):
        _, _, task = prepared(models["sd3"], tmp_path, features=features)
        assert task.references is not None and getattr(task.references, left) is None
        prompts = [example.prompt for example in task.examples(Part(0), BATCH)]
        text, _ = task.embed(prompts)
        assert text.isfinite().all()
