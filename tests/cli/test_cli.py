import json
import os
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

import dit_heads.models
from dit_heads.cli import main
from dit_heads.io.pictures import read_image, read_settings
from tests.saved import BLOCKS, HEADS, tiny_pipeline

FAST = ["--steps", "2", "--guidance-scale", "2"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny_pipeline().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def generate(model, tmp_path, monkeypatch):
    """Run `dit-heads generate` with the tiny model, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: main(["generate", *arguments, "--model", model])


def pixels(path) -> bytes:
    return read_image(path).tobytes()


def error_line(capsys) -> str:
    """The one line on stderr."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("dit-heads: error: ")
    return lines[0]


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


def test_heads_lists_what_there_is(model, capsys):
    assert main(["heads", model]) == 0
    listing = capsys.readouterr().out
    assert f"{BLOCKS} blocks" in listing and f"{BLOCKS * HEADS} heads" in listing
    assert f"L0-{BLOCKS - 1}H0-{HEADS - 1}" in listing


def test_presets_are_listed_with_their_source(capsys):
    assert main(["presets"]) == 0
    listing = capsys.readouterr().out
    assert "FLUX.1-dev (arXiv 2506.10978" in listing
    assert any(line.split("  ")[1:2] == ["golden hour"] and "L38H18" in line for line in listing.splitlines())


def test_a_reader_that_stops_reading_is_no_error():
    ours, theirs = os.pipe()
    os.close(ours)
    with os.fdopen(theirs, "wb") as out:
        done = subprocess.run(
            [sys.executable, "-m", "dit_heads.cli", "presets"], stdout=out, stderr=subprocess.PIPE, text=True
        )
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize(
    "arguments", [["--help"], ["generate", "--help"], ["heads", "--help"], ["run", "--help"]]
)
def test_help_ends_well(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 0
    assert "usage: dit-heads" in capsys.readouterr().out


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
    "no steps": (["a cat", "--steps", "0"], "steps: expected a number from 1"),
    "start after stop": (["a cat", "--start", "0.6", "--stop", "0.5"], "start: expected less than stop"),
    "text for a number": (["a cat", "--seed", "x"], "--seed"),
    "an unknown flag": (["a cat", "--softnes", "1"], "--softnes"),
    "a file in place of a folder": (["a cat", "--out", "file/a.png"], "'file' is a file, not a folder"),
    "a folder in place of a file": (["a cat", "--out", "folder.png"], "got the folder"),
    "another format": (["a cat", "--out", "a.jpg"], "ends in .png"),
    "settings from nowhere": (["a cat", "--from", "absent.png"], "absent.png"),
    "settings from text": (["a cat", "--from", "file"], "not a picture"),
    "an unknown dtype": (["a cat", "--dtype", "int3"], "dtype: expected auto"),
    "an unknown device": (["a cat", "--device", "abacus"], "device: 'abacus'"),
}


@pytest.mark.parametrize(("arguments", "message"), CHEAP.values(), ids=CHEAP)
def test_bad_arguments_end_before_a_model_is_loaded(
    generate, arguments, message, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(
        dit_heads.models.DiffusionPipeline, "from_pretrained", lambda *_, **__: pytest.fail("loaded")
    )
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    assert generate(*arguments) == 2
    assert message in error_line(capsys)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.png"]


@pytest.mark.parametrize(
    ("heads", "named"), [("L9", "L9"), ("L0H4", "L0H4"), ("L0, L1H2-7", "L1H"), ("L0H0i", "L0H0i")]
)
def test_heads_that_the_model_lacks_end_before_its_weights_are_read(
    generate, heads, named, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(
        dit_heads.models.DiffusionPipeline, "from_pretrained", lambda *_, **__: pytest.fail("loaded")
    )
    assert generate("a cat", "--heads", heads) == 2
    assert named in error_line(capsys)
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
def test_a_model_of_another_kind_is_refused(command, index, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*command, folder_of(tmp_path, index)]) == 2
    assert message in error_line(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("name", ["./absent", "absent", "/absent/model", "a/b/c", "."])
def test_a_model_that_is_nowhere_is_refused(name, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["generate", "a cat", "--model", name]) == 2
    assert error_line(capsys).startswith("dit-heads: error: model: ")
    assert list(tmp_path.iterdir()) == []


def test_damaged_weights_are_refused(model, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model, "damaged")
    weights = tmp_path / "damaged/transformer/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert main(["generate", "a cat", "--model", "damaged", "--out", "a.png"]) == 2
    assert "cannot load 'damaged'" in error_line(capsys)
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize(
    ("name", "value"), [("steps", "many"), ("seed", True), ("prompt", 7), ("heads", 1), ("width", 1.5)]
)
def test_settings_of_another_type_in_a_file_are_refused(generate, name, value, tmp_path, capsys):
    from PIL import Image

    from dit_heads.io.pictures import write_png

    write_png(Image.new("RGB", (4, 4)), tmp_path / "a.png", {"prompt": "a cat", name: value})
    assert generate("--from", "a.png") == 2
    assert f"from: expected `{name}`" in error_line(capsys)


def test_a_failure_while_drawing_leaves_no_file(generate, tmp_path, capsys):
    assert generate("a cat", *FAST, "--width", "33", "--height", "32") == 2
    assert "divisible" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_words_that_the_embedded_model_never_read_are_named(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["generate", "a red zorgle", "--steps", "1", "--out", "a.png"]) == 0
    warning = next(line for line in capsys.readouterr().err.splitlines() if "warning" in line)
    assert "zorgle" in warning and "red" not in warning
    assert (tmp_path / "a.png").exists()


def test_flux_has_no_call_that_reads_a_negative_prompt(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flux = ["generate", "a small red cube on grass", "--model", "embedded/flux", "--steps", "1"]
    assert main([*flux, "--negative-prompt", "snow"]) == 2
    assert "negative_prompt: expected none for Flux" in error_line(capsys) and not list(tmp_path.iterdir())
    assert main([*flux, "--heads", "L5H3", "--out", "a.png"]) == 0
    assert read_settings(tmp_path / "a.png")["model"] == "embedded/flux"


# --- hunt ---

HUNT = ["--candidates", "L1H0-2", "--steps", "2", "--seeds", "0", "1"]


def test_hunt_writes_a_head_set_that_generate_takes(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("a cat\ntwo dogs\n")
    asked = ["hunt", "--model", model, "--objective", "tests.saved:red", "--prompts", "prompts.txt", *HUNT]
    assert main([*asked, "--out", "h", "--style", "at night"]) == 0
    said = capsys.readouterr().out
    assert "16 pictures in all" in said and "wrote h/heads.json" in said
    trials = [json.loads(line) for line in (tmp_path / "h/trials.jsonl").read_text().splitlines()[1:]]
    assert {t["prompt"] for t in trials} == {"at night, a cat", "at night, two dogs"}
    drawn = ["generate", "a cat", *FAST, "--model", model, "--heads", "h/heads.json", "--out", "a.png"]
    assert main(drawn) == 0
    assert read_settings(tmp_path / "a.png")["heads"].startswith("L1H")
    # Done already, so nothing is drawn again; another setting does not fit into the folder.
    assert main([*asked, "--out", "h", "--style", "at night"]) == 0
    assert len((tmp_path / "h/trials.jsonl").read_text().splitlines()) == 1 + len(trials)
    capsys.readouterr()
    assert main([*asked, "--out", "h", "--region", "image"]) == 2
    assert "of another search (region: 'joint' there, 'image' here)" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("method", ["exhaustive", "fast"])
def test_a_hunt_that_is_killed_again_and_again_finds_what_an_undisturbed_one_finds(model, tmp_path, method):
    """SIGKILL after a few pictures, at another moment each time, until a process comes to the end."""
    (tmp_path / "prompts.txt").write_text("a cat\ntwo dogs\n")
    settings = ["--model", model, "--objective", "tests.saved:red", "--prompts", "prompts.txt", *HUNT]
    command = [sys.executable, "-m", "dit_heads.cli", "hunt", *settings, "--method", method, "--batch", "2"]
    command += ["--per-round", "1", "--rounds", "2", "--out"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    start = partial(subprocess.Popen, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    assert start([*command, "whole"]).wait() == 0

    def lines() -> int:
        log = tmp_path / "broken/trials.jsonl"
        return len(log.read_bytes().splitlines()) if log.exists() else 0

    kills = 0
    while (process := start([*command, "broken"])).poll() is None:
        target = lines() + 2 + 2 * (kills % 3)
        while process.poll() is None and lines() < target:
            time.sleep(0.002)
        process.kill()
        if process.wait() == 0:
            break
        kills += 1
    assert kills > 1
    for found in ("heads.json", "scores.csv"):
        whole, broken = ((tmp_path / folder / found).read_text() for folder in ("whole", "broken"))
        assert broken == whole


def test_tune_sweeps_what_hunt_found(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("a cat\ntwo dogs\n")
    asked = ["hunt", "--model", model, "--objective", "tests.saved:red", "--prompts", "prompts.txt", *HUNT]
    assert main([*asked, "--method", "fast", "--per-round", "1", "--share", "1", "--out", "h"]) == 0
    monkeypatch.chdir(tmp_path / "h")  # what is stored does not depend on where one stands
    assert main(["tune", ".", "--scales", "1", "3", "--softnesses", "0.5"]) == 0
    assert "best at scale" in capsys.readouterr().out
    grid = json.loads((tmp_path / "h/tune.json").read_text())["grid"]
    assert [(row["scale"], row["softness"]) for row in grid] == [(1.0, 0.5), (3.0, 0.5)]
    assert main(["tune", ".", "--scales", "0"]) == 2
    assert "scales: expected positive numbers" in capsys.readouterr().err


def test_tune_needs_a_folder_of_a_search(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["tune", "nothing"]) == 2
    assert "folder: expected one that dit-heads hunt has filled, got 'nothing'" in error_line(capsys)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--candidates", "L9"], "the model has blocks L0 to L2"),
        (["--objective", "beauty"], "objective: expected clip, "),
        (["--method", "quick"], "method: expected one of exhaustive, fast"),
        (["--share", "0"], "share: expected more than 0"),
        (["--prompts", "none.txt"], "none.txt"),
        (["--prompts", "empty.txt"], "prompts: 'empty.txt' holds none"),
        (["--out", "empty.txt"], "is a file, not a folder"),
        (["--rounds", "0"], "rounds"),
        (["--num-prompts", "0"], "num_prompts: expected at least 1"),
        (["--style", "at night", "--template", "{style}"], "template: expected {style} and {content}"),
    ],
)
def test_bad_input_of_hunt_is_one_line_and_leaves_nothing(
    flags, message, model, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("\n")
    assert main(["hunt", "--model", model, "--out", "h", *flags]) == 2
    assert message in error_line(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["empty.txt"]


def test_hunt_says_before_it_searches_that_plots_cannot_be_drawn(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["hunt", "--model", model, "--out", "h"]) == 2
    assert "pip install 'dit-heads[search]'" in error_line(capsys)
    assert not (tmp_path / "h").exists()
