"""`dit-heads score edit`, on cases computed by hand."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPModel, ViTConfig, ViTImageProcessorPil, ViTModel

from dit_heads.cli import main
from dit_heads.embedded.export import load_clip
from dit_heads.embedded.nets.clip import tokenize
from dit_heads.io.pictures import read_image
from tests.objectives.made import MEAN, SCALE, SIZE, STD, TOKENIZER, saved_clip

WIDE, HIGH = 24, 16


@pytest.fixture
def score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run the command in an empty folder: what it printed, and what it wrote."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[str, Any]:
        code = main(["score", "edit", *words, "--json", "scores.json"])
        told = capsys.readouterr()
        assert code == 0, told.err
        return told.out, json.loads(Path("scores.json").read_text())

    return run


def png(path: str, pixels: Any) -> np.ndarray:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(pixels, np.uint8)).save(path)
    return np.array(pixels, np.uint8)


def flat(path: str, level: int, size: tuple[int, int] = (HIGH, WIDE)) -> np.ndarray:
    return png(path, np.full((*size, 3), level))


def noise(path: str, seed: int, size: tuple[int, int] = (HIGH, WIDE)) -> np.ndarray:
    return png(path, np.random.default_rng(seed).integers(0, 256, (*size, 3)))


def words(name: str, text: str = "make it red", **more: str) -> None:
    Path(f"truth/{name}").mkdir(parents=True, exist_ok=True)
    for file, content in {"instruction": text, **more}.items():
        Path(f"truth/{name}/{file}.txt").write_text(content + "\n")


def test_distances_by_hand(score):
    words("a")
    words("b")
    flat("truth/a/target.png", 100)
    flat("found/a.png", 151)
    flat("truth/b/target.png", 100)
    flat("found/b/result.png", 100)
    printed, found = score("truth", "found")
    assert found["figures"] == {"L1": pytest.approx(0.1), "L2": pytest.approx(0.02)}
    assert found["pictures"]["a"] == {"L1": pytest.approx(0.2), "L2": pytest.approx(0.04)}
    assert found["intervals"]["L1"] == pytest.approx([0, 0.2])
    assert "edits: 2 edits; pixels in [0, 1]" in printed and "L1  0.1  [0, 0.2]" in printed
    assert "against the target: 2 edits" in printed


def test_what_has_to_stay_is_compared_with_the_source_alone(score):
    words("a")
    source = flat("truth/a/source.png", 100)
    mask = np.zeros((HIGH, WIDE), np.uint8)
    mask[:, :12] = 255
    png("truth/a/mask.png", mask)
    result = source.copy()
    result[:, :12] = 255
    png("truth/a/result.png", result)
    printed, found = score("truth", "truth")
    assert found["figures"] == {
        "PSNR outside, dB": 60, "SSIM outside": pytest.approx(1), "L1 outside": 0,
    }  # fmt: skip
    result[:, 12:] += 51
    png("truth/a/result.png", result)
    figures = score("truth", "truth")[1]["figures"]
    assert figures["PSNR outside, dB"] == pytest.approx(10 * math.log10(1 / 0.04))
    assert figures["L1 outside"] == pytest.approx(0.2)
    # Of pictures of one colour, SSIM is that of their means.
    a, b, c = 100 / 255, 151 / 255, 0.01**2
    row = (2 * a * b + c) / (a * a + b * b + c)
    assert 0.5 < figures["SSIM outside"] < row  # windows at the border reach into what was set to the source
    assert "60 dB at most" in printed


def test_results_of_another_size_are_resized_and_named(score):
    words("a")
    flat("truth/a/target.png", 100)
    flat("found/a.png", 151, (40, 60))
    printed, found = score("truth", "found")
    assert found["figures"]["L1"] == pytest.approx(0.2)
    assert "compared with, 16 x 24, 1 resized to it by bicubic filtering (a)" in printed


# --- embeddings ---


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory) -> str:
    return saved_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def dino_folder(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("dino")
    torch.manual_seed(0)
    model = ViTModel(
        ViTConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=24,
            image_size=SIZE,
            patch_size=8,
        )
    )
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    model.save_pretrained(path)
    ViTImageProcessorPil(size={"height": SIZE, "width": SIZE}).save_pretrained(path)
    return str(path)


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), 0))


def test_cosines_are_those_of_transformers(score, clip_folder, dino_folder):
    words("a", "make the <cat> red", caption="two cones at night")
    words("b", "a small blue sphere")
    square = (SIZE, SIZE)
    target, cat = noise("truth/a/target.png", 0, square), noise("truth/a/references/cat.png", 1, square)
    result = noise("found/a.png", 2, square)
    noise("found/b.png", 3, square)
    printed, found = score("truth", "found", "--clip", clip_folder, "--dino", dino_folder)
    row = found["pictures"]["a"]

    vit: Any = ViTModel.from_pretrained(dino_folder)

    def token(image: np.ndarray) -> torch.Tensor:
        pixels = (torch.from_numpy(image).permute(2, 0, 1)[None] / 255 - 0.5) / 0.5
        with torch.no_grad():
            return vit(pixel_values=pixels).last_hidden_state[:, 0]

    assert row["DINO"] == pytest.approx(cosine(token(result), token(target)), abs=1e-4)
    assert row["DINO of references"] == pytest.approx(cosine(token(result), token(cat)), abs=1e-4)

    model: Any = CLIPModel.from_pretrained(clip_folder)
    pixels = torch.from_numpy(np.stack([result, target, cat])).permute(0, 3, 1, 2) / 255
    pixels = (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    ids = TOKENIZER("two cones at night", return_tensors="pt").input_ids
    with torch.no_grad():
        seen = model(input_ids=ids, pixel_values=pixels)
    images = seen.image_embeds
    assert row["CLIP-I"] == pytest.approx(cosine(images[0], images[1]), abs=1e-4)
    assert row["CLIP-I of references"] == pytest.approx(cosine(images[0], images[2]), abs=1e-4)
    assert row["CLIP-T"] == pytest.approx(float(seen.logits_per_image[0, 0]) / math.exp(SCALE), abs=1e-4)
    assert list(found["pictures"]["b"]) == ["CLIP-T"]
    assert f"CLIP-T: cosine of clip:{clip_folder}, against the caption" in printed


def test_the_embedded_clip_reads_the_instruction_where_there_is_no_caption(score):
    words("a", "a large red <it> on snow in the day")
    noise("truth/a/references/it.png", 1, (128, 128))
    result = noise("found/a.png", 0, (128, 128))
    figures = score("truth", "found", "--clip", "embedded")[1]["figures"]
    text, vision = load_clip()
    with torch.no_grad():
        words_in = text(tokenize(TOKENIZER, ["a large red it on snow in the day"])).text_embeds
        pixels = torch.from_numpy(result).permute(2, 0, 1)[None] / 127.5 - 1
        picture = vision(pixel_values=pixels).image_embeds
    assert figures["CLIP-T"] == pytest.approx(cosine(words_in, picture), abs=1e-3)


# --- GEdit-Bench ---


def test_results_are_copied_where_the_judges_look_for_them(score):
    words("k1", task="subject-add")
    words("k2")
    source, result = noise("truth/k1/source.png", 0), noise("truth/k1/result.png", 1)
    flat("truth/k1/target.png", 9)
    flat("truth/k2/target.png", 9)
    noise("truth/k2/result.png", 1)
    score("truth", "truth", "--gedit", "out", "--method", "mine", "--language", "cn")
    folder = Path("out/mine/fullset/subject-add/cn")
    assert sorted(p.as_posix() for p in Path("out").rglob("*.png")) == [
        f"{folder}/k1.png", f"{folder}/k1_SRCIMG.png",
    ]  # fmt: skip
    assert np.array_equal(np.asarray(read_image(folder / "k1.png")), result)
    assert np.array_equal(np.asarray(read_image(folder / "k1_SRCIMG.png")), source)


# --- bad input ---


def test_missing_results_are_refused_and_others_are_named(score, error_line):
    for name in "abc":
        words(name)
        flat(f"truth/{name}/target.png", 9)
    flat("found/b.png", 9)
    flat("found/z.png", 9)
    assert main(["score", "edit", "truth", "found"]) == 2
    line = error_line()
    assert "predictions: expected NAME.png or NAME/result.png in 'found'" in line and line.endswith(
        "for a, c"
    )
    flat("found/a.png", 9)
    flat("found/c/result.jpg", 9)
    assert "1 results without an edit, not scored (z)" in score("truth", "found")[0]


def _nothing() -> None:
    words("a")
    flat("found/a.png", 9)


def _mask(level: int, size: tuple[int, int] = (HIGH, WIDE)) -> None:
    _nothing()
    flat("truth/a/source.png", 9)
    flat("truth/a/mask.png", level, size)


def _two() -> None:
    _nothing()
    flat("found/a/result.png", 9)


def _reference() -> None:
    words("a", "the <cat>")
    flat("truth/a/references/dog.png", 9)
    flat("found/a.png", 9)


def _task() -> None:
    words("a", task="../b")
    flat("truth/a/source.png", 9)
    flat("truth/a/target.png", 9)
    flat("found/a.png", 9)


@pytest.mark.parametrize(
    ("make", "flags", "message"),
    [
        (
            _nothing,
            [],
            "pairs: expected edits with a target or a mask, or a CLIP for texts, got none among 1",
        ),
        (lambda: flat("found/a.png", 9), [], "truth: expected a folder, got 'truth'"),
        (lambda: (Path("truth").mkdir(), Path("found").mkdir()), [], "expected folders with instruction.txt"),
        (
            lambda: _mask(255),
            [],
            "mask: expected black where the picture stays, got one that is all white (a)",
        ),
        (lambda: _mask(0, (9, 9)), [], "mask: expected the size of the picture, 16 x 24, got 9 x 9 (a)"),
        (_two, [], "predictions: expected one result for a, got"),
        (_reference, [], "references: expected a picture for <cat>, got none ('truth/a')"),
        (_task, ["--gedit", "out"], "task: expected a name that a folder can have in 'truth/a/task.txt'"),
        (_nothing, ["--gedit", "out", "--method", "a/b"], "method: expected a name that a folder can have"),
        (_nothing, ["--missing", "count"], "missing: expected refuse for edits"),
        (_nothing, ["--clip", "none/such"], "clip: cannot load 'none/such': "),
        (_nothing, ["--dino", "none/such"], "dino: cannot load 'none/such': "),
    ],
)
def test_what_cannot_be_scored_is_one_line(make, flags, message, tmp_path, monkeypatch, error_line):
    monkeypatch.chdir(tmp_path)
    make()
    assert main(["score", "edit", "truth", "found", *flags]) == 2
    assert message in error_line()
