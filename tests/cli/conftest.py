"""Fixtures of the command's tests."""

import pytest

from dit_heads.cli import main
from tests.saved import tiny_pipeline


@pytest.fixture(scope="package")
def model(tmp_path_factory) -> str:
    """A folder of the tiny SD3 pipeline."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny_pipeline().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def generate(model, tmp_path, monkeypatch):
    """Run `dit-heads generate` with the tiny model, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: main(["generate", *arguments, "--model", model])


@pytest.fixture
def error_line(capsys):
    """The one line on stderr."""

    def line() -> str:
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("dit-heads: error: ")
        return lines[0]

    return line
