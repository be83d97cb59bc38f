"""`dit-heads hunt` and `dit-heads tune`."""

import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from dit_heads.cli import main
from dit_heads.io.pictures import read_settings

FAST = ["--steps", "2", "--guidance-scale", "2"]
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
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
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


def test_tune_needs_a_folder_of_a_search(tmp_path, monkeypatch, error_line):
    monkeypatch.chdir(tmp_path)
    assert main(["tune", "nothing"]) == 2
    assert "folder: expected one that dit-heads hunt has filled, got 'nothing'" in error_line()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--candidates", "L9"], "the model has blocks L0 to L2"),
        (["--objective", "beauty"], "objective: expected clip, "),
        (["--method", "quick"], "method: expected"),
        (["--share", "0"], "share: expected a number above 0"),
        (["--prompts", "none.txt"], "none.txt"),
        (["--prompts", "empty.txt"], "prompts: 'empty.txt' holds none"),
        (["--out", "empty.txt"], "is a file, not a folder"),
        (["--rounds", "0"], "rounds"),
        (["--num-prompts", "0"], "num_prompts: expected a whole number of at least 1"),
        (["--style", "at night", "--template", "{style}"], "template: expected {style} and {content}"),
        (["--style", "at night", "--template", "{style} {content} {mood}"], "template: expected"),
        (["--scale", "0"], "scale: expected a number above 0"),
        (["--softness", "3"], "softness: expected a number above 0"),
        (["--softness", "0"], "softness: expected a number above 0"),
        (["--region", "sky"], "region: expected joint, image, image_to_image, got 'sky'"),
        (["--perturbation", "temperature"], "temperature: expected a number"),
        (["--seeds", "99999999999999999999999"], "seeds: expected"),
        (["--objective", "mine:score"], "objective: cannot load 'mine:score': No module named 'mine'"),
    ],
)
def test_bad_input_of_hunt_is_one_line_and_leaves_nothing(
    flags, message, model, tmp_path, monkeypatch, error_line
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("\n")
    assert main(["hunt", "--model", model, "--out", "h", *flags]) == 2
    assert message in error_line()
    assert [path.name for path in tmp_path.iterdir()] == ["empty.txt"]


def test_hunt_says_before_it_searches_that_plots_cannot_be_drawn(model, tmp_path, monkeypatch, error_line):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["hunt", "--model", model, "--out", "h"]) == 2
    assert "pip install 'dit-heads[search]'" in error_line()
    assert not (tmp_path / "h").exists()


def test_an_objective_of_the_current_folder_is_found_from_the_console_script(model, tmp_path, monkeypatch):
    """A console script has its own folder, not the current one, on `sys.path`."""
    score = "def score(images, prompts):\n    return images[:, 0].mean((1, 2))\n"
    (tmp_path / "lies_in_the_current_folder.py").write_text(score)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    name = "lies_in_the_current_folder:score"
    asked = ["hunt", "--model", model, "--objective", name, "--num-prompts", "1", *HUNT, "--out", "h"]
    assert main([*asked, "--per-round", "1"]) == 0
    assert json.loads(Path("h/heads.json").read_text())["provenance"]["objective"] == name


def test_a_fast_hunt_says_first_what_its_screen_takes(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    asked = ["hunt", "--model", model, "--objective", "tests.saved:red", "--num-prompts", "2", *HUNT]
    assert main([*asked, "--method", "fast", "--share", "1", "--per-round", "1", "--out", "h"]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert "screen of a round: 4 x 3 gradients (pictures x noise levels), 108 block evaluations" in first


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "search: expected a mapping"),
        ("3", "search: expected a mapping"),
        ("not JSON", "search: cannot read"),
        ('{"model": 3}', "model: expected text"),
        ('{"config": {"rounds": "many"}}', "rounds: expected a whole number"),
        ('{"method": "fast"}', "it belongs to the section 'config'"),
    ],
)
def test_tune_names_what_is_wrong_with_the_stored_search(tmp_path, monkeypatch, error_line, text, message):
    monkeypatch.chdir(tmp_path)
    Path("h").mkdir()
    Path("h/search.json").write_text(text)
    Path("h/heads.json").write_text('{"heads": ["L1H0"]}')
    assert main(["tune", "h"]) == 2
    assert message in error_line()
