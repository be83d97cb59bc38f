"""Damage to a log, and files that are none."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from dit_heads.errors import InputError
from dit_heads.hunt.log import TrialLog, differences
from dit_heads.hunt.trials import Trial

HEADER = {"weights": "abc", "objective": "red", "call": {"size": 1}}
ROW = {**asdict(Trial("L0H1", "a cat", 0, 2, 2.0, 0.5)), "score": 0.5}


def log(path: Path, *lines: object) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in (HEADER, *lines)))
    return path


@pytest.mark.parametrize("text", ["my notes", '{"weights": "xyz"', "3\n", "\n", "notes\nmore"])
def test_a_foreign_file_is_named_and_left_as_it_is(tmp_path, text):
    path = tmp_path / "trials.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match=r"log: '.*trials.jsonl' is not the log of a search"):
        TrialLog(path, HEADER)
    assert path.read_text() == text


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (3, "got 3"),
        ({"heads": "L0H1"}, "expected heads, prompt, seed, steps, scale, softness, score, got heads"),
        (ROW | {"more": 1}, "got heads, .*, more"),
        (ROW | {"score": "high"}, "score is 'high'"),
        (ROW | {"seed": 0.5}, "seed is 0.5"),
        (ROW | {"seed": True}, "seed is True"),
        (ROW | {"heads": None}, "heads is None"),
    ],
)
def test_a_damaged_line_is_named(tmp_path, line, why):
    path = log(tmp_path / "trials.jsonl", ROW, line, ROW)
    before = path.read_bytes()
    with pytest.raises(InputError, match=rf"log: '.*trials.jsonl', line 3 is damaged: .*{why}"):
        TrialLog(path, HEADER)
    assert path.read_bytes() == before


def test_a_line_that_is_not_json_is_named(tmp_path):
    path = log(tmp_path / "trials.jsonl", ROW)
    path.write_text(path.read_text() + "what is this\n" + json.dumps(ROW) + "\n")
    with pytest.raises(InputError, match="line 3 is damaged"):
        TrialLog(path, HEADER)


@pytest.mark.parametrize("kept", [0, 1, 20])
def test_a_header_that_was_cut_while_it_was_written_is_written_again(tmp_path, kept):
    path = tmp_path / "trials.jsonl"
    path.write_text(json.dumps(HEADER)[:kept])
    TrialLog(path, HEADER)
    assert path.read_text() == json.dumps(HEADER) + "\n"


def test_a_cut_line_of_another_search_is_left_alone(tmp_path):
    path = log(tmp_path / "trials.jsonl", ROW)
    path.write_text(path.read_text() + '{"heads": "L0')
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"another search \(call\.size: 1 there, 2 here\)"):
        TrialLog(path, HEADER | {"call": {"size": 2}})
    assert path.read_bytes() == before


def test_differences_name_the_path_of_each_entry():
    there, here = {"a": {"b": {"c": 1, "d": 2}}, "e": 3}, {"a": {"b": {"c": 9, "d": 2}}, "f": "x" * 200}
    assert list(differences(there, here)) == [
        "a.b.c: 1 there, 9 here",
        "e: 3 there, None here",
        f"f: None there, '{'x' * 99}... here",
    ]
