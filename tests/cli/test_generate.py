"""`dit-heads generate`."""

import json
import shutil
from typing import Any

import pytest
import torch
from PIL import Image

import dit_heads.models
from dit_heads.cli import main
from dit_heads.cli.draw import lost_words
from dit_heads.io.pictures import read_image, read_settings, write_png
from tests.saved import tiny_pipeline

FAST = ["--steps", "2", "--guidance-scale", "2"]


def pixels(path) -> bytes:
    return read_image(path).tobytes()


def test_settings_are_in_the_picture_and_give_it_again(generate, tmp_path, model):
    assert (
        generate("a cat", *FAST, "--heads", "L1H2,L2", "--seed", "5", "--softness", "0.5", "--out", "a.png")
        == 0
    )
    stored = read_settings(tmp_path / "a.png")
    assert stored["prompt"] == "a cat" and stored["model"] == model
    assert (stored["seed"], stored["steps"], stored["softness"], stored["scale"]) == (5, 2, 0.5, 3.0)
    assert main(["generate", "--from", "a.png", "--out", "b.png"]) == 0
    assert pixels(tmp_path / "a.png") == pixels(tmp_path / "b.png")
    assert read_settings(tmp_path / "b.png") == stored


def test_flags_win_over_the_settings_of_the_file(generate, tmp_path):
    generate("a cat", *FAST, "--seed", "5", "--out", "a.png")
    assert main(["generate", "a dog", "--from=a.png", "--seed", "6", "--out", "b.png"]) == 0
    stored = read_settings(tmp_path / "b.png")
    assert (stored["prompt"], stored["seed"], stored["steps"]) == ("a dog", 6, 2)
    assert pixels(tmp_path / "a.png") != pixels(tmp_path / "b.png")


def test_each_of_several_pictures_can_be_had_alone(generate, tmp_path):
    assert (
        generate("a cat", *FAST, "--heads", "L0", "--num-images", "2", "--seed", "8", "--out", "a.png") == 0
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-1.png", "a-2.png"]
    assert generate("a cat", *FAST, "--heads", "L0", "--seed", "9", "--out", "b.png") == 0
    assert pixels(tmp_path / "a-2.png") == pixels(tmp_path / "b.png") != pixels(tmp_path / "a-1.png")
    assert read_settings(tmp_path / "a-2.png") == read_settings(tmp_path / "b.png")


def test_a_grid_is_one_file_with_the_settings_of_all(generate, tmp_path):
    assert generate("a cat", *FAST, "--num-images", "3", "--grid", "--out", "a.png") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert read_settings(tmp_path / "a.png")["num_images"] == 3
    assert read_image(tmp_path / "a.png").width > 64


def test_heads_change_the_picture_and_scale_zero_does_not(generate, tmp_path):
    generate("a cat", *FAST, "--out", "plain.png")
    generate("a cat", *FAST, "--heads", "L0H1", "--out", "guided.png")
    generate("a cat", *FAST, "--heads", "L0H1", "--scale", "0", "--out", "off.png")
    assert pixels(tmp_path / "plain.png") == pixels(tmp_path / "off.png") != pixels(tmp_path / "guided.png")


def test_heads_may_come_from_a_file(generate, tmp_path):
    from dit_heads import HeadSet

    HeadSet.parse("L1H0-2").save(tmp_path / "heads.json")
    assert generate("a cat", *FAST, "--heads", "heads.json", "--out", "a.png") == 0
    assert HeadSet.parse(read_settings(tmp_path / "a.png")["heads"]) == HeadSet.parse("L1H0-2")


CHEAP = {
    "no prompt": ([""], "prompt"),
    "an unknown kind of head": (["a cat", "--heads", "X3"], "X3"),
    "no heads": (["a cat", "--heads", ""], "heads"),
    "softness above one": (
        ["a cat", "--heads", "L0", "--softness", "1.5"],
        "softness: expected a number from 0 to 1",
    ),
    "softness below zero": (
        ["a cat", "--heads", "L0", "--softness", "-0.1"],
        "softness: expected a number from 0 to 1",
    ),
    "not a number": (["a cat", "--softness", "nan"], "softness"),
    "an endless scale": (["a cat", "--scale", "inf"], "scale"),
    "no steps": (["a cat", "--steps", "0"], "steps: expected a whole number from 1 to 1000, got 0"),
    "start after stop": (["a cat", "--start", "0.6", "--stop", "0.5"], "start: expected less than stop"),
    "text for a number": (["a cat", "--seed", "x"], "--seed"),
    "an unknown flag": (["a cat", "--softnes", "1"], "--softnes"),
    "a file in place of a folder": (["a cat", "--out", "file/a.png"], "'file' is a file, not a folder"),
    "a folder in place of a file": (["a cat", "--out", "folder.png"], "got the folder"),
    "another format": (["a cat", "--out", "a.jpg"], "ends in .png"),
    "a seed beyond 63 bits": (["a cat", "--seed", str(2**63)], "seed: expected a whole number from 0"),
    "seeds that count up beyond 63 bits": (
        ["a cat", "--seed", str(2**63 - 1), "--num-images", "2"],
        f"seed: expected at most {2**63 - 2} for 2 pictures",
    ),
    "text that is no text": (["a \udcff cube"], "prompt: expected text in UTF-8, got 'a \\udcff cube'"),
    "a device that holds no numbers": (
        ["a cat", "--device", "meta"],
        "device: expected one that holds numbers",
    ),
    "a picture cut short": (["a cat", "--from", "cut.png"], "'cut.png'"),
    "a negative prompt without CFG": (
        ["a cat", "--negative-prompt", "a dog", "--guidance-scale", "1"],
        "negative_prompt: expected none where guidance_scale is 1 or less",
    ),
    "a width between two patches": (["a cat", "--width", "33"], "width: expected a multiple of 4 pixels"),
    "a height beyond the positions": (["a cat", "--height", "68"], "height: expected at most 64 pixels"),
    "more heads than there are": (["a cat", "--heads", "L0-999H0-999"], "heads: expected at most 16384"),
    "settings from nowhere": (["a cat", "--from", "absent.png"], "absent.png"),
    "settings from text": (["a cat", "--from", "file"], "not a picture"),
    "an unknown dtype": (["a cat", "--dtype", "int3"], "dtype: expected auto"),
    "an unknown device": (["a cat", "--device", "abacus"], "device: 'abacus'"),
}


@pytest.mark.parametrize(("arguments", "message"), CHEAP.values(), ids=CHEAP)
def test_bad_arguments_end_before_a_model_is_loaded(
    generate, arguments, message, tmp_path, error_line, monkeypatch
):
    monkeypatch.setattr(
        dit_heads.models.DiffusionPipeline, "from_pretrained", lambda *_, **__: pytest.fail("loaded")
    )
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    write_png(Image.new("RGB", (4, 4)), tmp_path / "whole.png", {"prompt": "a cat" * 99})
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:300])
    there = sorted(tmp_path.iterdir())
    assert generate(*arguments) == 2
    assert message in error_line()
    assert sorted(tmp_path.iterdir()) == there


@pytest.mark.parametrize(
    ("heads", "named"), [("L9", "L9"), ("L0H4", "L0H4"), ("L0, L1H2-7", "L1H"), ("L0H0i", "L0H0i")]
)
def test_heads_that_the_model_lacks_end_before_its_weights_are_read(
    generate, heads, named, tmp_path, error_line, monkeypatch
):
    monkeypatch.setattr(
        dit_heads.models.DiffusionPipeline, "from_pretrained", lambda *_, **__: pytest.fail("loaded")
    )
    assert generate("a cat", "--heads", heads) == 2
    assert named in error_line()
    assert list(tmp_path.iterdir()) == []


def folder_of(tmp_path, index) -> str:
    """A folder that calls itself a model."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model_index.json").write_text(
        index if isinstance(index, str) else json.dumps(index)
    )
    return str(tmp_path / "model")


@pytest.mark.parametrize("command", [["heads"], ["generate", "a cat", "--out", "a.png", "--model"]])
@pytest.mark.parametrize(
    ("index", "message"),
    [
        (
            {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]},
            "no transformer",
        ),
        (
            {"_class_name": "PixArtSigmaPipeline", "transformer": ["diffusers", "PixArtTransformer2DModel"]},
            "PixArt",
        ),
        (
            {
                "_class_name": "StableDiffusion3Pipeline",
                "transformer": ["diffusers", "SD3Transformer2DModel"],
            },
            "config",
        ),
        ({"_class_name": "StableDiffusion3Pipeline", "transformer": 3}, "cannot read"),
        ("{ half", "cannot read"),
    ],
)
def test_a_model_of_another_kind_is_refused(command, index, message, tmp_path, error_line, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*command, folder_of(tmp_path, index)]) == 2
    assert message in error_line()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("name", ["./absent", "absent", "/absent/model", "a/b/c", "."])
def test_a_model_that_is_nowhere_is_refused(name, tmp_path, error_line, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["generate", "a cat", "--model", name]) == 2
    assert error_line().startswith("dit-heads: error: model: ")
    assert list(tmp_path.iterdir()) == []


def test_damaged_weights_are_refused(model, tmp_path, error_line, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model, "damaged")
    weights = tmp_path / "damaged/transformer/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert main(["generate", "a cat", "--model", "damaged", "--out", "a.png"]) == 2
    assert "cannot load 'damaged'" in error_line()
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize(
    ("name", "value"), [("steps", "many"), ("seed", True), ("prompt", 7), ("heads", 1), ("width", 1.5)]
)
def test_settings_of_another_type_in_a_file_are_refused(generate, name, value, tmp_path, error_line):
    write_png(Image.new("RGB", (4, 4)), tmp_path / "a.png", {"prompt": "a cat", name: value})
    assert generate("--from", "a.png") == 2
    line = error_line()
    assert "from: 'a.png' holds settings that cannot be followed" in line and f" {name}: expected " in line


def test_settings_that_this_version_does_not_know_are_refused(generate, tmp_path, error_line):
    write_png(Image.new("RGB", (4, 4)), tmp_path / "a.png", {"prompt": "a cat", "swirl": 3, "version": "9"})
    assert generate("--from", "a.png") == 2
    assert "unknown setting 'swirl'" in error_line()


@pytest.mark.parametrize("part", ["transformer", "vae"])
def test_a_picture_that_is_not_finite_is_refused_and_leaves_no_file(
    generate, part, tmp_path, monkeypatch, error_line
):
    def broken(*arguments, **options):
        pipe = tiny_pipeline()
        torch.nn.init.constant_([*getattr(pipe, part).parameters()][-1], float("nan"))
        pipe.set_progress_bar_config(disable=True)
        pipe.set_progress_bar_config = lambda **_: None
        return pipe

    monkeypatch.setattr(dit_heads.models.DiffusionPipeline, "from_pretrained", broken)
    assert generate("a cat", *FAST, "--out", "a.png") == 2
    assert "picture: the model gave numbers that are not finite in torch.float32" in error_line()
    assert list(tmp_path.iterdir()) == []


def test_the_pictures_are_those_that_the_pipeline_makes_itself(generate, tmp_path, model):
    """The way through tensors, which shows what is not finite, changes no pixel."""
    assert generate("a cat", *FAST, "--seed", "4", "--out", "a.png") == 0
    pipe: Any = tiny_pipeline()
    own = pipe(
        "a cat", num_inference_steps=2, guidance_scale=2.0, generator=torch.Generator().manual_seed(4)
    ).images[0]
    assert pixels(tmp_path / "a.png") == own.tobytes()


def test_words_that_a_text_encoder_does_not_read_are_named(generate, tmp_path, capsys):
    """The tiny CLIPs read 32 tokens, 30 letters; the T5 reads 256 by default."""
    words = " ".join("abcdefghijklmnopqrstuvwxyzabcd")
    assert generate(f"{words} x y z", *FAST, "--out", "a.png") == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dit-heads: ")]
    assert warnings == [
        f"dit-heads: warning: prompt: too long for {name}, which does not read 'x y z'"
        for name in ("text_encoder", "text_encoder_2")
    ]


def test_the_words_that_are_named_are_those_that_make_no_difference():
    pipe: Any = tiny_pipeline()
    whole = " ".join("abcdefgh" * 5)
    lost = lost_words(pipe, whole, 32)
    assert set(lost) == {"text_encoder", "text_encoder_2", "text_encoder_3"}
    for words in lost.values():
        assert whole.endswith(words)
    read = whole.removesuffix(min(lost.values(), key=len)).strip()
    first, other = (pipe.encode_prompt(*[p] * 3, max_sequence_length=32)[0] for p in (whole, read))
    assert torch.equal(first, other)
    shorter = " ".join(read.split()[:-1])
    assert not torch.equal(first, pipe.encode_prompt(*[shorter] * 3, max_sequence_length=32)[0])
    assert lost_words(pipe, " ".join("ab" * 7), 32) == {}


def test_settings_of_heads_without_heads_are_named_and_not_stored(generate, tmp_path, capsys):
    assert generate("a cat", *FAST, "--scale", "5", "--softness", "0.1", "--out", "a.png") == 0
    assert "warning: scale, softness: without --heads" in capsys.readouterr().err
    stored = read_settings(tmp_path / "a.png")
    assert (stored["scale"], stored["softness"]) == (3.0, 1.0)


def test_a_guided_picture_can_be_had_without_its_heads(generate, tmp_path, model):
    generate("a cat", *FAST, "--out", "plain.png")
    generate("a cat", *FAST, "--heads", "L1", "--scale", "2", "--out", "guided.png")
    assert main(["generate", "--from", "guided.png", "--heads", "None", "--out", "again.png"]) == 0
    assert pixels(tmp_path / "again.png") == pixels(tmp_path / "plain.png")
    assert read_settings(tmp_path / "again.png") == read_settings(tmp_path / "plain.png")


def test_a_size_that_flux_would_round_is_refused_with_its_neighbours(tmp_path, monkeypatch, error_line):
    monkeypatch.chdir(tmp_path)
    assert main(["generate", "a large red cube", "--model", "embedded/flux", "--width", "100"]) == 2
    wanted = "width: expected a multiple of 16 pixels for this model, got 100; nearest: 96 and 112"
    assert wanted in error_line()


def test_words_that_the_embedded_model_never_read_are_named(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["generate", "a red zorgle", "--steps", "1", "--out", "a.png"]) == 0
    warning = next(line for line in capsys.readouterr().err.splitlines() if "warning" in line)
    assert "zorgle" in warning and "red" not in warning
    assert (tmp_path / "a.png").exists()


def test_flux_has_no_call_that_reads_a_negative_prompt(tmp_path, error_line, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flux = ["generate", "a small red cube on grass", "--model", "embedded/flux", "--steps", "1"]
    assert main([*flux, "--negative-prompt", "snow"]) == 2
    assert "negative_prompt: expected none for FLUX" in error_line() and not list(tmp_path.iterdir())
    assert main([*flux, "--heads", "L5H3", "--out", "a.png"]) == 0
    assert read_settings(tmp_path / "a.png")["model"] == "embedded/flux"


def test_what_is_done_to_heads_can_be_chosen_and_is_kept(generate, tmp_path):
    kinds = {
        "identity": [],
        "uniform": ["--perturbation", "uniform"],
        "image": ["--region", "image"],
        "warm": ["--perturbation", "temperature", "--temperature", "3"],
    }
    for name, flags in kinds.items():
        assert generate("a cat", *FAST, "--heads", "L0", *flags, "--out", f"{name}.png") == 0
    assert len({pixels(tmp_path / f"{name}.png") for name in kinds}) == len(kinds)
    assert read_settings(tmp_path / "warm.png")["temperature"] == 3.0
    assert main(["generate", "--from", "warm.png", "--out", "again.png"]) == 0
    assert pixels(tmp_path / "again.png") == pixels(tmp_path / "warm.png")


def test_a_perturbation_without_a_defined_map_is_refused(generate, error_line):
    flags = ["--perturbation", "uniform", "--region", "image_to_image"]
    assert generate("a cat", *FAST, "--heads", "L0", *flags) == 2
    assert "region: 'image_to_image' is defined for identity only" in error_line()
