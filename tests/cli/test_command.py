"""The command as a whole: its errors, its help, and the commands that list things."""

import os
import subprocess
import sys

import pytest
import transformers
from diffusers.utils import logging

from dit_heads.cli import command, main
from dit_heads.cli.parsing import parsed
from dit_heads.cli.train import Train
from dit_heads.errors import InputError
from dit_heads.io.quiet import quiet_libraries
from tests.saved import BLOCKS, HEADS


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
    "arguments", [["--help"], ["generate", "--help"], ["heads", "--help"], ["showcase", "--help"]]
)
def test_help_ends_well(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 0
    assert "usage: dit-heads" in capsys.readouterr().out


class Failing:
    """A command that raises."""

    error: Exception = InputError("")

    def run(self) -> None:
        raise self.error


@pytest.fixture
def failing(monkeypatch):
    """Run `dit-heads heads` as a command that raises an error."""

    def run(error, *arguments):
        monkeypatch.setattr(Failing, "error", error)
        monkeypatch.setattr(command, "parsed", lambda *_, **__: Failing())
        return main(["heads", *arguments])

    return run


def test_bad_input_is_a_message_with_its_lines_kept(failing, capsys):
    assert failing(InputError("sets: expected pictures, got\n  a.png: text\n  b.png: nothing")) == 2
    said = capsys.readouterr().err
    assert said == "dit-heads: error: sets: expected pictures, got\n  a.png: text\n  b.png: nothing\n"


def test_an_error_of_the_system_names_the_file(failing, capsys):
    assert failing(FileNotFoundError(2, "No such file or directory", "x.json")) == 2
    assert capsys.readouterr().err == "dit-heads: error: x.json: No such file or directory\n"


@pytest.mark.parametrize("error", [ValueError("too many"), KeyError("x"), OSError("not the system's")])
def test_anything_else_is_a_bug_and_shows_where_it_is(failing, error, capsys):
    assert failing(error) == 1
    said = capsys.readouterr().err
    assert said.startswith("Traceback") and type(error).__name__ in said
    assert "this is a bug. Please report it" in said.splitlines()[-1]


def test_traceback_shows_where_bad_input_was_noticed_too(failing, capsys):
    assert failing(InputError("heads: expected one"), "--traceback") == 2
    said = capsys.readouterr().err
    assert said.startswith("Traceback") and said.endswith("dit-heads: error: heads: expected one\n")


def test_ctrl_c_is_one_line(failing, capsys):
    assert failing(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "dit-heads: interrupted\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "command: expected one of showcase, generate, heads,"),
        (["run"], "got run"),
        (["--frob"], "--frob"),
        (["heads", "a", "b"], "not understood: b (see dit-heads heads --help)"),
        (["generate", "--steps"], "--steps: expected"),
        (["generate", "a", "--steps", "x"], "--steps: expected INT"),
        (["generate", "a", "--grid", "3"], "not understood: 3"),
        (["tune"], "arguments: expected FOLDER, got none"),
        (["train", "--rank", "0"], "rank: expected"),
        (["train", "absent.yaml"], "absent.yaml"),
        (["train", "--steps", "3", "absent.yaml"], "absent.yaml"),
    ],
)
def test_arguments_that_are_not_understood_are_one_line(arguments, message, error_line):
    assert main(arguments) == 2
    assert message in error_line()


def test_a_bug_in_a_check_of_settings_is_no_bad_input(capsys, monkeypatch):
    from dit_heads.cli.generate import Generate

    def broken(*_, **__):
        raise ValueError("a bug")

    monkeypatch.setattr(Generate, "__init__", broken)
    assert main(["generate", "a cat"]) == 1
    assert "ValueError: a bug" in capsys.readouterr().err


@pytest.mark.parametrize("place", [0, 2, 4])
def test_the_file_of_train_may_stand_anywhere_and_flags_win(place, tmp_path):
    (tmp_path / "a.yaml").write_text("data: {rows: 2, columns: 2}\nadapter: {rank: 3}\nseed: 5\n")
    flags = ["--rank", "7", "--model", "embedded/flux"]
    arguments = [*flags[:place], str(tmp_path / "a.yaml"), *flags[place:]]
    config = parsed(Train, arguments, "train").config
    assert (config.adapter.rank, config.seed, config.data.rows, config.model) == (7, 5, 2, "embedded/flux")


def test_a_flag_that_fits_the_file_alone_is_no_error(tmp_path):
    """Four weights fit four panels, not the two of the defaults."""
    (tmp_path / "a.yaml").write_text("data: {rows: 2, columns: 2}\n")
    arguments = [str(tmp_path / "a.yaml"), "--panel-weights", "1", "2", "3", "4"]
    assert parsed(Train, arguments, "train").config.loss.panel_weights == (1, 2, 3, 4)


def test_without_tyros_hook_bad_arguments_still_end_with_code_2(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tyro._errors", None)
    with pytest.raises(SystemExit) as end:
        main(["generate", "a", "--softnes", "1"])
    assert end.value.code == 2 and "--softnes" in capsys.readouterr().err


def test_version_is_printed(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0 and capsys.readouterr().out.startswith("dit-heads 0.")


def test_loading_is_quiet_and_what_comes_after_it_is_as_loud_as_before():
    libraries = (logging, transformers.utils.logging)
    state = lambda: [(each.get_verbosity(), each.is_progress_bar_enabled()) for each in libraries]  # noqa: E731
    before = state()
    with pytest.raises(RuntimeError), quiet_libraries():
        assert [(level, bars) for level, bars in state()] == [(40, False)] * 2
        raise RuntimeError
    assert state() == before
