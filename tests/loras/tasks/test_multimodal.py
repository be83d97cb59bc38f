"""The task of instructions with pictures in them: its pairs, what is left out, and that it trains, resumes,
saves, loads and draws."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from dit_heads.errors import InputError
from dit_heads.loras.cache import CachedEncoder
from dit_heads.loras.config import TrainConfig, config_of
from dit_heads.loras.tasks.edit_pairs import EditFolder, WorldEdits, mirrored
from dit_heads.loras.tasks.multimodal import EMPTY, Multimodal
from dit_heads.loras.train import train
from dit_heads.pipelines.multimodal import with_multimodal_lora
from dit_heads.training.loop import Part
from tests.saved import PIPELINES

SIDE = 32
pytestmark = pytest.mark.filterwarnings("ignore:.*these words are lost")


def settings(model: Path, out: Path, **sections: dict[str, Any]) -> TrainConfig:
    chosen: dict[str, dict[str, Any]] = {
        "data": {"encode": "lazy", "text_tokens": 24, "sizes": [[SIDE, SIDE]], "flip": True},
        "adapter": {"rank": 2, "targets": ["to_q"]},
        "optimization": {
            "steps": 2, "batch_size": 3, "warmup": 0, "learning_rate": 0.05, "ema": 0.0, "precision": "no",
        },
        "watch": {"sample_every": 2, "sample_steps": 2, "guidance_scale": 1.0},
        "multimodal": {
            "scenes": 6, "validation_pairs": 3, "tokens": 3, "width": 16, "heads": 2, "layers": 1,
        },
    }  # fmt: skip
    merged = {name: {**chosen.get(name, {}), **sections.get(name, {})} for name in {**chosen, **sections}}
    return config_of({"task": "multimodal", "model": str(model), "out": str(out), **merged})


# --- pairs ---


def test_scenes_give_all_three_tasks_by_weight():
    pairs = WorldEdits("train", 50, SIDE, ("subject", "edit", "compositional"), (1.0, 2.0, 1.0))
    found: Counter[tuple[bool, int]] = Counter()
    for index in range(40):
        for epoch in range(2):
            pair = pairs.pair(index, np.random.default_rng((index, epoch)))
            found[pair.source is not None, len(pair.instruction.pictures)] += 1
    assert set(found) == {(False, 1), (True, 0), (True, 1)}
    assert 0.38 < found[True, 0] / 80 < 0.62


def test_a_pair_is_mirrored_whole():
    pairs = WorldEdits("train", 1, SIDE, ("compositional",), (1.0,))
    pair = pairs.pair(0, np.random.default_rng(0))
    for one, other in zip(pair.pictures, pair.mirrored().pictures, strict=True):
        assert np.array_equal(np.asarray(one.composite())[:, ::-1], np.asarray(other.composite()))
        assert one.key != other.key == mirrored(one).key


def folder(root: Path, name: str, words: str, *pictures: str) -> Path:
    for number, picture in enumerate(pictures):
        path = root / name / picture
        path.parent.mkdir(parents=True, exist_ok=True)
        colour = (40 * number, 0, 0)
        Image.new("RGB", (40, 30), colour).save(path)
    (root / name / "instruction.txt").write_text(words)
    return root


def test_folders_are_pairs(tmp_path: Path):
    folder(tmp_path, "a", "make <cat> blue\n", "target.png", "source.jpg", "references/cat.png")
    folder(
        tmp_path, "b", "<imagehere> with <imagehere>", "target.webp", "references/1.png", "references/2.png"
    )
    pairs = EditFolder(tmp_path, (SIDE, SIDE))
    first, second = (pairs.pair(k, np.random.default_rng(0)) for k in range(len(pairs)))
    assert first.instruction.names == ("cat",) and first.source is not None and second.source is None
    assert [p.composite().getpixel((16, 16)) for p in second.instruction.pictures] == [(40, 0, 0), (80, 0, 0)]
    assert all(picture.composite().size == (SIDE, SIDE) for picture in first.pictures)


@pytest.mark.parametrize(
    ("words", "pictures", "message"),
    [
        ("a <cat>", ["target.png", "references/dog.png"], "expected a picture for <cat>"),
        ("a", ["source.png"], "expected target.png in"),
        ("a", ["target.png", "target.jpg"], "expected one target in"),
        ("<imagehere>", ["target.png"], "references: expected 1, one for each"),
    ],
)
def test_folders_that_do_not_fit_are_named(words: str, pictures: list[str], message: str, tmp_path: Path):
    with pytest.raises(InputError, match=message):
        EditFolder(folder(tmp_path, "a", words, *pictures), (SIDE, SIDE))


def test_no_folders_is_said(tmp_path: Path):
    with pytest.raises(InputError, match="got none"):
        EditFolder(tmp_path, (SIDE, SIDE))


# --- what is left out ---


class StandIn:
    """Encoders that put out a constant."""

    latents = CachedEncoder(lambda _: {"latents": torch.ones(4, 16, 16)}, "none", {}, "off")


def test_instruction_source_and_both_are_left_out_in_equal_shares(models: dict[str, Path], tmp_path: Path):
    chosen = {"dropout": 0.1, "scenes": 30, "kinds": ["edit"]}
    task = Multimodal.of(settings(models["sd3"], tmp_path, multimodal=chosen))
    task.encoders = StandIn()  # pyright: ignore[reportAttributeAccessIssue]
    found: Counter[tuple[bool, bool]] = Counter()
    for step in range(20):
        for example in task.examples(Part(step, 0, 1), 20):
            assert example.source is not None and not example.droppable
            found[example.prompt == EMPTY, not example.source.any()] += 1
    shares = [found[kind] / 400 for kind in ((True, False), (False, True), (True, True))]
    assert all(0.06 < share < 0.14 for share in shares)


def test_subjects_have_a_blank_canvas(models: dict[str, Path], tmp_path: Path):
    chosen = {"kinds": ["subject"], "dropout": 0.0}
    task = Multimodal.of(settings(models["sd3"], tmp_path, multimodal=chosen))
    task.encoders = StandIn()  # pyright: ignore[reportAttributeAccessIssue]
    for example in task.examples(Part(0, 0, 1), 4):
        assert example.source is not None and not example.source.any()


# --- a run ---


@pytest.mark.parametrize("kind", PIPELINES)
def test_a_run_trains_saves_loads_and_draws(kind: str, models: dict[str, Path], tmp_path: Path):
    config = settings(models[kind], tmp_path / "run")
    file = train(config)
    head = (config.out / "validation.csv").read_text().split("\n")[0]
    assert head.startswith("step,loss,")
    drawn = sorted((config.out / "samples").glob("step-000002-*.png"))
    assert len(drawn) == 3
    before = Multimodal.of(config)
    assert (config.out / "references.safetensors").exists()

    pipe: Any = DiffusionPipeline.from_pretrained(models[kind])
    pipe.set_progress_bar_config(disable=True)
    paint = with_multimodal_lora(pipe, file)
    assert paint.text_tokens == 24 and paint.encoder is not None
    trained = load_file(config.out / "references.safetensors")
    assert all(torch.equal(trained[name], value) for name, value in paint.encoder.state_dict().items())
    assert trained["look.out_proj.weight"].abs().sum() > 0
    assert before.held_out is not None
    for number in range(3):
        pair = before.held_out.pair(number, np.random.default_rng((9, number)))
        stored = next(path for path in drawn if path.stem.endswith(f"-{number}"))
        references = [picture.composite() for picture in pair.instruction.pictures]
        words = "<imagehere>".join(pair.instruction.words)
        image = paint(
            words,
            references,
            pair.source and pair.source.composite(),
            generator=torch.Generator().manual_seed(config.seed),
            num_inference_steps=2,
            guidance_scale=1.0,
        ).images[0]
        apart = np.abs(np.asarray(image).astype(int) - np.asarray(Image.open(stored)).astype(int))
        assert apart.max() <= 1, stored.name


def test_a_run_that_is_resumed_is_the_run(models: dict[str, Path], tmp_path: Path):
    watch = {"sample_every": 0}
    whole = train(settings(models["sd3"], tmp_path / "whole", watch=watch))
    short = {"steps": 1}
    train(settings(models["sd3"], tmp_path / "parts", watch=watch, optimization=short))
    parts = train(settings(models["sd3"], tmp_path / "parts", watch=watch))
    for name in ("lora", "references"):
        one, other = (load_file(path.with_name(f"{name}.safetensors")) for path in (whole, parts))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_settings_that_do_not_fit_are_named(models: dict[str, Path], tmp_path: Path):
    with pytest.raises(InputError, match="encode: expected lazy or off for the task multimodal"):
        Multimodal.of(settings(models["sd3"], tmp_path, data={"encode": "all"}))
    with pytest.raises(InputError, match="sizes: expected one square size"):
        Multimodal.of(settings(models["sd3"], tmp_path, data={"sizes": [[32, 48]]}))
