"""`dit-heads see`."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

import dit_heads.embedded
from dit_heads.cli import main
from dit_heads.cli.see import SUMMARIES, WRITERS, SeeSettings, lora_of, parted, summary
from dit_heads.embedded.pairs import WorldPairs
from dit_heads.errors import InputError
from dit_heads.io.pictures import read_image, read_settings
from dit_heads.loras.config import config_of
from dit_heads.loras.train import train
from dit_heads.pipelines import with_instruct_lora
from dit_heads.pipelines.vision_output import output_of
from dit_heads.tasks.annotations import Boxes, Depth, Instances, Labels, Segmentation
from dit_heads.tasks.coco import mask_of
from dit_heads.tasks.depth_files import read_depth_png
from dit_heads.tasks.label_files import read_label_png
from dit_heads.tasks.query import Query

FAST = ["--steps", "1"]
# The tokenizers of tiny pipelines read letters, so that an instruction is longer than their limit.
pytestmark = pytest.mark.filterwarnings("ignore:.*these words are lost")


@pytest.fixture(scope="module")
def lora(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA of the task, trained for a step."""
    data = {"encode": "lazy", "text_tokens": 8, "sizes": [[32, 32]]}
    training = {"steps": 1, "batch_size": 1, "warmup": 0, "precision": "no"}
    asked = {"scenes": 2, "validation_scenes": 0, "tasks": ["depth"]}
    config = {
        "task": "instruct",
        "model": model,
        "out": str(tmp_path_factory.mktemp("run")),
        "data": data,
        "adapter": {"rank": 2, "targets": ["to_q"]},
        "optimization": training,
        "watch": {"sample_every": 0},
        "instruct": asked,
    }
    return train(config_of(config))


@pytest.fixture
def see(model: str, lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run the command with the tiny model in a folder with a picture of 24 x 17 pixels."""
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (17, 24, 3), np.uint8)
    Image.fromarray(pixels).save("photo.png")
    return lambda *words: main(["see", *words, *FAST, "--model", model, "--lora", str(lora)])


# --- the command ---


def test_depth_is_that_of_the_pipeline_in_millimetres(see, model, lora, tmp_path, capsys):
    assert see("photo.png", "how", "far", "is", "everything?", "--seed", "3", "--out", "answer") == 0
    told = capsys.readouterr()
    assert told.out.startswith("depth\n") and " m\n" in told.out
    assert "Traceback" not in told.err
    assert sorted(path.name for path in (tmp_path / "answer").iterdir()) == [
        "photo-depth-mm.png",
        "photo-depth.png",
    ]
    pipe: Any = DiffusionPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    noise = torch.Generator().manual_seed(3)
    call: Any = {"num_inference_steps": 1, "guidance_scale": 1.0, "image_guidance_scale": 1.0}
    output = with_instruct_lora(pipe, lora).depth("photo.png", generator=noise, **call)
    stored, own = read_depth_png("answer/photo-depth-mm.png", 1000), output.annotations[0]
    assert stored.metres.shape == (17, 24) and np.array_equal(stored.valid, own.valid)
    assert np.abs(stored.metres - own.metres)[own.valid].max(initial=0) < 1e-3
    shown = read_image(tmp_path / "answer/photo-depth.png")
    assert np.array_equal(np.asarray(shown), np.asarray(output.visualize("photo.png")[0]))
    kept = read_settings(tmp_path / "answer/photo-depth.png")
    assert (kept["question"], kept["seed"], kept["steps"]) == ("how far is everything?", 3, 1)


def test_the_picture_may_come_last_and_the_answer_be_a_file(see, tmp_path):
    assert see("depth", "photo.png", "--out", "a.png") == 0
    assert see("photo.png", "depth", "--out", "b.png") == 0
    assert (tmp_path / "a-mm.png").read_bytes() == (tmp_path / "b-mm.png").read_bytes()


@pytest.mark.parametrize(
    ("question", "files"),
    [
        ("where are the cubes?", ["json", "png"]),
        ("segment the cube", ["-labels.png", "json", "png"]),
        ("segment every cube individually", ["json", "png"]),
        ("is it day or night?", ["json", "png"]),
    ],
)
def test_every_task_leaves_its_files(question, files, see, tmp_path, capsys):
    assert see("photo.png", question, "--out", "a.png", "--guidance-scale", "2") == 0
    there = sorted(path.name for path in tmp_path.iterdir() if path.name != "photo.png")
    assert there == [f"a{name}" if name[0] == "-" else f"a.{name}" for name in files]
    assert "a.png, a.json" in capsys.readouterr().out


def test_an_ensemble_says_how_sure_it_is(see, tmp_path, capsys):
    assert see("photo.png", "is it day or night?", "--ensemble-size", "3", "--out", "a.png") == 0
    told = capsys.readouterr()
    assert "uncertainty" in told.out and "dit-heads: warning: the instruction: " in told.err
    found = json.loads((tmp_path / "a.json").read_text())
    assert set(found["uncertainty"]) == set(found["probabilities"]) == {"day", "night"}


def test_pictures_of_many_kinds_are_seen_as_they_look(see, tmp_path):
    Image.fromarray(np.arange(17 * 24, dtype=np.uint16).reshape(17, 24) * 100).save("deep.png")
    Image.new("RGBA", (24, 17), (255, 0, 0, 100)).save("alpha.png")
    Image.new("L", (1, 1), 9).save("dot.png")
    turned, exif = Image.new("RGB", (24, 17), "red"), Image.Exif()
    exif[0x0112] = 6
    turned.save("turned.jpg", exif=exif)
    sizes = {"deep.png": (24, 17), "alpha.png": (24, 17), "dot.png": (1, 1), "turned.jpg": (17, 24)}
    for name, size in sizes.items():
        assert see(name, "depth", "--out", "answer") == 0
        stored = read_depth_png(f"answer/{Path(name).stem}-depth-mm.png", 1000)
        assert stored.metres.shape == size[::-1]


# --- what the words mean ---


def test_picture_and_question_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("photo", "other.png"):
        Image.new("RGB", (2, 2)).save(name, format="PNG")
    assert parted(["photo", "where", "is it?"]) == (Path("photo"), "where is it?")
    assert parted(["depth", "photo"]) == (Path("photo"), "depth")
    assert parted(["depth", "absent.jpg"]) == (Path("absent.jpg"), "depth")
    assert parted(["absent.jpg", "depth"]) == (Path("absent.jpg"), "depth")
    assert parted(["absent", "depth"]) == (Path("absent"), "depth")
    for words in ([], ["photo"]):
        with pytest.raises(InputError, match="arguments: expected a picture and a question"):
            parted(words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["absent.png", "depth"], "image: there is no file 'absent.png'"),
        (["photo.png"], "arguments: expected a picture and a question"),
        (["photo.png", "make it prettier"], "no task is understood in 'make it prettier'; try such as \"seg"),
        (["photo.png", "segment"], "names nothing to segment"),
        (["text.png", "depth"], "image: 'text.png' is not a picture that can be read"),
        (["large.png", "depth"], "image: 'large.png' is 9000 x 8000, expected at most 64000000 pixels"),
        (["photo.png", "depth", "--out", "photo.png"], "out: expected another file than the picture itself"),
        (["photo.png", "depth", "--out", "a.jpg"], "out: expected a file name that ends in .png"),
        (["photo.png", "depth", "--lora", "none.safetensors"], "lora: expected a .safetensors file, got"),
        (["photo.png", "depth", "--steps", "0"], "steps: expected"),
    ],
)
def test_what_cannot_be_done_is_one_line(words, message, tmp_path, monkeypatch, error_line):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("photo.png")
    Image.new("1", (9000, 8000)).save("large.png")
    (tmp_path / "text.png").write_text("hello")
    assert main(["see", *words]) == 2
    assert message in error_line()


def test_a_class_that_the_embedded_model_cannot_know_is_named(tmp_path, monkeypatch, error_line):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("photo.png")
    assert main(["see", "photo.png", "where are the zebras?"]) == 2
    line = error_line()
    assert "such as sphere, cube, " in line and line.strip().endswith("got zebra")


def test_without_a_lora_that_ships_one_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(dit_heads.embedded, "WEIGHTS", tmp_path)
    with pytest.raises(InputError, match="none ships for the model 'embedded'; `dit-heads train`"):
        lora_of(SeeSettings())


def test_a_lora_that_ships_is_found_by_its_task_and_model(tmp_path, monkeypatch):
    from safetensors.torch import save_file

    def ship(name: str, **settings: str) -> Path:
        folder = tmp_path / "loras" / name
        folder.mkdir(parents=True)
        save_file({"a": torch.zeros(1)}, folder / "lora.safetensors", {"dit_heads": json.dumps(settings)})
        return folder / "lora.safetensors"

    ship("a", task="in_context", model="embedded")
    flux = ship("b", task="instruct", model="embedded/flux")
    own = ship("c", task="instruct", model="embedded")
    monkeypatch.setattr(dit_heads.embedded, "WEIGHTS", tmp_path)
    assert lora_of(SeeSettings()) == lora_of(SeeSettings(model="embedded/sd3")) == own
    assert lora_of(SeeSettings(model="embedded/flux")) == flux
    with pytest.raises(InputError, match="none ships for the model 'mine'"):
        lora_of(SeeSettings(model="mine"))


# --- what is written ---

PAIRS = WorldPairs("train", 4)
QUERIES: dict[str, Query] = {
    "segment": Query("segment", ("sky", "object")),
    "instances": Query("instances", ("object",)),
    "detect": Query("detect", ("object", "cone")),
    "depth": Query("depth"),
    "classify": Query("classify", ("day", "sunset", "night")),
}


def written(task: str, folder: Path, doubt: Any = None) -> tuple[Any, list[Path], list[str]]:
    """An answer, the files that it leaves, and its words."""
    query = QUERIES[task]
    found = PAIRS.answer(1, query)
    output = output_of(query, [(found, doubt)], [], "np")
    return found, WRITERS[type(found)](output, folder / "a.png", "photo.png"), list(summary(output))


def test_boxes_and_masks_are_written_as_coco_has_them(tmp_path):
    for task in ("detect", "instances"):
        found, (path,), words = written(task, tmp_path / task)
        coco = json.loads(path.read_text())
        (image,) = coco["images"]
        names = {each["id"]: each["name"] for each in coco["categories"]}
        assert (image["file_name"], image["height"], image["width"]) == ("photo.png", 128, 128)
        assert tuple(names.values()) == QUERIES[task].names
        assert len(coco["annotations"]) == len(found) > 0 and len(words) == len(found) + 1
        boxes = found.boxes().boxes if isinstance(found, Instances) else found.boxes
        for k, (entry, box) in enumerate(zip(coco["annotations"], boxes, strict=True)):
            x, y, w, h = entry["bbox"]
            assert [x, y, x + w, y + h] == box.tolist() and entry["image_id"] == image["id"]
            assert names[entry["category_id"]] == found.classes[k] and entry["score"] == found.scores[k]
            if isinstance(found, Instances):
                assert np.array_equal(mask_of(entry["segmentation"], found.size), found.masks[k])
                assert entry["area"] == found.masks[k].sum()


def test_a_segmentation_is_written_as_numbers_and_as_masks(tmp_path):
    found, (coco, numbers), words = written("segment", tmp_path)
    assert np.array_equal(np.asarray(Image.open(numbers)), found.labels)
    assert read_label_png(numbers, found.classes).classes == found.classes
    entries = json.loads(coco.read_text())["annotations"]
    for k, entry in enumerate(entries, 1):
        assert np.array_equal(mask_of(entry["segmentation"], found.labels.shape), found.labels == k)
    share = (found.labels == 1).mean()
    assert words[:2] == ["segment: sky, object", f"  sky {share:.1%} of the picture"]


def test_classes_are_written_with_their_probabilities(tmp_path):
    found, (path,), words = written("classify", tmp_path, np.array([0.0, 0.1, 0.1]))
    stored = json.loads(path.read_text())
    assert stored["file_name"] == "photo.png" and stored["answer"] == found.best
    assert stored["probabilities"][found.best] == 1.0 and stored["uncertainty"]["night"] == 0.1
    assert words[1] == f"  {found.best} 100.0%"


def test_every_annotation_can_be_written_and_told():
    kinds = {Boxes, Depth, Instances, Labels, Segmentation}
    assert set(WRITERS) == set(SUMMARIES) == kinds
