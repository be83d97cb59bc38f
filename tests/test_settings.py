"""Settings: from Python, mappings, JSON, YAML and flags, through the same checks."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import tyro

from dit_heads.errors import InputError
from dit_heads.settings import Field, as_mapping, from_json, from_mapping, from_yaml, settings

Side = Annotated[int, Field(ge=16, multiple_of=16)]


@settings
class Part:
    """A section."""

    rows: Annotated[int, Field(ge=1)] = 1
    """Number of rows."""
    rate: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Learning rate."""
    share: Annotated[float, Field(ge=0, le=1)] | None = None
    """Share of something."""
    sizes: tuple[tuple[Side, Side], ...] = ((16, 16),)
    """Height and width of each."""
    track: tuple[Literal["a", "b"], ...] = ()
    """Trackers."""
    root: Path = Path("sets")
    """Folder of sets."""
    flip: bool = False
    """Mirror it."""

    def __post_init__(self) -> None:
        if self.rows == 13:
            raise InputError("rows: expected another number than 13")
        if self.rows == 14:
            raise ValueError("a bug")


@settings
class Whole:
    """All of it."""

    name: Annotated[str, Field(min_length=1)] = "x"
    """Its name."""
    part: Annotated[Part, tyro.conf.arg(name="")] = field(default_factory=Part)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([], "run: expected a mapping of settings, got []"),
        ({"part": None}, "part: expected a mapping of settings, got None"),
        ({"nmae": "y"}, "run: unknown setting 'nmae'; did you mean 'name'?"),
        ({"rows": 2}, "run: unknown setting 'rows'; it belongs to the section 'part'"),
        ({"part": {"row": 2}}, "part: unknown setting 'row'; did you mean 'rows'?"),
        ({"zzz": 2}, "run: unknown setting 'zzz'; there are name, part"),
        ({3: 2}, "run: unknown setting '3'; there are name, part"),
        ({"name": ""}, "name: expected text that is not empty, got ''"),
        ({"name": 3}, "name: expected text that is not empty, got 3"),
        ({"part": {"rows": 0}}, "rows: expected a whole number of at least 1, got 0"),
        ({"part": {"rows": True}}, "rows: expected a whole number of at least 1, got True"),
        ({"part": {"rows": 1.5}}, "rows: expected a whole number of at least 1, got 1.5"),
        ({"part": {"rows": "2"}}, "rows: expected a whole number of at least 1, got '2'"),
        ({"part": {"rate": 0}}, "rate: expected a number above 0 and at most 1, got 0"),
        ({"part": {"rate": float("nan")}}, "rate: expected a finite number above 0 and at most 1, got nan"),
        ({"part": {"share": float("inf")}}, "share: expected a number from 0 to 1, got inf"),
        ({"part": {"track": ["c"]}}, "track: expected a list of 'a' or 'b', got ['c']"),
        ({"part": {"track": "a"}}, "track: expected a list of 'a' or 'b', got 'a'"),
        ({"part": {"track": ["a"] * 50 + ["c"]}}, "track: expected a list of 'a' or 'b', got 'c' in it"),
        ({"part": {"root": 3}}, "root: expected a path, got 3"),
        ({"part": {"flip": "yes"}}, "flip: expected true or false, got 'yes'"),
        ({"part": {"rows": 13}}, "rows: expected another number than 13"),
        (
            {"part": {"sizes": [64, 64]}},
            "sizes: expected a list of pairs of whole numbers of at least 16 and divisible by 16, "
            "got [64, 64]",
        ),
    ],
)
def test_what_does_not_fit_is_told_by_name_with_what_was_expected(found: object, message: str):
    with pytest.raises(InputError) as error:
        from_mapping(Whole, found, "run")
    assert str(error.value) == message


def test_every_problem_has_a_line_of_its_own():
    with pytest.raises(InputError) as error:
        from_mapping(Whole, {"name": 1, "part": {"rows": 0, "sizes": [[8, 8], [9, 9]], "z": 1}}, "run")
    assert [line.split(":")[0] for line in str(error.value).splitlines()] == ["name", "rows", "sizes", "part"]


def test_python_is_checked_as_files_are_but_may_pass_lists_and_text():
    loose: dict[str, Any] = {"root": "a", "sizes": [[16, 32]]}
    assert Part(**loose) == Part(root=Path("a"), sizes=((16, 32),))
    changes: list[dict[str, Any]] = [{"rows": 0}, {"row": 1}, {"rate": float("nan")}]
    for wrong in changes:
        with pytest.raises(InputError, match=r"^(rows|Part|rate): "):
            Part(**wrong)
        with pytest.raises(InputError):
            replace(Part(), **wrong)
    with pytest.raises(FrozenInstanceError):
        Part().rows = 2  # pyright: ignore[reportAttributeAccessIssue]


def test_a_bug_in_a_check_is_not_taken_for_bad_input():
    with pytest.raises(ValueError, match="a bug") as error:
        Part(rows=14)
    assert not isinstance(error.value, InputError)


def test_settings_come_back_from_json_and_yaml(tmp_path: Path):
    yaml = pytest.importorskip("yaml")
    whole = Whole("y", Part(rows=3, rate=1e-7, sizes=((16, 32), (48, 16)), track=("b",), root=Path("a/ b")))
    path = tmp_path / "file"
    path.write_text(json.dumps(as_mapping(whole)))
    assert from_json(Whole, path, "run") == whole
    path.write_text(yaml.safe_dump(as_mapping(whole)))
    assert from_yaml(Whole, path, "run") == whole


def test_numbers_in_yaml_need_no_dot(tmp_path: Path):
    (tmp_path / "a.yaml").write_text("part: {rate: 1e-3, rows: 4}")
    assert from_yaml(Whole, tmp_path / "a.yaml", "run").part == Part(rate=0.001, rows=4)
    (tmp_path / "a.yaml").write_text("name: 1e-3x")
    assert from_yaml(Whole, tmp_path / "a.yaml", "run").name == "1e-3x"


@pytest.mark.parametrize(
    "text",
    ["name: a\nname: b", "a: [", "\udcff", "name: &a [*a]", "part: {rows: 1, rows: 2}", None],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, text: str | None):
    path = tmp_path / "a.yaml"
    if text is not None:
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=r"^run: cannot read '.*a\.yaml': |^run: expected a mapping"):
        from_yaml(Whole, path, "run")


def test_aliases_that_stand_for_a_billion_items_are_refused_at_once(tmp_path: Path):
    lines = ["a0: &a0 [x]"]
    lines += [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]" for k in range(1, 12)]
    (tmp_path / "a.yaml").write_text("\n".join(lines))
    with pytest.raises(InputError, match="run: expected at most 100000 settings and items"):
        from_yaml(Whole, tmp_path / "a.yaml", "run")


def test_flags_are_checked_and_have_their_help(capsys: pytest.CaptureFixture[str]):
    def parsed(*flags: str) -> Any:
        return tyro.cli(Whole, args=flags, config=(tyro.conf.OmitArgPrefixes,))

    assert parsed("--rows", "3", "--sizes", "16", "32") == Whole(part=Part(rows=3, sizes=((16, 32),)))
    with pytest.raises(InputError, match="rows: expected a whole number of at least 1, got 0"):
        parsed("--rows", "0")
    with pytest.raises(SystemExit):
        parsed("--help")
    assert "Number of rows." in capsys.readouterr().out
