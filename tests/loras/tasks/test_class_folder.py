"""A folder a class as questions about what a picture shows."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dit_heads.errors import InputError
from dit_heads.io.pictures import read_image
from dit_heads.loras.config import config_of
from dit_heads.loras.tasks.class_folder import ClassFolder
from dit_heads.loras.train import train
from dit_heads.tasks.query import OTHER
from tests.saved import tiny_pipeline

CLASSES = {"cat": "gray", "hot_dog": "red", "t-shirt": "white"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, colour in CLASSES.items():
        folder = tmp_path / "pictures" / name
        folder.mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (40 + number, 50), colour).save(folder / f"{number}.png")
    (tmp_path / "pictures/cat/notes.txt").write_text("no picture")
    return tmp_path / "pictures"


def test_every_picture_is_asked_which_class_it_shows_or_whether_it_shows_one(root: Path):
    pairs, rng = ClassFolder(root), np.random.default_rng(0)
    assert len(pairs) == 6 and pairs.classes == ("cat", "hot dog", "t-shirt")
    whether = []
    for index in (k for k in range(6) for _ in range(10)):
        query, right = pairs.question(index, "classify", rng), pairs.classes[index // 2]
        best = pairs.answer(index, query).best
        if OTHER in query.names:
            name, _ = query.names
            assert best == (right if name == right else OTHER)
            whether.append(best == OTHER)
        else:
            assert 2 <= len(query.names) <= 3 and best == right
    assert 0.3 < np.mean(whether) < 0.7 and 20 < len(whether) < 60
    assert pairs.picture(5).size == (41, 50) and pairs.name(5).endswith("t-shirt/1.png")


def test_every_question_can_name_all_classes_in_one_order(root: Path):
    pairs, rng = ClassFolder(root, every=True), np.random.default_rng(0)
    for index in range(6):
        query = pairs.question(index, "classify", rng)
        assert query.names == pairs.classes
        assert pairs.answer(index, query).best == pairs.classes[index // 2]


def test_other_files_are_another_key(root: Path):
    before = ClassFolder(root).key
    assert ClassFolder(root).key == before
    Image.new("RGB", (90, 90), "blue").save(root / "cat/0.png")
    assert ClassFolder(root).key != before


def test_a_run_learns_from_a_folder_of_classes(root: Path, tmp_path: Path):
    tiny_pipeline().save_pretrained(tmp_path / "model")
    sections: dict[str, Any] = {
        "data": {"root": str(root), "sizes": [[32, 48]], "encode": "lazy", "text_tokens": 8},
        "adapter": {"rank": 2, "targets": ["to_q"]},
        "optimization": {"steps": 1, "batch_size": 2, "warmup": 0, "ema": 0.0, "precision": "no"},
        "watch": {"sample_every": 1, "sample_steps": 1, "guidance_scale": 1.0, "validation": str(root)},
        "instruct": {"pairs": "classes", "tasks": ["classify"], "validation_scenes": 2},
    }
    out = tmp_path / "run"
    with pytest.warns(UserWarning, match=r"the question about .*these words are lost"):
        train(config_of({"task": "instruct", "model": str(tmp_path / "model"), "out": str(out), **sections}))
    assert (out / "lora.safetensors").exists()
    drawn = sorted((out / "samples").iterdir())
    assert [path.name for path in drawn] == ["step-000001-classify-0.png", "step-000001-classify-3.png"]
    assert read_image(drawn[0]).size == (48, 32)


def test_what_is_no_folder_of_classes_is_named(root: Path, tmp_path: Path):
    with pytest.raises(InputError, match="root: expected a folder with a folder for each class, got"):
        ClassFolder(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"root: expected folders of two classes or more in .*cat', got 0"):
        ClassFolder(root / "cat")
    (root / "dog").mkdir()
    with pytest.raises(InputError, match=r"root: expected pictures in each class of .*, got none in dog"):
        ClassFolder(root)
