"""`dit-heads edit`."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

import dit_heads.embedded
from dit_heads.cli import main
from dit_heads.cli.edit import EditSettings, canvas_and_text, named_references
from dit_heads.cli.see import lora_of
from dit_heads.errors import InputError
from dit_heads.io.pictures import read_image, read_settings
from dit_heads.loras.config import config_of
from dit_heads.loras.train import train
from dit_heads.pipelines import MultimodalInstructPipeline, with_multimodal_lora
from tests.saved import tiny_flux_pipeline

FAST = ["--steps", "1"]
# The tokenizers of tiny pipelines read letters, so that an instruction is longer than their limit.
pytestmark = pytest.mark.filterwarnings("ignore:.*these words are lost")


@pytest.fixture(scope="module")
def lora(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA of the task, trained for a step."""
    config = {
        "task": "multimodal",
        "model": model,
        "out": str(tmp_path_factory.mktemp("run")),
        "data": {"encode": "lazy", "text_tokens": 24, "sizes": [[32, 32]]},
        "adapter": {"rank": 2, "targets": ["to_q"]},
        "optimization": {"steps": 1, "batch_size": 1, "warmup": 0, "precision": "no"},
        "watch": {"sample_every": 0},
        "multimodal": {"scenes": 2, "validation_pairs": 0, "tokens": 3, "width": 16, "heads": 2, "layers": 1},
    }
    return train(config_of(config))


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with a photo of 24 x 18 pixels, two references, and a mask of the left half."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("photo", "c", "d")):
        pixels = np.random.default_rng(number).integers(0, 256, (18, 24, 3), np.uint8)
        Image.fromarray(pixels).save(f"{name}.png")
    half = np.zeros((18, 24), np.uint8)
    half[:, :12] = 255
    Image.fromarray(half).save("half.png")
    Image.new("L", (24, 18)).save("black.png")
    Image.new("L", (9, 9), 255).save("small.png")


@pytest.fixture
def edit(pictures: None, model: str, lora: Path):
    """Run the command with the tiny model."""
    return lambda *words: main(["edit", *words, *FAST, "--model", model, "--lora", str(lora)])


def pixels(path: str) -> np.ndarray:
    return np.asarray(read_image(Path(path)))


def test_an_edit_is_that_of_the_pipeline(edit, model, lora, capsys):
    words = ("photo.png", "make the <cube> like <it>", "--ref", "cube=c.png", "--ref", "it=d.png")
    assert edit(*words, "--seed", "3", "--guidance", "2", "--image-guidance", "1.5", "--out", "a") == 0
    assert capsys.readouterr().out.startswith("a/photo-edit.png  (")
    pipe: Any = DiffusionPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    call: Any = {"num_inference_steps": 1, "generator": torch.Generator().manual_seed(3)}
    own = with_multimodal_lora(pipe, lora)(
        "make the <cube> like <it>", {"cube": "c.png", "it": "d.png"}, "photo.png",
        guidance_scale=2.0, image_guidance_scale=1.5, **call,
    ).images[0]  # fmt: skip
    assert np.array_equal(pixels("a/photo-edit.png"), np.asarray(own))
    kept = read_settings(Path("a/photo-edit.png"))
    assert (kept["instruction"], kept["seed"], kept["guidance_scale"]) == ("make the <cube> like <it>", 3, 2)


def test_without_a_picture_a_new_one_is_painted(edit):
    assert (
        edit("<imagehere> on snow", "--ref", "c.png", "--out", "a.png", "--width", "32", "--height", "16")
        == 0
    )
    assert pixels("a.png").shape == (16, 32, 3)
    assert edit("a", "red", "cube", "--out", "b") == 0
    assert Path("b/picture.png").is_file()


def test_outside_of_a_mask_nothing_changes(edit):
    assert (
        edit("make it blue", "photo.png", "--mask", "half.png", "--mask-feather", "0", "--out", "a.png") == 0
    )
    before, after = pixels("photo.png"), pixels("a.png")
    assert np.array_equal(before[:, 12:], after[:, 12:])
    assert (before[:, :12] != after[:, :12]).any()


def test_a_mask_that_is_found_is_written_and_kept_to(edit, capsys):
    words = ("photo.png", "make it blue", "--mask-feather", "0", "--seed", "5")
    assert edit(*words, "--find-mask", "--mask-threshold", "0.7", "--out", "a.png") == 0
    assert capsys.readouterr().out.startswith("a.png, a-mask.png  (")
    mask, before, after = pixels("a-mask.png")[..., 0] > 0, pixels("photo.png"), pixels("a.png")
    assert 0 < mask.mean() < 1 and np.array_equal(before[~mask], after[~mask])
    assert edit(*words, "--mask", "a-mask.png", "--out", "b.png") == 0
    assert np.array_equal(pixels("b.png"), after)


def test_a_mask_is_found_at_the_resolution_of_the_edit(edit, model, lora, capsys):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 300, 3), np.uint8)).save("wide.png")
    words = ("wide.png", "make it blue", "--find-mask", "--seed", "5", "--out", "a.png")
    assert edit(*words) == 2  # it is larger than the model's limit
    assert "give processing_resolution" in capsys.readouterr().err
    assert edit(*words, "--processing-resolution", "48") == 0
    pipe: Any = DiffusionPipeline.from_pretrained(model)
    options: Any = {"processing_resolution": 48, "generator": torch.Generator().manual_seed(5)}
    (own,) = with_multimodal_lora(pipe, lora).find_mask("make it blue", (), "wide.png", **options)
    mask = pixels("a-mask.png")
    assert mask.shape[:2] == (40, 300) and np.array_equal(mask[..., 0], np.asarray(own))


# --- references as tokens ---


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("flux") / "tiny"
    tiny_flux_pipeline().save_pretrained(folder)
    return str(folder)


def test_references_ride_as_tokens_without_a_lora(flux, pictures, capsys):
    words = ["photo.png", "make the <cube> blue", "--ref", "cube=c.png", "--references", "tokens"]
    assert main(["edit", *words, *FAST, "--model", flux, "--guidance", "2.5", "--out", "a.png"]) == 0
    pipe: Any = DiffusionPipeline.from_pretrained(flux)
    pipe.set_progress_bar_config(disable=True)
    call: Any = {"num_inference_steps": 1, "generator": torch.Generator().manual_seed(0)}
    paint = MultimodalInstructPipeline(pipe, references="tokens")
    own = paint("make the <cube> blue", {"cube": "c.png"}, "photo.png", guidance_scale=2.5, **call).images[0]
    assert np.array_equal(pixels("a.png"), np.asarray(own))
    kept = read_settings(Path("a.png"))
    assert (kept["references"], kept["lora"], kept["instruction"]) == ("tokens", None, "make the <cube> blue")


def test_tokens_need_flux_and_no_lora(model, pictures, error_line, lora):
    words = ["edit", "photo.png", "make it blue", "--references", "tokens", "--model", model]
    assert main([*words, "--lora", str(lora)]) == 2
    assert "lora: expected none for --references tokens" in error_line()
    assert main(words) == 2
    assert "references: expected a FLUX pipeline for 'tokens', got one of sd3" in error_line()


# --- what the words mean ---


def test_picture_and_instruction_are_told_apart(pictures):
    assert canvas_and_text(["photo.png", "make", "it blue"]) == (Path("photo.png"), "make it blue")
    assert canvas_and_text(["make it blue", "absent.jpg"]) == (Path("absent.jpg"), "make it blue")
    assert canvas_and_text(["a cube on snow"]) == (None, "a cube on snow")
    assert canvas_and_text(["a", "cube"]) == (None, "a cube")
    assert canvas_and_text(["x" * 5000]) == (None, "x" * 5000)
    for words in ([], ["photo.png"], [" "], ["photo.png", " "]):
        with pytest.raises(InputError, match="arguments: expected an instruction"):
            canvas_and_text(words)


def test_references_have_names_or_an_order(pictures):
    assert named_references(["c.png", "d.png"]) == [Path("c.png"), Path("d.png")]
    assert named_references(["<a>=c.png", "b=d=e.png"]) == {"a": Path("c.png"), "b": Path("d=e.png")}
    Path("x=y.png").touch()
    assert named_references(["x=y.png"]) == [Path("x=y.png")]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["photo.png"], "arguments: expected an instruction"),
        (["absent.png", "make it red"], "image: there is no file 'absent.png'"),
        (["a <cube>", "--ref", "cube=absent.png"], "ref: there is no file 'absent.png'"),
        (["a <cube>", "--ref", "ball=c.png"], "references: expected a picture for <cube>, got none"),
        (["a cube", "--ref", "c.png"], "references: expected 0, one for each <imagehere>"),
        (["<a> by <imagehere>", "--ref", "a=c.png", "--ref", "d.png"], "ref: expected all with a name"),
        (["<a>", "--ref", "a=c.png", "--ref", "a=d.png"], "ref: expected one picture for <a>, got 2"),
        (["<a>", "--ref", "=c.png"], "ref: expected NAME=FILE or FILE, got '=c.png'"),
        (["a cube", "--mask", "half.png"], "mask: expected a picture to edit"),
        (["a cube", "--find-mask"], "find_mask: expected a picture to edit"),
        (["photo.png", "red", "--find-mask", "--mask", "half.png"], "mask: expected none beside --find-mask"),
        (["photo.png", "red", "--width", "32"], "width: expected none, since the picture has the size"),
        (["photo.png", "red", "--out", "photo.png"], "out: expected another file than the pictures"),
        (["photo.png", "red", "--mask", "half.png", "--out", "half.png"], "out: expected another file"),
        (["photo.png", "red", "--out", "a.jpg"], "out: expected a file name that ends in .png"),
        (["photo.png", "red", "--lora", "none.safetensors"], "lora: expected a .safetensors file, got"),
        (["photo.png", "red", "--mask-threshold", "1"], "mask_threshold: expected"),
    ],
)
def test_what_cannot_be_done_is_one_line(words, message, pictures, error_line):
    assert main(["edit", *words]) == 2
    assert message in error_line()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["photo.png", "red", "--mask", "black.png"], "mask: expected white where the picture may change"),
        (["photo.png", "red", "--mask", "small.png"], "mask: expected the size of the picture, 18 x 24, got"),
        (["a cube", "--width", "33"], "width: expected a multiple of "),
    ],
)
def test_masks_and_sizes_are_checked_before_a_model_is_loaded(words, message, edit, error_line, monkeypatch):
    import dit_heads.models

    def loaded(*_: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(dit_heads.models, "load_pipeline", loaded)
    assert edit(*words) == 2
    assert message in error_line()


def test_without_a_lora_that_ships_one_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(dit_heads.embedded, "WEIGHTS", tmp_path)
    with pytest.raises(InputError, match="of the task multimodal, since none ships for the model 'embedded'"):
        lora_of(EditSettings(), "multimodal")
